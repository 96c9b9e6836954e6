"""Prefill on one vLLM and decode on another, role by role per request: equal answers, KV that came by transfer."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scheduler.decisions import MoveBy
from tests.engines.conftest import Pair
from tests.engines.servers import BLOCK_TOKENS, EngineServer, sample
from tests.engines.steering import Plan, ask, steered
from tests.integration.gateway_parts import until

REQUESTS: Final = 100
AT_ONCE: Final = 6
EXPIRED: Final = "vllm:nixl_num_kv_expired_reqs"


async def pages(servers: Sequence[EngineServer]) -> list[str]:
    """`/metrics` of every server."""
    return list(await asyncio.gather(*(server.metrics() for server in servers)))


def total(found: Sequence[str], name: str, **labels: str) -> float:
    """A counter over all servers; 0 before its first sample."""
    prometheus = name if name.endswith(("_total", "_sum")) else f"{name}_total"
    return sum(sample(page, prometheus, **labels) or 0.0 for page in found)


async def until_free(*servers: EngineServer) -> None:
    """Wait until no server runs a call or keeps KV for one."""

    async def is_free() -> bool:
        found = await pages(servers)
        return all(
            not sample(page, name)
            for page in found
            for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        )

    await until(is_free, timeout_s=60)


def prompt_of(number: int) -> list[int]:
    """Random token ids that no other request begins with, three to eight blocks long."""
    draw = random.Random(f"split {number}")
    return [draw.randrange(10, 700) for _ in range(draw.randint(3 * BLOCK_TOKENS, 8 * BLOCK_TOKENS))]


def body_of(number: int) -> dict[str, Any]:
    """A greedy completion, or the same ids' worth of text as a chat."""
    limits = {"temperature": 0, "max_tokens": 16 + number % 33, "cache_salt": f"split-{number}"}
    if number % 3:
        return {"prompt": prompt_of(number), **limits}
    text = " ".join(str(token) for token in prompt_of(number)[:60])
    return {"messages": [{"role": "user", "content": text}], **limits}


async def test_100_calls_prefilled_here_and_decoded_there(vllm_pair: Pair) -> None:
    before = await pages(vllm_pair)
    async with steered(*vllm_pair) as (gate, core):
        url, at_once = str(gate.client.base_url), asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> bool:
            sides = ("e0", "e1") if number % 2 else ("e1", "e0")
            core.plans[f"split-{number}"] = Plan(prefill=sides[0], decode=sides[1])
            body = body_of(number)
            async with at_once:
                expected = await ask(vllm_pair[0].url, {**body, "cache_salt": f"alone-{number}"})
                split = await ask(url, body, request_id=f"split-{number}")
            return (split.text, split.token_ids) == (expected.text, expected.token_ids)

        equal = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
        failed = dict(core.failed)
    await until_free(*vllm_pair)
    after = await pages(vllm_pair)
    source: Mapping[str, str] = {"source": "external_kv_transfer"}
    by_transfer = [
        total([new], "vllm:prompt_tokens_by_source_total", **source)
        - total([old], "vllm:prompt_tokens_by_source_total", **source)
        for old, new in zip(before, after, strict=True)
    ]
    moved_bytes = total(after, "vllm:nixl_bytes_transferred_sum") - total(before, "vllm:nixl_bytes_transferred_sum")
    expired = total(after, EXPIRED) - total(before, EXPIRED)
    print(
        f"\nP/D: {sum(equal)} of {REQUESTS} equal; prompt tokens by KV transfer {by_transfer}, {moved_bytes:.0f} "
        f"bytes; {expired:.0f} expired leases; {len(failed)} calls needed another attempt"
    )
    assert all(equal)
    assert not failed
    assert all(tokens > REQUESTS / 2 * BLOCK_TOKENS for tokens in by_transfer), "both sides pulled KV"
    assert expired == 0


async def test_a_running_call_moves_with_its_kv(vllm_pair: Pair) -> None:
    requests = 40
    before = await pages(vllm_pair)
    async with steered(*vllm_pair) as (gate, core):
        url, at_once = str(gate.client.base_url), asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> bool:
            name = f"kv-{number}"
            body = {**body_of(number), "cache_salt": name, "max_tokens": 60, "ignore_eos": True}
            core.plans[name] = Plan(moves=((5 + number % 40, "e1"),), by=MoveBy.KV)
            async with at_once:
                expected = await ask(vllm_pair[0].url, {**body, "cache_salt": f"{name}-alone"})
                moved = await ask(url, body, request_id=name)
            return (moved.text, moved.token_ids) == (expected.text, expected.token_ids)

        equal = await asyncio.gather(*(one(number) for number in range(requests)))
        moves, failed = len(core.moved), dict(core.failed)
    await until_free(*vllm_pair)
    after = await pages(vllm_pair)
    name, source = "vllm:prompt_tokens_by_source_total", {"source": "external_kv_transfer"}
    received = total([after[1]], name, **source) - total([before[1]], name, **source)
    computed = total([after[1]], name, source="local_compute") - total([before[1]], name, source="local_compute")
    expired = total(after, EXPIRED) - total(before, EXPIRED)
    print(
        f"\nmoves with KV: {sum(equal)} of {requests} equal, {moves} moved; the target received {received:.0f} tokens "
        f"and computed {computed:.0f}; {expired:.0f} expired leases"
    )
    assert all(equal)
    assert moves == requests
    assert not failed
    assert received > 4 * computed
    assert expired == 0


async def test_a_client_that_leaves_strands_no_kv(vllm_pair: Pair) -> None:
    before = await pages(vllm_pair)
    async with steered(*vllm_pair) as (gate, core):
        url = str(gate.client.base_url)

        async def leaving(number: int) -> None:
            name = f"leaving-{number}"
            core.plans[name] = Plan(prefill="e0", decode="e1")
            body = {**body_of(number), "cache_salt": name, "max_tokens": 300, "ignore_eos": True}
            call = asyncio.create_task(ask(url, body, request_id=name))
            await until(lambda: name in gate.orchestrator.calls)
            # Some leave during the prefill leg, some during the transfer, some while tokens stream.
            await asyncio.wait({call}, timeout=random.Random(number).choice((0.0, 0.02, 0.05, 0.1, 0.4)))
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

        await asyncio.gather(*(leaving(number) for number in range(24)))
        await until(lambda: not gate.orchestrator.calls)
    await until_free(*vllm_pair)
    after = await pages(vllm_pair)
    expired = total(after, EXPIRED) - total(before, EXPIRED)
    print(f"\n24 clients left split calls: both engines free again, {expired:.0f} expired leases")
    assert expired == 0
