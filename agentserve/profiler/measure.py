"""How are the points measured, within a time budget? Over a plan, the telling points first, then repeats."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from statistics import median
from time import perf_counter
from typing import Final

from agentserve.profiler.client import EngineClient
from agentserve.profiler.engine_facts import metric_total
from agentserve.profiler.points import DecodePoint, Points, PrefillPoint, undisturbed
from agentserve.profiler.tasks import FEW_TOKENS, WINDOW_TOKENS, Bounds, Decode, Overhead, Point, Prefill, Session

_MOST_REPEATS: Final = 15
_OVERHEAD_CALLS: Final = 8
_LARGEST_SHARE: Final = 0.15
"""Of the budget, what one first measurement may be expected to take; larger points are left out."""

Progress = Callable[[str, float], None]
"""Hears what is measured now, and the seconds that have gone."""


def plan(bounds: Bounds) -> list[Point]:
    """Every point worth measuring, the most telling first; all fit the engine."""
    longest = bounds.max_prompt_tokens
    lengths = _grid(16, longest, 4) + [2 * n for n in _grid(16, longest // 2, 4)]
    lengths += [longest] if longest > 1.3 * max(lengths) else []
    prefills = [Prefill(tokens) for tokens in lengths]
    prefixes = _grid(256, longest * 2 // 3, 4)[::-1]
    cached = [
        Prefill(new, prefix) for share in (16, 4) for prefix in prefixes
        if (new := max(prefix // share, 32)) + prefix <= longest
    ]  # fmt: skip
    contexts = [n for n in (64, 512, 2048, 8192) if n + 128 <= longest] or [max(longest // 2, 1)]
    if len(contexts) < 3 and longest // 2 > 1.5 * contexts[-1]:
        contexts.append(longest // 2)
    batches = [n for n in (1, 8, 32, 64, 2, 16, 4, 128) if n <= bounds.max_num_seqs]
    room = 0.8 * bounds.kv_capacity_tokens
    middle = contexts[len(contexts) // 2]
    pairs = [(batch, context) for batch in batches for context in (middle, contexts[0], contexts[-1], *contexts)]
    decodes: list[Point] = [
        Decode(batch, context) for batch, context in dict.fromkeys(pairs)
        if batch * (context + WINDOW_TOKENS + 32) <= room
    ]  # fmt: skip
    return [point for point in chain.from_iterable(zip_longest(prefills, decodes, cached)) if point is not None]


async def measure(client: EngineClient, bounds: Bounds, budget_s: float, progress: Progress) -> Points:
    """Measure the plan in rounds until every point has its repeats or the time is over.

    A point whose first sample would take too much of the budget is left out; one that the end of the time breaks off
    counts for nothing, and its streams are closed.
    """
    began_s = perf_counter()
    session = Session(client, bounds)
    await warm_up(session)
    session.keeps = await keeps_prefixes(client, bounds)
    overhead = Overhead()
    todo: list[Point] = [overhead, *plan(bounds)]
    try:
        async with asyncio.timeout(max(budget_s - (perf_counter() - began_s), 0.001)):
            while point := _next(todo, session, budget_s, began_s):
                progress(str(point), perf_counter() - began_s)
                started_s = perf_counter()
                await point.sample(session)
                point.taken_s = perf_counter() - started_s
                point.taken += 1
    except TimeoutError:
        pass
    return Points(_prefill_points(todo), _decode_points(todo), undisturbed(overhead.samples or [0.0]))


def _next(todo: list[Point], session: Session, budget_s: float, began_s: float) -> Point | None:
    """The first point that was not measured yet; then the one whose repeats have cost least, short ones more often."""
    left_s = budget_s - (perf_counter() - began_s)
    for point in [point for point in todo if not point.taken]:
        if (expected_s := point.expected_s(session)) <= min(left_s, _LARGEST_SHARE * budget_s):
            return point
        if expected_s > _LARGEST_SHARE * budget_s:
            todo.remove(point)
    again = [point for point in todo if 0 < point.taken < _MOST_REPEATS and point.expected_s(session) <= left_s]
    return min(again, key=lambda point: point.taken**2 * point.expected_s(session), default=None)


async def keeps_prefixes(client: EngineClient, bounds: Bounds) -> bool:
    """Whether a prompt sent twice is found again: by usage, or else by the engine's count of hits."""
    tokens = min(4 * bounds.block_tokens + 8, bounds.max_prompt_tokens)
    prompt = client.prompt(tokens)
    before = await metric_total(client, "vllm:prefix_cache_hits_total")
    await client.call(prompt, FEW_TOKENS)
    reply = await client.call(prompt, FEW_TOKENS)
    if reply.cached_tokens:
        return True
    after = await metric_total(client, "vllm:prefix_cache_hits_total")
    return before is not None and after is not None and after > before


async def warm_up(session: Session) -> float:
    """Let the engine compile and cache what its first calls of a size cost it; returns a first HTTP overhead.

    The session learns how long a decode step takes, about.
    """
    client, bounds = session.client, session.bounds
    for tokens in (16, 256, 1024):
        if tokens <= bounds.max_prompt_tokens:
            await client.call(client.prompt(tokens), 4)
    most = max(min(8, bounds.max_num_seqs, bounds.kv_capacity_tokens // 64), 1)
    for _ in range(2):
        replies = await client.calls([client.prompt(16) for _ in range(most)], 16)
    rates = [(reply.e2e_s - reply.ttft_s) / (sum(reply.tokens[1:]) or 1) for reply in replies]
    session.step_s_by_batch[most] = median(rates)
    overhead = Overhead()
    for _ in range(_OVERHEAD_CALLS):
        await overhead.sample(session)
    return undisturbed(overhead.samples or [0.0])


def _prefill_points(points: Iterable[Point]) -> tuple[PrefillPoint, ...]:
    """One point per new and cached tokens that came out: those of a repeat may differ by what was cached."""
    times: dict[tuple[int, int], list[float]] = {}
    for point in points:
        for new, cached, ttft_s in point.samples if isinstance(point, Prefill) else ():
            times.setdefault((new, cached), []).append(ttft_s)
    return tuple(PrefillPoint(new, cached, tuple(ttfts)) for (new, cached), ttfts in sorted(times.items()))


def _decode_points(points: Iterable[Point]) -> tuple[DecodePoint, ...]:
    return tuple(
        DecodePoint(p.batch, sum(c for c, _ in p.samples) / len(p.samples), tuple(step_s for _, step_s in p.samples))
        for p in points
        if isinstance(p, Decode) and p.samples
    )


def _grid(first: int, last: int, factor: int) -> list[int]:
    values = []
    while first <= last:
        values.append(first)
        first *= factor
    return values
