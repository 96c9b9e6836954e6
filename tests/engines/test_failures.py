"""Real engines that are killed, and clients that leave: every answer is whole, and every engine is free again."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.engines.conftest import Pair
from tests.engines.servers import MODEL, EngineServer, sample
from tests.engines.steering import Answer, Plan, ask, steered
from tests.engines.test_split import EXPIRED, body_of, total, until_free
from tests.integration.gateway_parts import until


async def test_20_streams_of_a_killed_vllm_finish_elsewhere_token_by_token(
    doomed_vllm: EngineServer, vllm_pair: Pair
) -> None:
    survivor = vllm_pair[0]
    bodies = [{**body_of(number), "max_tokens": 300, "ignore_eos": True} for number in range(20)]
    expected = await asyncio.gather(*(ask(survivor.url, {**body, "cache_salt": "alone"}) for body in bodies))
    async with steered(doomed_vllm, survivor) as (gate, core):
        url = str(gate.client.base_url)
        calls = [asyncio.create_task(ask(url, body, request_id=f"kill-{i}")) for i, body in enumerate(bodies)]
        await until(lambda: _streaming(gate, "e0") == 20, timeout_s=60)
        doomed_vllm.kill()
        answers = await asyncio.gather(*calls)
        state = gate.orchestrator.instances["e0"].state
    equal = sum((a.text, a.token_ids) == (e.text, e.token_ids) for a, e in zip(answers, expected, strict=True))
    print(
        f"\nSIGKILL in mid-stream: {equal} of 20 streams finished elsewhere, token-exact; {len(core.failed)} were moved"
    )
    assert equal == 20, differences(answers, expected)
    assert len(core.failed) == 20
    assert state == "lost"


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_killed_side_of_split_calls_strands_no_kv_and_no_client(
    side: str, doomed_vllm: EngineServer, vllm_pair: Pair
) -> None:
    survivor, mate = vllm_pair  # the mate can release what the survivor keeps for a decode side that is gone
    before = await survivor.metrics()
    sides = ("e0", "e1") if side == "prefill" else ("e1", "e0")
    bodies = [{**body_of(number), "max_tokens": 200, "ignore_eos": True} for number in range(24)]
    expected = await asyncio.gather(*(ask(survivor.url, {**body, "cache_salt": "alone"}) for body in bodies))
    async with steered(doomed_vllm, survivor, mate) as (gate, core):
        url = str(gate.client.base_url)
        for number in range(24):
            core.plans[f"{side}-{number}"] = Plan(prefill=sides[0], decode=sides[1])
        calls = []
        for number, body in enumerate(bodies):  # one by one, so that the kill meets calls in every phase
            calls.append(asyncio.create_task(ask(url, body, request_id=f"{side}-{number}")))
            await asyncio.wait(calls[-1:], timeout=0.05)
        doomed_vllm.kill()
        answers = await asyncio.gather(*calls)
    equal = sum((a.text, a.token_ids) == (e.text, e.token_ids) for a, e in zip(answers, expected, strict=True))
    started_s = time.monotonic()
    await until_free(survivor)
    expired = total([await survivor.metrics()], EXPIRED) - total([before], EXPIRED)
    print(
        f"\n{side} side killed: {equal} of 24 whole and equal, {len(core.failed)} began again; the other side "
        f"free after {time.monotonic() - started_s:.1f} s, {expired:.0f} leases ended by time"
    )
    assert equal == 24, differences(answers, expected)
    assert core.failed


@pytest.mark.parametrize("is_streaming", [True, False])
async def test_an_engine_is_idle_soon_after_its_client_left(is_streaming: bool, vllm_pair: Pair) -> None:
    first = vllm_pair[0]
    async with steered(first) as (gate, _):
        body: dict[str, Any] = {"model": MODEL, "prompt": "long", "max_tokens": 3000, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=gate.client.base_url, trust_env=False, timeout=60) as client:
            call = asyncio.create_task(client.post("/v1/completions", json={**body, "stream": is_streaming}))
            await until(lambda: _streaming(gate, "e0") == 1, timeout_s=60)
            call.cancel()
            left_s = time.monotonic()
            await asyncio.gather(call, return_exceptions=True)

        async def is_idle() -> bool:
            return sample(await first.metrics(), "vllm:num_requests_running") == 0

        await until(is_idle, timeout_s=30)
        idle_after_s = time.monotonic() - left_s
    print(f"\nclient left (stream={is_streaming}): the engine was idle again {idle_after_s * 1000:.0f} ms later")


def differences(answers: Sequence[Answer], expected: Sequence[Answer]) -> list[str]:
    """Where each answer that differs begins to differ."""
    told = []
    for number, (got, want) in enumerate(zip(answers, expected, strict=True)):
        if (got.text, got.token_ids) != (want.text, want.token_ids):
            pairs = enumerate(zip(got.token_ids, want.token_ids, strict=False))
            at = next((index for index, (mine, theirs) in pairs if mine != theirs), None)
            lengths = f"{len(got.token_ids)} of {len(want.token_ids)} tokens"
            told.append(f"{number}: {lengths}, first other token {at}, text equal {got.text == want.text}")
    return told


def _streaming(gate: Any, instance: str) -> int:
    """Calls whose tokens come from this instance."""
    return sum(live.served_by == instance for live in gate.orchestrator.calls.values())
