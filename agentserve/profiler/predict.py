"""When do calls that are sent together get their first and last token, by a profile? The engine model says it.

It is the emulator's, in virtual time: continuous batching, chunked prefill and KV blocks, timed by the profile. So a
profile that predicts well here makes an emulated pool that behaves like the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest
from scheduler.profiles import GpuProfile


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of one call, as its client sees it."""

    ttft_s: float
    e2e_s: float


def predict(
    profile: GpuProfile,
    calls: Sequence[tuple[float, int, int]],
    *,
    max_num_seqs: int,
    max_batched_tokens: int,
    overhead_s: float,
) -> list[Predicted]:
    """Predict calls of (sent at, prompt tokens, output tokens) to an idle engine, in the order given.

    `overhead_s` is added to every time: what lies between the client and the engine.
    """
    engine = Engine(profile, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)
    waiting = sorted((sent_s, index) for index, (sent_s, _, _) in enumerate(calls))
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    now_s = waiting[0][0] if waiting else 0.0
    while len(last) < len(calls):
        while waiting and waiting[0][0] <= now_s:
            _, index = waiting.pop(0)
            _, prompt, output = calls[index]
            engine.add(EngineRequest(request_id=str(index), prompt_tokens=prompt, output_tokens=output))
        result = engine.step(now_s)
        if not result.duration_s:
            now_s = waiting[0][0]
            continue
        now_s += result.duration_s
        for name in result.emitted:
            first.setdefault(name, now_s)
        last.update(dict.fromkeys(result.finished, now_s))
    return [
        Predicted(first[str(i)] - sent_s + overhead_s, last[str(i)] - sent_s + overhead_s)
        for i, (sent_s, _, _) in enumerate(calls)
    ]
