"""When would a run have ended if our policy had placed its calls? An estimate from what was foreseen as each one came.

In mode `observe` the scheduler tells of every first dispatch where our policy would have sent the call, and predicts
from the same state, by the same model, the time before the first token and the time of each token: there, and where the
call really went. Once the call has ended its true length n is known, so

    takes = wait at the gateway before its dispatch + ready + n · token

The run is then played again with these durations in place of what its calls took. Everything else stays: a step begins
after its parents (without known ones: after whatever had ended before it) by as much as it did, tools and the client's
own time take what they took. With the durations that calls really took, the run ends when it did.

It is played twice: with the predictions for our placements, and with those for the placements really taken. The second
is known to be wrong by as much as it differs from what happened, and that is the measure of the first. What neither can
know: how queues, batches and prefix caches would look if earlier calls, too, had gone where our policy would have sent
them; moves and splits. A run of which our policy would have kept a call at the gateway counts as not in time. A call
that had to be dispatched again keeps the time it took.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentserve.telemetry.blame import leaves
from agentserve.telemetry.story import CallStory, RunStory, StepStory

Takes = Callable[[CallStory], float]
"""How long a call that has ended takes, from its arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A run as estimated: by our placements, and by those really taken. `attained` None: it has no SLO."""

    e2e_s: float
    attained: bool | None
    taken_e2e_s: float
    taken_attained: bool | None
    calls: int
    """That were foreseen."""
    elsewhere: int
    """Of these, to be sent elsewhere than they were."""
    kept: int
    """Of these, to be kept at the gateway for a while."""

    def to_plain(self) -> dict[str, Any]:
        """As in the journal."""
        return asdict(self)


def foreseen(story: RunStory) -> Foreseen | None:
    """The estimate of a run that has ended; None if none of its calls was foreseen."""
    if story.finished_s is None:
        return None
    shadows = [shadow for step in story.steps for call in step.calls if (shadow := _shadow(call)) is not None]
    if not shadows:
        return None
    e2e_s = ended_s(story, lambda call: _takes(call, "")) - story.submitted_s
    taken_e2e_s = ended_s(story, lambda call: _takes(call, "taken_")) - story.submitted_s
    kept = sum(shadow["decode_instance"] is None for _, shadow in shadows)
    return Foreseen(
        e2e_s=e2e_s,
        attained=_attained(story, e2e_s) and not kept if story.slo_s is not None else None,
        taken_e2e_s=taken_e2e_s,
        taken_attained=_attained(story, taken_e2e_s) if story.slo_s is not None else None,
        calls=len(shadows),
        elsewhere=sum(_is_elsewhere(decision) for decision, _ in shadows),
        kept=kept,
    )


def took_s(call: CallStory) -> float:
    """How long a call really took; one that has not ended takes no time."""
    return 0.0 if call.finished_s is None else max(call.finished_s - call.arrived_s, 0.0)


def ended_s(story: RunStory, takes: Takes) -> float:
    """When the run would have ended had its calls taken so long, all else equal."""
    end_s = story.last_s if story.finished_s is None else story.finished_s
    steps = sorted(leaves(story.steps), key=lambda step: (step.started_s, step.step_id))
    ends: dict[str, tuple[float, float]] = {}
    """By step, when it ended and when it would have."""
    for step in steps:
        before = [ends[name] for name in step.parents if name in ends]
        before = before or [both for both in ends.values() if both[0] <= step.started_s]
        began_s = _after(before, step.started_s, step.started_s)
        ends[step.step_id] = _end_of(step, began_s, end_s, takes)
    return _after(ends.values(), end_s, end_s)


def _end_of(step: StepStory, began_s: float, run_end_s: float, takes: Takes) -> tuple[float, float]:
    """When a step ended, and when it would have, had it begun at `began_s`."""
    end_s = run_end_s if step.finished_s is None else step.finished_s
    moved_s = began_s - step.started_s
    calls: list[tuple[float, float]] = []
    for call in sorted(_ended(step.calls), key=lambda one: (one.arrived_s, one.request_id)):
        before = [both for both in calls if both[0] <= call.arrived_s]
        arrived_s = _after(before, call.arrived_s, call.arrived_s + moved_s)
        calls.append((call.arrived_s + took_s(call), arrived_s + takes(call)))
    return end_s, _after(calls, end_s, end_s + moved_s)


def _after(before: Iterable[tuple[float, float]], at_s: float, otherwise_s: float) -> float:
    """When what happened at `at_s` would have: as long after the last of what preceded it; else at `otherwise_s`."""
    pairs = list(before)
    if not pairs:
        return otherwise_s
    return max(would_s for _, would_s in pairs) + max(at_s - max(was_s for was_s, _ in pairs), 0.0)


def _ended(calls: Sequence[CallStory]) -> list[CallStory]:
    return [call for call in calls if call.finished_s is not None]


def _takes(call: CallStory, whose: str) -> float:
    """The prediction with the true length; of a call that our policy would have kept, that for where it went."""
    found = _shadow(call)
    if found is None or call.output_tokens is None:
        return took_s(call)
    decision, shadow = found
    whose = "taken_" if shadow["decode_instance"] is None else whose
    at_s = next(at_s for at_s, known in call.decisions if known is decision)
    predicted_s: float = shadow[f"{whose}ready_s"] + call.output_tokens * shadow[f"{whose}token_s"]
    return max(at_s - call.arrived_s, 0.0) + predicted_s


def _shadow(call: CallStory) -> tuple[Any, Any] | None:
    """The one dispatch of a call that went well, with its shadow."""
    sent = [decision for _, decision in call.decisions if decision.get("type") == "dispatch"]
    if len(sent) != 1 or call.outcome != "ok" or not sent[0].get("shadow"):
        return None
    return sent[0], sent[0]["shadow"]


def _is_elsewhere(decision: Any) -> bool:
    shadow = decision["shadow"]
    here = (decision.get("prefill_instance"), decision.get("decode_instance"))
    return shadow["decode_instance"] is not None and (shadow["prefill_instance"], shadow["decode_instance"]) != here


def _attained(story: RunStory, e2e_s: float) -> bool:
    return story.status == "succeeded" and story.slo_s is not None and e2e_s <= story.slo_s
