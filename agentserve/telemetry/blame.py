"""Which step or wait made a run miss its SLO? Its critical path against plan, and what lost the most time on it.

The path goes back from the run's end over the steps that decided when it came: of parallel steps the one that ended
last. With planned_i the part of a step's time that its plan foresaw, and l_ij what it lost for reason j,

    e2e = Σ planned_i + Σ l_ij          so that          e2e - SLO = (Σ planned_i - SLO) + Σ l_ij

and the largest single term is to blame. The plan of a call is its placement's prediction (`losses.py`), that of a tool
and of a node's own code the duration expected when the step began, that of the time between steps what the forecast
left for it. When a step begins and more is expected of the run than was before, as it loops once more or takes the
longer branch, the planned time of the steps to come is moved to EXTRA_STEPS, up to what was added.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentserve.telemetry.losses import BlameReason, Spent, spent_on_call
from agentserve.telemetry.story import CallStory, RunStory, StepStory

__all__ = ["Blame", "BlameReason", "blame", "blame_of_plain", "leaves", "losses", "told_blame"]


@dataclass(frozen=True, slots=True)
class Blame:
    """What cost a run its SLO: the reason, where (None: in no step), and how many seconds it lost there."""

    reason: BlameReason
    step_id: str | None
    node: str | None
    lost_s: float

    def to_plain(self) -> dict[str, Any]:
        """As in the journal."""
        return {"reason": str(self.reason), "step_id": self.step_id, "node": self.node, "lost_s": self.lost_s}


def blame(story: RunStory) -> Blame | None:
    """What cost the run its SLO; None if it has none, kept it, or goes on. A failed run is to blame as a whole."""
    if story.slo_s is None or story.finished_s is None or story.attained is True:
        return None
    took_s = story.e2e_s if story.e2e_s is not None else story.finished_s - story.submitted_s
    if story.status == "failed":
        step = min(_ended(story, "failed"), key=lambda one: (one.finished_s or 0.0, one.step_id), default=None)
        return _at(BlameReason.FAILURE, step, took_s)
    if took_s <= story.slo_s:
        return _at(BlameReason.CANCELLED, None, took_s) if story.status == "cancelled" else None
    order = list(BlameReason)
    worst = min(
        losses(story), key=lambda loss: (-loss.lost_s, order.index(loss.reason), loss.step_id or ""), default=None
    )
    return worst or _at(BlameReason.INFEASIBLE, None, took_s - story.slo_s)


def told_blame(story: RunStory) -> Blame | None:
    """What the gateway said at the run's end; failing that, what its story says."""
    return (blame_of_plain(story.blame) if story.blame else None) or blame(story)


def blame_of_plain(plain: Mapping[str, Any]) -> Blame | None:
    """The inverse of `to_plain`; None if it is none of ours."""
    try:
        reason = BlameReason(plain["reason"])
        return Blame(reason, plain.get("step_id"), plain.get("node"), float(plain["lost_s"]))
    except (KeyError, TypeError, ValueError):
        return None


def losses(story: RunStory) -> list[Blame]:
    """All that was lost along the critical path of a run that has ended, in order of time; INFEASIBLE last."""
    end_s = story.last_s if story.finished_s is None else story.finished_s
    path = _critical_path(story, end_s)
    found: list[Blame] = []
    planned_s, unforeseen_s, before = 0.0, 0.0, None
    cursor_s, expected_s = story.submitted_s, None
    for step, until_s in path:
        more_s = _more_expected(before, step)
        foreseen_s = max(0.0, -more_s)
        gap_s = max(0.0, step.started_s - cursor_s)
        found += _client(gap_s - foreseen_s, step)
        planned_s += min(gap_s, foreseen_s)
        spent = _spent_on_step(step, max(step.started_s, cursor_s), until_s)
        unforeseen_s = max(0.0, unforeseen_s + more_s)
        extra_s = min(unforeseen_s, spent.planned_s)
        unforeseen_s -= extra_s
        spent.lose(BlameReason.EXTRA_STEPS, extra_s)
        planned_s += spent.planned_s - extra_s
        found += [_at(reason, step, lost_s) for reason, lost_s in spent.losses.items()]
        cursor_s, before, expected_s = max(cursor_s, until_s), step, step.downstream_s
    rest_s = max(0.0, end_s - cursor_s)
    planned_s += min(rest_s, expected_s or 0.0)
    found += _client(rest_s - (expected_s or 0.0), None)
    if story.slo_s is not None and planned_s > story.slo_s:
        found.append(_at(BlameReason.INFEASIBLE, None, planned_s - story.slo_s))
    return found


def _critical_path(story: RunStory, end_s: float) -> list[tuple[StepStory, float]]:
    """The steps that decided when the run ended, in order, each with the time until which it held the run up."""
    steps = leaves(story.steps)
    by_id = {step.step_id: step for step in steps}
    path: list[tuple[StepStory, float]] = []
    cursor_s, seen, choice = end_s, set[str](), steps
    while True:
        waiting = [step for step in choice if step.step_id not in seen and step.started_s <= cursor_s]
        if not waiting:
            return path[::-1]
        last = max(waiting, key=lambda step: (min(_end(step, end_s), cursor_s), -step.started_s, step.step_id))
        path.append((last, min(_end(last, end_s), cursor_s)))
        seen.add(last.step_id)
        cursor_s = last.started_s
        parents = [by_id[name] for name in last.parents if name in by_id]
        # Without known parents whatever began before it may be what it waited for.
        choice = parents or [step for step in steps if step.started_s < cursor_s]


def leaves(steps: Sequence[StepStory]) -> list[StepStory]:
    """The steps in which no other step runs: one of `outer` is left out beside those of `outer:inner`."""
    outer = {step.node[:at] for step in steps for at, sign in enumerate(step.node) if sign == ":"}
    return [step for step in steps if step.node not in outer]


def _end(step: StepStory | CallStory, otherwise_s: float) -> float:
    return otherwise_s if step.finished_s is None else min(step.finished_s, otherwise_s)


def _more_expected(before: StepStory | None, step: StepStory) -> float:
    """By how much the begin of a step lengthened (below 0: shortened) what was expected of the rest of the run."""
    if before is None or before.downstream_s is None or step.planned_s is None:
        return 0.0
    return step.planned_s + (step.planned_downstream_s or 0.0) - before.downstream_s


def _spent_on_step(step: StepStory, start_s: float, end_s: float) -> Spent:
    """Where a step's time went: its calls that held it up, one after the other, and what lies between."""
    spent, cursor_s, code_s = Spent(), end_s, 0.0
    calls = [call for call in step.calls if _end(call, end_s) > start_s]
    while calls and cursor_s > start_s:
        last = max(calls, key=lambda call: (min(_end(call, end_s), cursor_s), -call.arrived_s, call.request_id))
        ended_s, began_s = min(_end(last, end_s), cursor_s), max(last.arrived_s, start_s)
        code_s += cursor_s - ended_s
        whole_s = _end(last, end_s) - last.arrived_s
        if whole_s > 0.0:
            spent.add(spent_on_call(last, end_s), max(0.0, ended_s - began_s) / whole_s)
        cursor_s = min(cursor_s, began_s)
        calls = [call for call in calls if call.arrived_s < cursor_s]
    code_s += max(0.0, cursor_s - start_s)
    expected_s = max(0.0, (step.planned_s or 0.0) - spent.planned_s)
    spent.planned_s += min(code_s, expected_s)
    spent.lose(BlameReason.CLIENT if step.calls else BlameReason.TOOL, code_s - expected_s)
    return spent


def _client(lost_s: float, step: StepStory | None) -> list[Blame]:
    return [_at(BlameReason.CLIENT, step, lost_s)] if lost_s > 0.0 else []


def _at(reason: BlameReason, step: StepStory | None, lost_s: float) -> Blame:
    return Blame(reason, None, None, lost_s) if step is None else Blame(reason, step.step_id, step.node, lost_s)


def _ended(story: RunStory, outcome: str) -> Iterable[StepStory]:
    return (step for step in story.steps if step.outcome == outcome)
