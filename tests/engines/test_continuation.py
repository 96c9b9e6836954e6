"""Greedy calls that are cut at random points and go on at another vLLM: nothing lost, doubled or changed."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from tests.engines.conftest import Pair
from tests.engines.servers import EngineServer, sample
from tests.engines.steering import Answer, Plan, ask, steered

REQUESTS: Final = 200
AT_ONCE: Final = 10
_WORDS: Final = (
    "plan",
    "call",
    "tools",
    "loop",
    "answer",
    "größe",
    "où",
    "敏捷的狐狸",
    "東京は晴れ",
    "быстрая",
    "лиса",
    "🙂🚀",
    "שלום",
    "deadline",
    "scheduler",
    "piñas",
    '{"a":',
    "1}",
)


def drawn(number: int) -> tuple[dict[str, Any], Plan, bool]:
    """One request, how it moves, and whether the engines have seen it before it moves (warm) or not (cold)."""
    draw = random.Random(number)
    words = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(3, 120)))
    length, is_chat, is_warm = draw.randint(24, 120), number % 2 == 0, number % 4 < 2
    body: dict[str, Any] = {"temperature": 0, "max_tokens": length, "cache_salt": f"salt-{number}"}
    body |= {"messages": [{"role": "user", "content": words}]} if is_chat else {"prompt": words}
    # The scheduler hears of progress every 16 tokens at the latest: a later cut might come too late.
    cuts = sorted(draw.sample(range(1, length - 17), draw.choice((1, 1, 2, 3))))
    hops = ("e1", "e0", "e1")
    return body, Plan(moves=tuple(zip(cuts, hops, strict=False))), is_warm


async def test_200_cut_calls_equal_the_uninterrupted_ones_in_bfloat16(vllm_pair: Pair) -> None:
    await _cut_and_compare("bfloat16", *vllm_pair)


async def test_200_cut_calls_equal_the_uninterrupted_ones_in_float32(float32_pair: Pair) -> None:
    await _cut_and_compare("float32", *float32_pair)


async def _cut_and_compare(dtype: str, first: EngineServer, second: EngineServer) -> None:
    async with steered(first, second) as (gate, core):
        url, at_once = str(gate.client.base_url), asyncio.Semaphore(AT_ONCE)
        differing: list[str] = []

        async def one(number: int) -> tuple[Answer, Answer]:
            body, plan, is_warm = drawn(number)
            name = f"cut-{dtype}-{number}"
            core.plans[name] = plan
            async with at_once:
                expected = await ask(first.url, {**body, "cache_salt": f"{body['cache_salt']}-alone"})
                if is_warm:
                    await asyncio.gather(*(ask(server.url, body) for server in (first, second)))
                cut = await ask(url, body, request_id=name)
            if (cut.text, cut.token_ids, cut.finish_reasons) != (
                expected.text, expected.token_ids, expected.finish_reasons,
            ):  # fmt: skip
                differing.append(f"{name} {plan.moves}: {expected} against {cut}")
            return expected, cut

        async with _other_streams(first, second):
            pairs = await asyncio.gather(*(one(number) for number in range(REQUESTS)))

        lost = sum(max(len(e.token_ids) - len(c.token_ids), 0) for e, c in pairs)
        doubled = sum(max(len(c.token_ids) - len(e.token_ids), 0) for e, c in pairs)
        moves = sum(core.moved.get(f"cut-{dtype}-{number}", 0) for number in range(REQUESTS))
        moved = sum(f"cut-{dtype}-{number}" in core.moved for number in range(REQUESTS))
        print(
            f"\n{dtype}: {REQUESTS - len(differing)} of {REQUESTS} equal in tokens and text, {lost} lost, {doubled} "
            f"doubled; {moved} calls moved {moves} times; {sum(len(c.token_ids) for _, c in pairs)} tokens"
        )
        assert not differing, "\n".join(differing[:3])
        assert moved >= 0.95 * REQUESTS, "too few calls were cut before they ended"
        for expected, cut in pairs:
            assert len(cut.ids) == 1
            assert len(cut.finish_reasons) == 1
            assert cut.usage["prompt_tokens"] == expected.usage["prompt_tokens"]
            assert cut.usage["completion_tokens"] == expected.usage["completion_tokens"] == len(cut.token_ids)


async def test_stop_strings_and_min_tokens_hold_across_a_cut(vllm_pair: Pair) -> None:
    first, second = vllm_pair
    async with steered(first, second) as (gate, core):
        url, checked = str(gate.client.base_url), 0
        for number in range(24):
            prompt = {"prompt": f"stop {number} 🙂", "temperature": 0, "max_tokens": 80, "cache_salt": f"stop-{number}"}
            whole = await ask(first.url, {**prompt, "ignore_eos": True})
            # A stop string so long that it begins before the cut, at about 30 tokens, and ends behind it.
            stop = whole.text[len(whole.text) // 4 : 3 * len(whole.text) // 4]
            body = {**prompt, "ignore_eos": True, "stop": [stop], "min_tokens": (0, 30)[number % 2]}
            expected = await ask(first.url, body)
            core.plans[f"stop-{number}"] = Plan(moves=((28 + number % 6, "e1"),))
            cut = await ask(url, body, request_id=f"stop-{number}")
            assert (cut.text, cut.finish_reasons) == (expected.text, ("stop",)), (number, stop)
            checked += f"stop-{number}" in core.moved
        print(f"\nstop strings across the cut: {checked} of 24 calls moved before their stop ended")
        assert checked >= 20


async def test_a_seeded_sampled_call_goes_on_with_every_token_it_showed(
    vllm_pair: Pair,
) -> None:
    async with steered(*vllm_pair) as (gate, core):
        body = {"prompt": "sampled", "temperature": 1.0, "seed": 11, "max_tokens": 60, "ignore_eos": True}
        core.plans["sampled"] = core.plans["again"] = Plan(moves=((20, "e1"),))
        cut = await ask(str(gate.client.base_url), body, request_id="sampled")
        alone = await ask(vllm_pair[0].url, body)
    kept = core.moved == {"sampled": 1}
    assert kept
    assert len(cut.token_ids) == 60
    assert cut.token_ids[:20] == alone.token_ids[:20]


@asynccontextmanager
async def _other_streams(*servers: EngineServer) -> AsyncIterator[None]:
    """Two streams on each engine, as long as this lasts: the batch is never only the call at hand."""

    async def stream(server: EngineServer, number: int) -> None:
        while True:
            await ask(
                server.url, {"prompt": f"other {number}", "max_tokens": 200, "ignore_eos": True, "temperature": 1}
            )
            number += 10

    tasks = [asyncio.create_task(stream(server, number)) for server in servers for number in range(2)]
    try:
        yield
        busy = [sample(await server.metrics(), "vllm:num_requests_running") for server in servers]
        assert all(busy), f"the other streams have ended: {busy}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
