"""What did a call's time go to, beyond what was planned for it? Its phases against the placement that was chosen.

The plan of a call is the chosen candidate of the attempt that answered: predicted prefill, transfer, and decode of the
median length. What it took is that plan, as far as it was used, and losses, each with a reason; they add up to its
time. Waiting is never planned. Unknown predictions are taken to have come true.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from agentserve.telemetry.story import CallStory, Phase

_IDLE_QUEUE_SHARE: Final = 0.1
"""A prefill that was to wait less than this share of its own time met an idle instance (as in `scheduler.speeds`)."""


class BlameReason(StrEnum):
    """Everything that a run can lose its SLO to."""

    QUEUE_WAIT = "queue_wait"
    """A call waited, at the gateway or in an engine's queue."""
    SLOW_INSTANCE = "slow_instance"
    """Prefill, KV transfer or decode of the same tokens took longer than predicted."""
    WRONG_LENGTH = "wrong_length"
    """An answer was longer than predicted."""
    TOOL = "tool"
    """A step without calls took longer than planned."""
    EXTRA_STEPS = "extra_steps"
    """The run took more steps than forecast."""
    MIGRATION = "migration"
    """A stream stood still while its call moved."""
    RETRY = "retry"
    """An attempt failed, and the call began or went on elsewhere."""
    CLIENT = "client"
    """The client let time pass between steps, or inside a step beside its calls."""
    INFEASIBLE = "infeasible"
    """What was planned alone took longer than the SLO allows."""
    FAILURE = "failure"
    """The run failed."""
    CANCELLED = "cancelled"
    """The run was cancelled before its deadline."""


Losses = dict[BlameReason, float]
"""Seconds lost by reason; only reasons that lost some."""


@dataclass(slots=True)
class Spent:
    """Where a stretch of time went: `planned_s` as planned, the rest by reason."""

    planned_s: float = 0.0
    losses: Losses = field(default_factory=dict)

    def lose(self, reason: BlameReason, lost_s: float) -> None:
        """Add a loss; nothing if it is none."""
        if lost_s > 0.0:
            self.losses[reason] = self.losses.get(reason, 0.0) + lost_s

    def add(self, other: "Spent", share: float = 1.0) -> None:
        """Add a share of another stretch."""
        self.planned_s += other.planned_s * share
        for reason, lost_s in other.losses.items():
            self.lose(reason, lost_s * share)


def spent_on_call(call: CallStory, end_s: float) -> Spent:
    """Where a call's time from its arrival went; `end_s` is where phases end that were still going."""
    spent = Spent()
    if call.outcome not in (None, "ok"):
        spent.lose(BlameReason.RETRY, (call.finished_s or end_s) - call.arrived_s)
        return spent
    answered = _answering_attempt(call)
    plan = _plan(call, answered)
    took: dict[Phase, float] = dict.fromkeys(Phase, 0.0)
    for phase in call.phases:
        phase_s = max(0.0, (end_s if phase.end_s is None else phase.end_s) - phase.start_s)
        if phase.phase is Phase.QUEUE:
            spent.lose(BlameReason.RETRY if phase.attempt else BlameReason.QUEUE_WAIT, phase_s)
        elif phase.phase is Phase.MIGRATION:
            spent.lose(BlameReason.MIGRATION, phase_s)
        elif phase.phase is not Phase.DECODE and phase.attempt != answered:
            spent.lose(BlameReason.RETRY, phase_s)
        else:
            took[phase.phase] += phase_s
    pace = _decode(spent, call, plan, took[Phase.DECODE])
    _prefill(spent, plan, took[Phase.PREFILL], pace)
    transfer_s = _known(plan, "predicted_transfer_s", took[Phase.TRANSFER])
    spent.planned_s += min(took[Phase.TRANSFER], transfer_s)
    spent.lose(BlameReason.SLOW_INSTANCE, took[Phase.TRANSFER] - transfer_s)
    return spent


def _answering_attempt(call: CallStory) -> int:
    """The attempt that brought the first token; the last one if none did."""
    first = next((phase for phase in call.phases if phase.phase is Phase.DECODE), None)
    return first.attempt if first is not None else call.attempts


def _plan(call: CallStory, attempt: int) -> Mapping[str, Any]:
    """The chosen candidate of an attempt's dispatch, with the length it was made for; empty if it is not known."""
    for _, decision in call.decisions:
        if decision.get("type") == "dispatch" and (decision.get("attempt") or 1) == attempt:
            reason = decision.get("reason") or {}
            chosen = next(iter(reason.get("candidates") or ()), None) or {}
            return {**chosen, "tokens": (reason.get("length") or {}).get("p50_tokens")}
    return {}


def _known(plan: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = plan.get(name)
    return otherwise if value is None else max(0.0, float(value))


def _decode(spent: Spent, call: CallStory, plan: Mapping[str, Any], took_s: float) -> float:
    """Account for decoding; returns how much slower a token was than predicted, 1 if that is not known."""
    planned_s = _known(plan, "predicted_decode_s", took_s)
    spent.planned_s += min(took_s, planned_s)
    over_s = max(0.0, took_s - planned_s)
    expected, came = plan.get("tokens"), call.output_tokens
    if not expected or not came or planned_s <= 0.0:
        spent.lose(BlameReason.SLOW_INSTANCE, over_s)
        return 1.0
    token_s = planned_s / max(float(expected), 1.0)
    longer_s = min(over_s, max(0.0, came - float(expected)) * token_s)
    spent.lose(BlameReason.WRONG_LENGTH, longer_s)
    spent.lose(BlameReason.SLOW_INSTANCE, over_s - longer_s)
    return took_s / (came * token_s)


def _prefill(spent: Spent, plan: Mapping[str, Any], took_s: float, pace: float) -> None:
    """Account for the time to the first token. Engines do not tell their queue from the prefill: predictions do.

    What exceeds both is the instance's if its queue was to be empty, else as much of it as its decoding was slow.
    """
    prefill_s = _known(plan, "predicted_prefill_s", took_s)
    queue_s = _known(plan, "predicted_queue_s", 0.0)
    spent.planned_s += min(took_s, prefill_s)
    over_s = max(0.0, took_s - prefill_s)
    queued_s = min(over_s, queue_s)
    unexpected_s = over_s - queued_s
    slow_s = unexpected_s
    if queue_s > _IDLE_QUEUE_SHARE * prefill_s:
        slow_s = min(unexpected_s, prefill_s * max(pace - 1.0, 0.0))
    spent.lose(BlameReason.SLOW_INSTANCE, slow_s)
    spent.lose(BlameReason.QUEUE_WAIT, queued_s + unexpected_s - slow_s)
