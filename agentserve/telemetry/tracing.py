"""How does a run become one OpenTelemetry trace? Its journal events become spans, with the events' own times.

Ids are derived, so that spans of one run join although several gateways wrote them: the trace id from the run id (or
taken from the client's `traceparent`), span ids from run, step and call ids. A span is made when its thing has ended;
until then only its events are kept, bounded in number. No prompt text is ever in a span.

Spans are handed to the processor as what a tracer would have made of them. A tracer checks and copies every attribute
under a lock and asks a sampler; here all of that is settled before, and it took two thirds of the time.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry import names
from agentserve.telemetry.attributes import (
    SpanEvent,
    call_attributes,
    call_events,
    migration_attributes,
    phase_attributes,
    run_attributes,
    step_attributes,
)
from agentserve.telemetry.sampling import (
    derived_id,
    is_sent_at_once,
    is_sent_in_the_end,
    parse_traceparent,
    trace_id_of,
)
from agentserve.telemetry.story import CallStory, Migration, Phase, RunStory, StepStory, read_run, tell_call, tell_step

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status(StatusCode.UNSET)
_MAX_EVENTS_PER_CALL: Final = 400
_MAX_OPEN_PER_RUN: Final = 2000
_MAX_SPAN_EVENTS: Final = 128
_PHASE_NAMES: Final = {
    Phase.QUEUE: "queue",
    Phase.PREFILL: "prefill",
    Phase.TRANSFER: "kv_transfer",
    Phase.DECODE: "decode",
    Phase.MIGRATION: "migration",
}

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _OpenRun:
    """What is known of a run whose end was not seen: events of what is open in it."""

    story: RunStory
    parent: SpanContext | None
    trace_id: int
    held: list[RunEvent] | None = None
    """All events of a run whose end decides whether it is sent; None once that is decided."""
    sampled: bool = True
    """Sent however it ends: what engines are told."""
    sent: bool = False
    """The run's own span has been sent; only calls that outlive it are waited for."""
    steps: dict[str, list[RunEvent]] = field(default_factory=dict)
    calls: dict[str, list[RunEvent]] = field(default_factory=dict)

    def keep(self, event: RunEvent) -> None:
        """Remember an event of an open call or step, up to a limit."""
        if event.request_id is not None:
            known = self.calls.get(event.request_id)
            if known is None and event.kind is not Kind.CALL_FINISHED and len(self.calls) < _MAX_OPEN_PER_RUN:
                known = self.calls[event.request_id] = []
            if known is not None and (len(known) < _MAX_EVENTS_PER_CALL or event.kind is Kind.CALL_FINISHED):
                known.append(event)
        elif event.step_id is not None:
            begins = event.kind is Kind.STEP_STARTED or not self.sent
            if event.step_id not in self.steps and begins and len(self.steps) < _MAX_OPEN_PER_RUN:
                self.steps[event.step_id] = []
            if event.step_id in self.steps:
                self.steps[event.step_id] = _latest(self.steps[event.step_id], event)


@dataclass(slots=True)
class _Span:
    name: str
    span_id: int
    parent: int | SpanContext | None
    kind: SpanKind = SpanKind.INTERNAL
    events: Sequence[SpanEvent] = ()
    links: Sequence[Link] = ()


class SpanSink:
    """Makes spans of journal events: run → step → chat → queue, prefill, KV transfer, decode, migrations.

    Late and failed runs are sent, and `share` (0 to 1) of the others; see `sampling.py`. A run that is sent in any case
    is sent bit by bit as its parts end, another one when it has ended. Without `out` only ids for `traceparent` are
    derived. At most `max_open_runs` are remembered, none longer than `max_age_s` after its last event, and at most
    `max_held_events` of runs that are not decided on; what falls out is sent as far as it is known. A run that fell
    out before its end is marked incomplete.
    """

    def __init__(
        self,
        out: SpanProcessor | None = None,
        *,
        service: str = "agentserve",
        max_open_runs: int = 4096,
        max_age_s: float = 3600.0,
        share: float = 1.0,
        max_held_events: int = 50_000,
        engine: str = "vllm",
    ) -> None:
        self._out = out
        self._resource = Resource.create({"service.name": service})
        self._scope = InstrumentationScope(names.SCOPE)
        self._runs: OrderedDict[str, _OpenRun] = OrderedDict()
        self._ended: OrderedDict[str, int | None] = OrderedDict()
        """The traces of runs that have ended; None for one that is not sent."""
        self._run_of_call: dict[str, str] = {}
        self._max_open_runs, self._max_age_s = max_open_runs, max_age_s
        self._share, self._max_held_events = share, max_held_events
        self._held_events = 0
        self._engine = engine
        self._failures_logged = 0

    def record(self, event: RunEvent) -> None:
        """Take one event; spans of what it ends are handed to the exporter. Never raises."""
        self._take(event, export=True)

    def restore(self, events: Iterable[RunEvent]) -> None:
        """Take the journal of runs that another gateway began, without sending again what it has sent."""
        for event in events:
            self._take(event, export=False)

    def traceparent(self, request_id: str) -> str | None:
        """The W3C header of a live call's chat span, for the engine; None for a call that is not known."""
        run_id = self._run_of_call.get(request_id)
        if run_id is None or run_id not in self._runs:
            return None
        run = self._runs[run_id]
        return f"00-{run.trace_id:032x}-{_call_span_id(run_id, request_id):016x}-{int(run.sampled):02x}"

    def _take(self, event: RunEvent, *, export: bool) -> None:
        try:
            self._read(event, export)
        except Exception:  # a malformed event must not harm the call that it tells of
            if self._failures_logged < 10:
                self._failures_logged += 1
                _logger.exception("no span for event %s of run %s", event.kind, event.run_id)

    def _read(self, event: RunEvent, export: bool) -> None:
        if event.run_id in self._ended and self._ended[event.run_id] is None:
            return
        run = self._open_run(event)
        run.story.last_s = max(run.story.last_s, event.at_s)
        if event.kind is Kind.CALL_ARRIVED and event.request_id is not None:
            self._run_of_call[event.request_id] = event.run_id
        if run.held is None:
            self._play(run, event, export)
        else:
            self._hold(run, run.held, event)

    def _hold(self, run: _OpenRun, held: list[RunEvent], event: RunEvent) -> None:
        """Keep an event until the run's end decides whether its spans are sent."""
        held.append(event)
        self._held_events += 1
        if event.kind is Kind.CALL_FINISHED and event.request_id is not None:
            self._run_of_call.pop(event.request_id, None)
        if event.kind is Kind.RUN_FINISHED:
            read_run(run.story, event)
            if is_sent_in_the_end(run.story):
                self._release(run)
            else:
                self._drop(run, held)
        while self._held_events > self._max_held_events:
            self._release(next(one for one in self._runs.values() if one.held is not None))

    def _release(self, run: _OpenRun) -> None:
        """Make the spans of what was held back; from here on they are made as things end."""
        held, run.held = run.held or [], None
        self._held_events -= len(held)
        for event in held:
            self._play(run, event, True)

    def _drop(self, run: _OpenRun, held: list[RunEvent]) -> None:
        self._held_events -= len(held)
        for request_id in {event.request_id for event in held} - {None}:
            self._run_of_call.pop(str(request_id), None)
        del self._runs[run.story.run_id]
        self._remember_end(run.story.run_id, None)

    def _play(self, run: _OpenRun, event: RunEvent, export: bool) -> None:
        if event.kind is Kind.CALL_ARRIVED and event.request_id is not None:
            run.calls.setdefault(event.request_id, [])
        if self._out is not None:
            read_run(run.story, event)
            run.keep(event)
        if event.kind is Kind.CALL_FINISHED and event.request_id is not None:
            self._end_call(run, event.request_id, export)
        elif event.kind is Kind.STEP_FINISHED and event.step_id is not None:
            self._end_step(run, event.step_id, export)
        elif event.kind is Kind.RUN_FINISHED and not run.sent:
            self._end_run(run, export, incomplete=False)
        if run.sent and not run.calls:
            self._retire(run, export)

    def _open_run(self, event: RunEvent) -> _OpenRun:
        run = self._runs.get(event.run_id)
        if run is None:
            # After a restart the submission was not seen here; the run's calls carry the same client's trace.
            seen = event.kind in (Kind.RUN_SUBMITTED, Kind.CALL_ARRIVED)
            parent = parse_traceparent(event.data.get("traceparent")) if seen else None
            trace_id = parent.trace_id if parent is not None else trace_id_of(event.run_id)
            ended = self._ended.get(event.run_id)
            run = _OpenRun(RunStory(event.run_id, event.at_s, event.at_s), parent, ended or trace_id)
            run.sent, run.sampled = ended is not None, is_sent_at_once(parent, trace_id, self._share)
            if self._out is not None and not run.sampled and not run.sent:
                run.held = []
            self._runs[event.run_id] = run
            self._evict(event.at_s)
        self._runs.move_to_end(event.run_id)
        return run

    def _evict(self, now_s: float) -> None:
        while self._runs:
            oldest = next(iter(self._runs.values()))
            if len(self._runs) <= self._max_open_runs and oldest.story.last_s > now_s - self._max_age_s:
                return
            if oldest.held is not None:
                self._release(oldest)
            for request_id in list(oldest.calls):
                self._end_call(oldest, request_id, True)
            if not oldest.sent:
                self._end_run(oldest, True, incomplete=True)
            self._retire(oldest, True)

    def _end_call(self, run: _OpenRun, request_id: str, export: bool) -> None:
        self._run_of_call.pop(request_id, None)
        call = tell_call(run.calls.pop(request_id, ()))
        if export and call is not None and self._out is not None:
            self._send_call(run, call)

    def _end_step(self, run: _OpenRun, step_id: str, export: bool) -> None:
        events = run.steps.pop(step_id, None)
        if export and events and self._out is not None:
            self._send_step(run, tell_step(events, step_id))

    def _end_run(self, run: _OpenRun, export: bool, *, incomplete: bool) -> None:
        run.sent = True
        if not export or self._out is None:
            return
        story = run.story
        span = _Span(f"{names.INVOKE_WORKFLOW} {story.workflow or 'unknown'}", _run_span_id(story.run_id), run.parent)
        attributes = run_attributes(story) | ({names.INCOMPLETE: True} if incomplete else {})
        end_s = story.last_s if story.finished_s is None else story.finished_s
        self._send(span, run.trace_id, story.submitted_s, end_s, attributes, _failure(story.status, story.error))

    def _retire(self, run: _OpenRun, export: bool) -> None:
        for step_id in list(run.steps):  # a run that ends takes its running steps with it, without an event of theirs
            self._end_step(run, step_id, export)
        run_id = run.story.run_id
        self._runs.pop(run_id, None)
        self._remember_end(run_id, run.trace_id)

    def _remember_end(self, run_id: str, trace_id: int | None) -> None:
        self._ended[run_id] = trace_id
        while len(self._ended) > self._max_open_runs:
            self._ended.popitem(last=False)

    def _send_step(self, run: _OpenRun, step: StepStory) -> None:
        run_id = run.story.run_id
        operation = names.EXECUTE_TOOL if step.kind == "tool" else names.INVOKE_AGENT
        span = _Span(f"{operation} {step.node}", _step_span_id(run_id, step.step_id), _run_span_id(run_id))
        failed = _failure(step.outcome, step.error)
        end_s = run.story.last_s if step.finished_s is None else step.finished_s
        self._send(span, run.trace_id, step.started_s, end_s, step_attributes(run.story, step), failed)

    def _send_call(self, run: _OpenRun, call: CallStory) -> None:
        run_id = run.story.run_id
        parent = _step_span_id(run_id, call.step_id) if call.step_id is not None else _run_span_id(run_id)
        chat = _Span(f"{names.CHAT} {call.model or 'unknown'}", _call_span_id(run_id, call.request_id), parent)
        chat.kind = SpanKind.CLIENT
        chat.events = call_events(call)
        client = parse_traceparent(call.traceparent)
        chat.links = [Link(client)] if client is not None and client != run.parent else []
        end_s = run.story.last_s if call.finished_s is None else call.finished_s
        failed = _failure(call.outcome, call.error)
        attributes = call_attributes(run.story, call) | {names.PROVIDER: self._engine}
        self._send(chat, run.trace_id, call.arrived_s, end_s, attributes, failed)
        self._send_phases(run, call, chat.span_id, end_s)

    def _send_phases(self, run: _OpenRun, call: CallStory, chat_id: int, end_s: float) -> None:
        for index, phase in enumerate(call.phases):
            if phase.phase is Phase.MIGRATION:
                continue
            child = _Span(_PHASE_NAMES[phase.phase], _phase_span_id(run, call, index), chat_id)
            if phase.phase is Phase.DECODE and (leg := _leg_before(call, phase.start_s)) is not None:
                child.links = [_link(run, call, leg, names.CONTINUES)]
            until_s = end_s if phase.end_s is None else phase.end_s
            self._send(child, run.trace_id, phase.start_s, until_s, phase_attributes(call, phase), None)
        for index, move in enumerate(call.migrations):
            parts = run.story.run_id, call.request_id, f"migration{index}"
            child = _Span("migration", derived_id(8, *parts), chat_id, links=_legs_of(run, call, move))
            until_s = end_s if move.end_s is None else move.end_s
            self._send(child, run.trace_id, move.start_s, until_s, migration_attributes(move), None)

    def _send(
        self,
        span: _Span,
        trace_id: int,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, AttributeValue | None],
        error: str | None,
    ) -> None:
        if self._out is None:
            return
        above = span.parent
        if isinstance(above, int):
            above = SpanContext(trace_id, above, is_remote=True, trace_flags=_SAMPLED)
        made = ReadableSpan(
            span.name,
            context=SpanContext(trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
            parent=above,
            resource=self._resource,
            attributes=_known(attributes),
            events=[Event(name, _known(more), _ns(at_s)) for name, at_s, more in span.events[-_MAX_SPAN_EVENTS:]],
            links=span.links,
            kind=span.kind,
            instrumentation_scope=self._scope,
            status=_UNSET if error is None else Status(StatusCode.ERROR, error[:200]),
            start_time=_ns(start_s),
            end_time=_ns(max(start_s, end_s)),
        )
        self._out.on_end(made)


def _known(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


def _latest(events: list[RunEvent], event: RunEvent) -> list[RunEvent]:
    """The events with this one, keeping only the first and the newest of those that come again and again."""
    if event.kind is Kind.STEP_DEADLINES:
        first = next((known for known in events if known.kind is Kind.STEP_DEADLINES), None)
        events = [known for known in events if known is first or known.kind is not Kind.STEP_DEADLINES]
    return [*events, event] if len(events) < _MAX_EVENTS_PER_CALL else events


def _leg_before(call: CallStory, at_s: float) -> int | None:
    """The index of the last decode phase that began before."""
    legs = [i for i, phase in enumerate(call.phases) if phase.phase is Phase.DECODE and phase.start_s < at_s]
    return legs[-1] if legs else None


def _legs_of(run: _OpenRun, call: CallStory, move: Migration) -> list[Link]:
    """Links from a move to the leg that it left and the leg that it led to."""
    left = _leg_before(call, move.start_s)
    legs = [] if left is None else [_link(run, call, left, names.SOURCE_LEG)]
    for index, phase in enumerate(call.phases):
        if phase.phase is Phase.DECODE and move.end_s is not None and phase.start_s == move.end_s:
            legs.append(_link(run, call, index, names.TARGET_LEG))
    return legs


def _link(run: _OpenRun, call: CallStory, phase: int, role: str) -> Link:
    leg = SpanContext(run.trace_id, _phase_span_id(run, call, phase), is_remote=False, trace_flags=_SAMPLED)
    return Link(leg, {names.LINK: role})


def _phase_span_id(run: _OpenRun, call: CallStory, index: int) -> int:
    return derived_id(8, run.story.run_id, call.request_id, f"phase{index}")


def _failure(outcome: str | None, error: str | None) -> str | None:
    return error or (outcome if outcome in ("failed", "cancelled") else None)


def _ns(at_s: float) -> int:
    return round(at_s * 1e9)


def _run_span_id(run_id: str) -> int:
    return derived_id(8, run_id, "run")


def _step_span_id(run_id: str, step_id: str) -> int:
    return derived_id(8, run_id, "step", step_id)


def _call_span_id(run_id: str, request_id: str) -> int:
    return derived_id(8, run_id, "call", request_id)
