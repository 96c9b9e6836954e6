"""What was sent to each instance lately? Tokens of the last minute and predicted work of the last three minutes.

Both are sums over sixty steps of time, so that adding, reading and memory are constant however many calls there are.
"""

from dataclasses import dataclass, field
from itertools import repeat

from scheduler.placement import Placement

TOKENS_SPAN_S = 60.0
"""Balancers that count tokens count them per minute (LiteLLM)."""
WORK_SPAN_S = 180.0
"""Preble's window of load."""
STEPS = 60


class Window:
    """The sum of what was added over the last `span_s`, exact to one step of it."""

    __slots__ = ("_last", "_step_s", "_steps", "_sum")

    def __init__(self, span_s: float) -> None:
        self._step_s = span_s / STEPS
        self._steps = [0.0] * STEPS
        self._last = 0
        self._sum = 0.0

    def add(self, amount: float, now_s: float) -> None:
        """Count `amount` from now on for `span_s`."""
        step = int(now_s // self._step_s)
        if step > self._last:
            self._forget(step)
        self._steps[self._last % STEPS] += amount
        self._sum += amount

    def total(self, now_s: float) -> float:
        """What was added within the span before now."""
        past = int(now_s // self._step_s) - self._last
        if past <= 0:
            return self._sum
        if past >= STEPS:
            return 0.0
        first = self._last + 1
        return max(self._sum - sum(self._steps[step % STEPS] for step in range(first, first + past)), 0.0)

    def _forget(self, step: int) -> None:
        if step - self._last >= STEPS:
            self._steps = list(repeat(0.0, STEPS))
        else:
            for old in range(self._last + 1, step + 1):
                self._steps[old % STEPS] = 0.0
        self._last = step
        self._sum = sum(self._steps)  # anew, so that rounding does not add up


@dataclass(slots=True)
class _Sent:
    tokens: Window = field(default_factory=lambda: Window(TOKENS_SPAN_S))
    work_s: Window = field(default_factory=lambda: Window(WORK_SPAN_S))


class Recent:
    """Windows per live instance, and the mean length of answers per model."""

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self._answers: dict[str, tuple[int, int]] = {}

    def seated(self, placement: Placement, tokens: int, now_s: float) -> None:
        """A call with `tokens` of context was sent to its instances; waiting is no work."""
        if placement.prefill == placement.decode:
            self._send(placement.decode, tokens, placement.prefill_s + placement.decode_s, now_s)
        else:
            self._send(placement.prefill, tokens, placement.prefill_s, now_s)
            self._send(placement.decode, tokens, placement.decode_s, now_s)

    def _send(self, instance_id: str, tokens: int, work_s: float, now_s: float) -> None:
        sent = self._sent.get(instance_id)
        if sent is None:
            sent = self._sent[instance_id] = _Sent()
        sent.tokens.add(tokens, now_s)
        sent.work_s.add(work_s, now_s)

    def put_out(self, instance_id: str, tokens: int, now_s: float) -> None:
        """A call that ended there had put out `tokens`; nothing is noted of an instance that was lost."""
        sent = self._sent.get(instance_id)
        if sent is not None:
            sent.tokens.add(tokens, now_s)

    def answered(self, model: str, tokens: int) -> None:
        """A call ended well after `tokens`."""
        count, total = self._answers.get(model, (0, 0))
        self._answers[model] = count + 1, total + tokens

    def lost(self, instance_id: str) -> None:
        """Forget an instance."""
        self._sent.pop(instance_id, None)

    def tokens(self, instance_id: str, now_s: float) -> float:
        """Prompt tokens sent and output tokens of ended calls, of the last minute."""
        sent = self._sent.get(instance_id)
        return 0.0 if sent is None else sent.tokens.total(now_s)

    def work_s(self, instance_id: str, now_s: float) -> float:
        """Predicted seconds of prefill and decode that were sent in the last three minutes."""
        sent = self._sent.get(instance_id)
        return 0.0 if sent is None else sent.work_s.total(now_s)

    def mean_answer_tokens(self, model: str) -> float | None:
        """The mean output length of all calls of a model that ended well; None before the first."""
        count, total = self._answers.get(model, (0, 0))
        return total / count if count else None
