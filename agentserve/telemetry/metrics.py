"""What does Prometheus read of this gateway's calls and runs? Histograms and counters counted from journal events."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.blame import BlameReason, blame_of_plain
from agentserve.telemetry.metric_families import Families
from agentserve.telemetry.story import decision_of
from scheduler.decisions import MigrationCause, Refusal
from scheduler.events import Mode

OTHER: Final = "other"

_OUTCOMES: Final = frozenset({"ok", "failed", "cancelled"})
_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled"})
_CAUSES: Final = frozenset(map(str, MigrationCause))
_MODES: Final = frozenset(map(str, Mode))
_REFUSALS: Final = frozenset(map(str, Refusal))

_logger = logging.getLogger(__name__)

_Family = TypeVar("_Family", Counter, Histogram)


class BoundedLabel:
    """Keeps the first `limit` values of a label that clients choose; every later one is `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def of(self, value: object) -> str:
        """The label for `value`, at most 64 characters."""
        text = str(value)[:64] if value else "unknown"
        if text in self._known:
            return text
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(text)
        return text


@dataclass(slots=True)
class _LiveCall:
    """A call not yet ended. Its workflow is kept here, as its run may end before it."""

    workflow: str
    model: str
    arrived_s: float = 0.0
    dispatched: bool = False
    length: tuple[float, float, float] | None = None
    """p10, p50 and p90 of its output tokens, as predicted at its first dispatch."""
    moving: str | None = None
    """Why it is on the move, from the decision until what came of it."""


class MetricSink:
    """Counts journal events in a registry of its own; of live runs, calls and steps it knows `max_live` each."""

    def __init__(self, *, max_workflows: int = 20, max_models: int = 20, max_live: int = 20_000) -> None:
        self._workflow, self._model = BoundedLabel(max_workflows), BoundedLabel(max_models)
        self._policy, self._tenant = BoundedLabel(20), BoundedLabel(50)
        self._max_live = max_live
        self._begun: set[str] = set()
        self._runs: OrderedDict[str, str] = OrderedDict()
        self._calls: OrderedDict[str, _LiveCall] = OrderedDict()
        self._targets: OrderedDict[tuple[str, str | None], float] = OrderedDict()
        self._handled: dict[str, Histogram] = {}
        self._known_series: dict[tuple[Any, ...], Any] = {}
        self._failures_logged = 0
        self.registry = CollectorRegistry()
        self._families = Families(self.registry)
        live_calls = Gauge("agentserve_live_calls", "Calls not yet ended.", registry=self.registry)
        live_calls.set_function(lambda: len(self._calls))
        live_runs = Gauge("agentserve_live_runs", "Runs not yet ended.", registry=self.registry)
        live_runs.set_function(lambda: len(self._runs))

    def record(self, event: RunEvent) -> None:
        """Count one event. Never raises."""
        try:
            self._count(event)
        except Exception:  # a malformed event must not harm the call that it tells of
            if self._failures_logged < 10:
                self._failures_logged += 1
                _logger.exception("event %s of run %s was not counted", event.kind, event.run_id)

    def restore(self, events: Iterable[RunEvent]) -> None:
        """Know a run that another gateway began, without counting what that one has counted."""
        for event in events:
            if event.kind is Kind.RUN_SUBMITTED:
                self._submitted(event)
            elif event.kind is Kind.RUN_FINISHED:
                self._runs.pop(event.run_id, None)

    def in_mode(self, now: Mode) -> None:
        """The gateway is in that mode from now on."""
        for mode in Mode:
            self._families.mode.labels(str(mode)).set(mode is now)

    def refused(self, tenant: str, code: str) -> None:
        """A request was refused: `tenant` whose key it had, empty for nobody's; `code` as in the answer."""
        self._series(self._families.refused, self._tenant.of(tenant), code).inc()

    def handled(self, event_name: str, took_s: float) -> None:
        """The scheduler took so long for an event of that type."""
        known = self._handled.get(event_name)
        if known is None:
            known = self._handled[event_name] = self._series(self._families.decision, event_name)
        known.observe(took_s)

    def _series(self, family: _Family, *labels: str) -> _Family:
        """The one of a family with these labels. The client's own look-up is most of what counting would cost."""
        known = self._known_series.get((family, *labels))
        if known is None:
            known = self._known_series[(family, *labels)] = family.labels(*labels)
        return known

    def _count(self, event: RunEvent) -> None:
        counter = _COUNTERS.get(event.kind)
        if counter is not None:
            counter(self, event)

    def _submitted(self, event: RunEvent) -> None:
        workflow = self._workflow.of(event.data.get("workflow"))
        _remember(self._runs, event.run_id, workflow, self._max_live)
        if workflow not in self._begun:
            self._begun.add(workflow)
            self._begin(workflow)

    def _begin(self, workflow: str) -> None:
        """Let counters of runs start at 0: a rate does not see the first count of a series that was not there."""
        for attained in ("true", "false"):
            self._series(self._families.runs, workflow, "succeeded", attained)
        for reason in BlameReason:
            self._series(self._families.missed, workflow, str(reason))

    def _deadlines(self, event: RunEvent) -> None:
        key, target_s = (event.run_id, event.step_id), event.data.get("target_deadline_s")
        if target_s is None:
            self._targets.pop(key, None)
        else:
            _remember(self._targets, key, target_s, self._max_live)

    def _step_finished(self, event: RunEvent) -> None:
        target_s = self._targets.pop((event.run_id, event.step_id), None)
        if target_s is not None and event.data.get("outcome") == "ok":
            self._series(self._families.step_slack, self._workflow_of(event)).observe(target_s - event.at_s)

    def _arrived(self, event: RunEvent) -> None:
        call = _LiveCall(self._workflow_of(event), self._model.of(event.data.get("model")), event.at_s)
        _remember(self._calls, event.request_id or "", call, self._max_live)

    def _decided(self, event: RunEvent) -> None:
        decision, call = decision_of(event), self._calls.get(event.request_id or "")
        reason = decision.get("reason") or {}
        match decision.get("type"):
            case "reject":
                refusal = _one_of(decision.get("refusal"), _REFUSALS)
                self._series(self._families.rejections, self._policy.of(reason.get("policy")), refusal).inc()
            case "dispatch":
                split = decision.get("prefill_instance") != decision.get("decode_instance")
                self._series(self._families.dispatches, self._policy.of(reason.get("policy")), str(split).lower()).inc()
                if call is not None and not call.dispatched:
                    call.dispatched, call.length = True, _interval(reason.get("length"))
                    waited_s = max(0.0, event.at_s - call.arrived_s)
                    self._series(self._families.queue, call.workflow, call.model).observe(waited_s)
            case "migrate" if call is not None:
                self._moved(call, "void")
                call.moving = _one_of(decision.get("cause"), _CAUSES)

    def _migrated(self, event: RunEvent) -> None:
        if (call := self._calls.get(event.request_id or "")) is not None:
            call.moving = None
        self._series(self._families.migrations, _one_of(event.data.get("cause"), _CAUSES), "done").inc()

    def _migration_refused(self, event: RunEvent) -> None:
        self._moved(self._calls.get(event.request_id or ""), "refused")

    def _attempt_failed(self, event: RunEvent) -> None:
        self._moved(self._calls.get(event.request_id or ""), "failed")
        self._families.attempts_failed.inc()

    def _moved(self, call: _LiveCall | None, outcome: str) -> None:
        """Count what came of the move that was decided, if one was."""
        if call is not None and call.moving is not None:
            self._series(self._families.migrations, call.moving, outcome).inc()
            call.moving = None

    def _call_finished(self, event: RunEvent) -> None:
        data, families = event.data, self._families
        call = self._calls.pop(event.request_id or "", None) or _LiveCall(self._workflow_of(event), "unknown")
        names = (call.workflow, call.model)
        self._moved(call, "void")
        self._series(families.calls, *names, _one_of(data.get("outcome"), _OUTCOMES)).inc()
        for histogram, name in ((families.ttft, "ttft_s"), (families.tpot, "tpot_s"), (families.call_e2e, "e2e_s")):
            if data.get(name) is not None:
                self._series(histogram, *names).observe(data[name])
        if data.get("ttft_s") is None:
            return  # no engine took the prompt, whose length is a guess then
        for kind, name in (("prompt", "prompt_tokens"), ("output", "output_tokens"), ("cached", "cached_tokens")):
            if data.get(name):
                self._series(families.tokens, *names, kind).inc(data[name])
        if data.get("outcome") == "ok" and call.length is not None and data.get("output_tokens"):
            self._compare_length(call, call.length, data["output_tokens"])

    def _compare_length(self, call: _LiveCall, predicted: tuple[float, float, float], tokens: int) -> None:
        p10, p50, p90 = predicted
        where = "below" if tokens < p10 else "above" if tokens > p90 else "inside"
        self._series(self._families.length_predictions, call.workflow, call.model, where).inc()
        if p50 > 0:
            self._series(self._families.length_ratio, call.workflow, call.model).observe(tokens / p50)

    def _run_finished(self, event: RunEvent) -> None:
        data, workflow = event.data, self._workflow_of(event)
        self._runs.pop(event.run_id, None)
        attained = "none" if data.get("attained") is None else str(bool(data["attained"])).lower()
        self._series(self._families.runs, workflow, _one_of(data.get("status"), _STATUSES), attained).inc()
        if data.get("mode") in _MODES:
            self._series(self._families.mode_runs, data["mode"], attained).inc()
        if (told := data.get("foreseen")) is not None and told.get("attained") is not None:
            for placement, in_time in (("ours", told["attained"]), ("taken", told["taken_attained"])):
                self._series(self._families.foreseen_runs, placement, str(in_time).lower()).inc()
        if data.get("e2e_s") is not None:
            self._series(self._families.run_e2e, workflow).observe(data["e2e_s"])
        if attained == "false":
            blame = blame_of_plain(data.get("blame") or {})
            self._series(self._families.missed, workflow, "unknown" if blame is None else str(blame.reason)).inc()

    def _workflow_of(self, event: RunEvent) -> str:
        return self._runs.get(event.run_id, "unknown")


_COUNTERS: Final[dict[Kind, Callable[[MetricSink, RunEvent], None]]] = {
    Kind.RUN_SUBMITTED: MetricSink._submitted,
    Kind.RUN_FINISHED: MetricSink._run_finished,
    Kind.STEP_DEADLINES: MetricSink._deadlines,
    Kind.STEP_FINISHED: MetricSink._step_finished,
    Kind.CALL_ARRIVED: MetricSink._arrived,
    Kind.CALL_DECIDED: MetricSink._decided,
    Kind.CALL_MIGRATED: MetricSink._migrated,
    Kind.CALL_MIGRATION_REFUSED: MetricSink._migration_refused,
    Kind.CALL_ATTEMPT_FAILED: MetricSink._attempt_failed,
    Kind.CALL_FINISHED: MetricSink._call_finished,
}


def _interval(length: Any) -> tuple[float, float, float] | None:
    """p10, p50 and p90 of a predicted length; None where it has not all of them."""
    if not isinstance(length, dict):
        return None
    p10, p50, p90 = (length.get(name) for name in ("p10_tokens", "p50_tokens", "p90_tokens"))
    return None if p10 is None or p50 is None or p90 is None else (p10, p50, p90)


def _remember(known: OrderedDict[Any, Any], key: object, value: object, limit: int) -> None:
    known[key] = value
    while len(known) > limit:
        known.popitem(last=False)


def _one_of(value: object, known: frozenset[str]) -> str:
    return value if isinstance(value, str) and value in known else OTHER
