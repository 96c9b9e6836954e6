"""How well does a profile predict calls that it was not fitted to? Solo and eight at once, TTFT and E2E."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Final

from agentserve.profiler.client import EngineClient, Reply
from agentserve.profiler.measure import Progress
from agentserve.profiler.points import Check
from agentserve.profiler.predict import predict
from agentserve.profiler.tasks import Bounds
from scheduler.profiles import GpuProfile

BATCH: Final = 8
_SHAPES: Final = ((0.02, 24), (0.08, 40), (0.25, 56))
"""Prompt as a share of what is longest, and output tokens: lengths that no fit's grid holds."""
_LONGEST_TOKENS: Final = 12_000
_MOST_REPEATS: Final = 9
_ARRIVAL_GAP_S: Final = 1e-6
"""Between calls that are sent at once: the first finds an idle engine and begins, the rest find it at work."""


@dataclass
class _Held:
    batch: int
    prompt_tokens: int
    output_tokens: int
    samples: list[list[Reply]] = field(default_factory=list)


async def validate(
    profile: GpuProfile,
    client: EngineClient,
    bounds: Bounds,
    *,
    overhead_s: float,
    budget_s: float,
    progress: Progress = lambda what, gone_s: None,
) -> list[Check]:
    """Measure held-out calls in rounds within the budget, and compare their medians with the profile's predictions.

    The first round is finished even where the budget is shorter.
    """
    began_s = perf_counter()
    held = held_out(bounds)
    try:
        for round_number in range(_MOST_REPEATS):
            async with asyncio.timeout(None if round_number == 0 else budget_s - (perf_counter() - began_s)):
                for shape in held:
                    progress(f"held out: {shape.batch} × {shape.prompt_tokens:,} tokens", perf_counter() - began_s)
                    prompts = [client.prompt(shape.prompt_tokens) for _ in range(shape.batch)]
                    shape.samples.append(await client.calls(prompts, shape.output_tokens))
    except TimeoutError:
        pass
    return [check for shape in held for check in _checks(shape, profile, bounds, overhead_s)]


def held_out(bounds: Bounds) -> list[_Held]:
    """The calls to measure: three lengths, one at a time and eight at once as far as the engine has room."""
    longest = min(bounds.max_prompt_tokens, _LONGEST_TOKENS)
    shapes = []
    for batch in (1, min(BATCH, bounds.max_num_seqs)):
        for share, output in _SHAPES:
            prompt = max(int(share * longest) // 16 * 16 + 5, 21)
            if batch * (prompt + output) <= 0.8 * bounds.kv_capacity_tokens and prompt + output <= longest:
                shapes.append(_Held(batch, prompt, output))
    return shapes


def _checks(shape: _Held, profile: GpuProfile, bounds: Bounds, overhead_s: float) -> list[Check]:
    """TTFT and E2E of each rank of the batch, in the order of first tokens."""
    if not shape.samples:
        return []
    ranked = [sorted(replies, key=lambda reply: reply.times_s[0]) for replies in shape.samples]
    prompts = [reply.prompt_tokens or shape.prompt_tokens for reply in ranked[0]]
    outputs = [round(median(sum(replies[rank].tokens) for replies in ranked)) for rank in range(shape.batch)]
    predicted = predict(
        profile,
        [(rank * _ARRIVAL_GAP_S, prompts[rank], outputs[rank]) for rank in range(shape.batch)],
        max_num_seqs=bounds.max_num_seqs,
        max_batched_tokens=bounds.max_batched_tokens,
        overhead_s=overhead_s,
    )
    predicted.sort(key=lambda call: call.ttft_s)
    checks = []
    for rank in range(shape.batch):
        ttft_s = _median_from_start([(replies, replies[rank].times_s[0]) for replies in ranked])
        e2e_s = _median_from_start([(replies, replies[rank].times_s[-1]) for replies in ranked])
        common = (shape.batch, prompts[rank], outputs[rank], rank)
        checks.append(Check("TTFT", *common, predicted[rank].ttft_s, ttft_s, len(ranked)))
        checks.append(Check("E2E", *common, predicted[rank].e2e_s, e2e_s, len(ranked)))
    return checks


def _median_from_start(times: Sequence[tuple[list[Reply], float]]) -> float:
    """Of each repeat's instants since its first send: the calls of a batch are sent within a millisecond."""
    return median(at_s - min(reply.sent_s for reply in replies) for replies, at_s in times)
