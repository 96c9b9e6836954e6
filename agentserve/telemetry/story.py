"""What is the story of a run, told from its journal events? Steps, calls and the phases of each call.

Spans, the terminal waterfall and the report are all drawn from this one reading. It never fails on a journal with
gaps (a bounded one loses its oldest events): what is not known is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agentserve.journal import Kind, RunEvent


class Phase(StrEnum):
    """What a call spends its time on. PREFILL includes the wait in the engine's own queue."""

    QUEUE = "queue"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"
    MIGRATION = "migration"


@dataclass(slots=True)
class PhaseSpan:
    """One stretch of a call; `end_s` None: it still lasts."""

    phase: Phase
    start_s: float
    end_s: float | None = None
    instance: str | None = None
    attempt: int = 0


@dataclass(slots=True)
class Migration:
    """One move of a running call, from the decision until the target's first token (None: not yet)."""

    source: str | None
    target: str | None
    start_s: float
    end_s: float | None = None
    cause: str | None = None
    by: str | None = None
    """`replay` or `kv`."""
    replayed_tokens: int | None = None


@dataclass(slots=True)
class CallStory:
    """One LLM call over all its attempts."""

    request_id: str
    step_id: str | None
    arrived_s: float
    node: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    stream: bool | None = None
    traceparent: str | None = None
    finished_s: float | None = None
    outcome: str | None = None
    error: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    attempts: int = 0
    split: bool = False
    phases: list[PhaseSpan] = field(default_factory=list)
    decisions: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    migrations: list[Migration] = field(default_factory=list)
    failures: list[tuple[float, str | None, str]] = field(default_factory=list)
    """(when, instance, error) of each failed attempt."""
    refusals: list[tuple[float, str]] = field(default_factory=list)
    """(when, reason) of each migration that could not be carried out."""
    first_tokens: list[tuple[float, str | None]] = field(default_factory=list)

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """The last dispatch, as plain data; None before there is one."""
        return next((d for _, d in reversed(self.decisions) if d.get("type") == "dispatch"), None)

    @property
    def explanation(self) -> Mapping[str, Any]:
        """Why the first dispatch chose as it did; empty if it is not known."""
        first = next((d for _, d in self.decisions if d.get("type") == "dispatch"), None)
        return (first or {}).get("reason") or {}


@dataclass(slots=True)
class StepStory:
    """One execution of a node."""

    step_id: str
    node: str
    kind: str
    started_s: float
    parents: tuple[str, ...] = ()
    finished_s: float | None = None
    outcome: str | None = None
    error: str | None = None
    target_deadline_s: float | None = None
    latest_deadline_s: float | None = None
    slack_s: float | None = None
    predicted_s: float | None = None
    downstream_s: float | None = None
    planned_s: float | None = None
    """How long the whole step was expected to take when it began; the fields above are as last derived."""
    planned_downstream_s: float | None = None
    """What was expected then from its end to the run's end."""
    slack_before_s: float | None = None
    """The run's slack then."""
    calls: list[CallStory] = field(default_factory=list)

    def slack_after_s(self, deadline_s: float | None) -> float | None:
        """The run's slack when the step ended: what was left, less what was still expected behind it."""
        if deadline_s is None or self.finished_s is None or self.downstream_s is None:
            return None
        return deadline_s - self.finished_s - self.downstream_s


@dataclass(slots=True)
class RunStory:
    """One run with its steps in order of their start."""

    run_id: str
    submitted_s: float
    last_s: float
    workflow: str | None = None
    slo_s: float | None = None
    deadline_s: float | None = None
    traceparent: str | None = None
    status: str = "running"
    finished_s: float | None = None
    e2e_s: float | None = None
    attained: bool | None = None
    mode: str | None = None
    """In which the gateway was all the while; None if that changed or is not known."""
    error: str | None = None
    blame: Mapping[str, Any] | None = None
    """Why the SLO was missed, as the gateway told it at the run's end; `blame.py` says it of any story."""
    steps: list[StepStory] = field(default_factory=list)


def event_from_plain(run_id: str, plain: Mapping[str, Any]) -> RunEvent:
    """A journal event as the gateway's REST answers give it; KeyError or ValueError if it is none."""
    return RunEvent(
        run_id=str(plain.get("run_id") or run_id),
        kind=Kind(plain["kind"]),
        at_s=float(plain["at_s"]),
        step_id=plain.get("step_id"),
        request_id=plain.get("request_id"),
        data=plain.get("data") or {},
    )


def decision_of(event: RunEvent) -> Mapping[str, Any]:
    """The decision that a CALL_DECIDED event carries, as plain data with its `type`."""
    inner = event.data.get("decision")
    return inner if isinstance(inner, Mapping) else event.data


def tell_call(events: Sequence[RunEvent]) -> CallStory | None:
    """The story of one call from its own events in order; None for no events."""
    if not events:
        return None
    first = events[0]
    story = CallStory(first.request_id or "", first.step_id, first.at_s)
    for event in events:
        reader = _READERS.get(event.kind)
        if reader is not None:
            reader(story, event)
    return story


def tell_step(events: Iterable[RunEvent], step_id: str) -> StepStory:
    """The story of one step, without its calls, from the step events among `events`."""
    story: StepStory | None = None
    for event in events:
        if event.step_id != step_id:
            continue
        if story is None:
            node = str(event.data.get("node") or step_id)
            story = StepStory(step_id, node, "llm" if event.request_id else "tool", event.at_s)
        _read_step(story, event)
    if story is None:
        raise LookupError(f"no event of step {step_id!r}")
    return story


def tell_run(events: Sequence[RunEvent]) -> RunStory | None:
    """The story of a run from its journal; None for no events. Steps and calls are in order of start, then id."""
    if not events:
        return None
    teller = RunTeller(events[0].run_id, events[0].at_s)
    for event in events:
        teller.take(event)
    return teller.story


class RunTeller:
    """Tells the story of a run while it happens: `story` holds what was taken so far, in order of start, then id.

    At most `max_parts` steps and calls are told, and `max_call_events` of each call before its end; later ones are not.
    """

    def __init__(
        self, run_id: str, first_s: float, *, max_parts: int | None = None, max_call_events: int | None = None
    ) -> None:
        self._story = RunStory(run_id, first_s, first_s)
        self._steps: dict[str, StepStory] = {}
        self._calls: dict[str, CallStory] = {}
        self._taken: dict[str, int] = {}
        self._max_parts, self._max_call_events = max_parts, max_call_events

    def take(self, event: RunEvent) -> None:
        """Add one event."""
        self._story.last_s = max(self._story.last_s, event.at_s)
        read_run(self._story, event)
        step = None if event.step_id is None else self._step(event, event.step_id)
        if step is not None:
            _read_step(step, event)
        if event.request_id is not None:
            self._read_call(event, event.request_id, step)

    @property
    def story(self) -> RunStory:
        """The story as far as it is known."""
        self._story.steps.sort(key=lambda step: (step.started_s, step.step_id))
        for step in self._story.steps:
            step.calls.sort(key=lambda call: (call.arrived_s, call.request_id))
        return self._story

    def _step(self, event: RunEvent, step_id: str) -> StepStory | None:
        step = self._steps.get(step_id)
        if step is None and self._has_room:
            node = str(event.data.get("node") or step_id)
            step = self._steps[step_id] = StepStory(step_id, node, "llm" if event.request_id else "tool", event.at_s)
            self._story.steps.append(step)
        return step

    def _read_call(self, event: RunEvent, request_id: str, step: StepStory | None) -> None:
        call = self._calls.get(request_id)
        if call is None:
            if not self._has_room:
                return
            call = self._calls[request_id] = CallStory(request_id, event.step_id, event.at_s)
            if step is not None:
                step.calls.append(call)
        taken = self._taken[request_id] = self._taken.get(request_id, 0) + 1
        is_known = self._max_call_events is None or taken <= self._max_call_events
        reader = _READERS.get(event.kind)
        if reader is not None and (is_known or event.kind is Kind.CALL_FINISHED):
            reader(call, event)

    @property
    def _has_room(self) -> bool:
        return self._max_parts is None or len(self._steps) + len(self._calls) < self._max_parts


def read_run(story: RunStory, event: RunEvent) -> None:
    """Take a run's own events into its story; others change nothing."""
    data = event.data
    if event.kind is Kind.RUN_SUBMITTED:
        story.submitted_s = event.at_s
        story.workflow, story.mode = data.get("workflow"), data.get("mode")
        story.slo_s, story.deadline_s = data.get("slo_s"), data.get("deadline_s")
        story.traceparent = data.get("traceparent")
    elif event.kind is Kind.MODE_CHANGED:
        story.mode = None
    elif event.kind is Kind.RUN_FINISHED:
        story.finished_s = event.at_s
        story.status = str(data.get("status") or "succeeded")
        story.e2e_s, story.attained, story.error = data.get("e2e_s"), data.get("attained"), data.get("error")
        story.blame = data.get("blame")
        if story.e2e_s is not None and story.workflow is None:  # its submission was not seen
            story.submitted_s = min(story.submitted_s, event.at_s - story.e2e_s)


def _read_step(story: StepStory, event: RunEvent) -> None:
    data = event.data
    if event.kind is Kind.STEP_STARTED:
        story.started_s = event.at_s
        story.node = str(data.get("node") or story.node)
        story.kind = str(data.get("kind") or story.kind)
        story.parents = tuple(data.get("parents") or ())
    elif event.kind is Kind.STEP_DEADLINES:
        for name in ("target_deadline_s", "latest_deadline_s", "slack_s", "predicted_s", "downstream_s"):
            setattr(story, name, data.get(name))
        if story.planned_s is None and story.predicted_s is not None:
            story.planned_s = max(0.0, event.at_s - story.started_s) + story.predicted_s
            story.planned_downstream_s, story.slack_before_s = story.downstream_s, story.slack_s
    elif event.kind is Kind.STEP_FINISHED:
        story.finished_s, story.outcome, story.error = event.at_s, data.get("outcome"), data.get("error")


def _close(story: CallStory, at_s: float) -> None:
    if story.phases and story.phases[-1].end_s is None:
        story.phases[-1].end_s = at_s


def _open(story: CallStory, phase: Phase, at_s: float, instance: str | None) -> None:
    _close(story, at_s)
    story.phases.append(PhaseSpan(phase, at_s, None, instance, story.attempts))


def _phase(story: CallStory) -> Phase | None:
    open_phase = story.phases and story.phases[-1].end_s is None
    return story.phases[-1].phase if open_phase else None


def _arrived(story: CallStory, event: RunEvent) -> None:
    data = event.data
    if story.phases:
        return  # the same call again after a lost connection or a gateway restart
    story.arrived_s, story.node, story.model = event.at_s, data.get("node"), data.get("model")
    story.prompt_tokens, story.stream = data.get("prompt_tokens"), data.get("stream")
    story.traceparent = data.get("traceparent")
    _open(story, Phase.QUEUE, event.at_s, None)


def _decided(story: CallStory, event: RunEvent) -> None:
    decision = decision_of(event)
    story.decisions.append((event.at_s, decision))
    kind = decision.get("type")
    if kind == "dispatch":
        story.attempts = int(decision.get("attempt") or story.attempts + 1)
        prefill, decode = decision.get("prefill_instance"), decision.get("decode_instance")
        story.split = story.split or prefill != decode
        _open(story, Phase.PREFILL, event.at_s, prefill)
    elif kind == "migrate":
        story.attempts = int(decision.get("attempt") or story.attempts + 1)
        _open(story, Phase.MIGRATION, event.at_s, decision.get("target"))
        cause, by = decision.get("cause"), decision.get("by")
        move = Migration(decision.get("source"), decision.get("target"), event.at_s, cause=cause, by=by)
        story.migrations.append(move)


def _prefilled(story: CallStory, event: RunEvent) -> None:
    placement = story.placement or {}
    _open(story, Phase.TRANSFER, event.at_s, placement.get("decode_instance"))


def _first_token(story: CallStory, event: RunEvent) -> None:
    instance = event.data.get("instance")
    story.first_tokens.append((event.at_s, instance))
    if event.data.get("cached_tokens") is not None:
        story.cached_tokens = event.data["cached_tokens"]
    if _phase(story) is Phase.DECODE and story.phases[-1].instance == instance:
        return
    _open(story, Phase.DECODE, event.at_s, instance)
    for move in story.migrations:
        if move.end_s is None:
            move.end_s = event.at_s


def _migrated(story: CallStory, event: RunEvent) -> None:
    data = event.data
    target = data.get("target")
    move = next((m for m in reversed(story.migrations) if m.target == target and m.replayed_tokens is None), None)
    if move is None:
        move = _undecided_move(story, event.at_s, target)
        story.migrations.append(move)
    move.source = data.get("source") or move.source
    move.cause = data.get("cause") or move.cause
    move.by = data.get("by") or move.by
    move.replayed_tokens = data.get("replayed_tokens")


def _undecided_move(story: CallStory, at_s: float, target: str | None) -> Migration:
    """A move with no Migrate decision before it: a new dispatch after a failed attempt brought it about."""
    if _phase(story) is Phase.DECODE and story.phases[-1].instance != target:
        _open(story, Phase.MIGRATION, at_s, target)
    again = [p for p in story.phases if p.phase is Phase.PREFILL and p.attempt == story.attempts and p.attempt > 1]
    resumed = _phase(story) is Phase.DECODE
    return Migration(None, target, again[-1].start_s if again else at_s, story.phases[-1].start_s if resumed else None)


def _migration_refused(story: CallStory, event: RunEvent) -> None:
    story.refusals.append((event.at_s, str(event.data.get("reason"))))
    if _phase(story) is Phase.MIGRATION:  # the call went on at the source all the while
        story.phases.pop()
        if story.phases:
            story.phases[-1].end_s = None
    if story.migrations and story.migrations[-1].end_s is None and story.migrations[-1].replayed_tokens is None:
        story.migrations.pop()


def _attempt_failed(story: CallStory, event: RunEvent) -> None:
    story.failures.append((event.at_s, event.data.get("instance"), str(event.data.get("error"))))
    _open(story, Phase.QUEUE, event.at_s, None)


def _finished(story: CallStory, event: RunEvent) -> None:
    data = event.data
    _close(story, event.at_s)
    story.finished_s = event.at_s
    story.outcome, story.error = str(data.get("outcome") or "ok"), data.get("error")
    for name in ("prompt_tokens", "output_tokens", "cached_tokens", "ttft_s", "tpot_s", "e2e_s"):
        if data.get(name) is not None:
            setattr(story, name, data[name])


_READERS = {
    Kind.CALL_ARRIVED: _arrived,
    Kind.CALL_DECIDED: _decided,
    Kind.CALL_PREFILLED: _prefilled,
    Kind.CALL_FIRST_TOKEN: _first_token,
    Kind.CALL_MIGRATED: _migrated,
    Kind.CALL_MIGRATION_REFUSED: _migration_refused,
    Kind.CALL_ATTEMPT_FAILED: _attempt_failed,
    Kind.CALL_FINISHED: _finished,
}
