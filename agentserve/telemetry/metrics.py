"""What does Prometheus read of this gateway? Histograms, counters and gauges counted from journal events."""

import logging
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.story import decision_of

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"

_TTFT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_TPOT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_E2E_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)
_OUTCOMES: Final = frozenset({"ok", "failed", "cancelled"})
_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled"})
_CAUSES: Final = frozenset({"late", "drain", "lost", "balance"})

_logger = logging.getLogger(__name__)


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


class _LiveCall(NamedTuple):
    """A call not yet ended. Its workflow is kept here, as its run may end before it."""

    workflow: str
    model: str
    arrived_s: float
    dispatched: bool = False


class MetricSink:
    """Counts journal events in a registry of its own. Live runs and calls are remembered up to `max_live` each."""

    def __init__(self, *, max_workflows: int = 20, max_models: int = 20, max_live: int = 20_000) -> None:
        self._workflow, self._model = BoundedLabel(max_workflows), BoundedLabel(max_models)
        self._policy = BoundedLabel(20)
        self._max_live = max_live
        self._runs: OrderedDict[str, str] = OrderedDict()
        self._calls: OrderedDict[str, _LiveCall] = OrderedDict()
        self._failures_logged = 0
        self.registry = CollectorRegistry()
        self._make_metrics()

    def _make_metrics(self) -> None:
        registry = self.registry
        call, run = ("workflow", "model"), ("workflow",)
        self._ttft = Histogram(
            "agentserve_time_to_first_token_seconds", "First token - arrival.", call, buckets=_TTFT_S, registry=registry
        )
        self._tpot = Histogram(
            "agentserve_time_per_output_token_seconds",
            "(E2E - TTFT) / (tokens - 1).",
            call,
            buckets=_TPOT_S,
            registry=registry,
        )
        self._call_e2e = Histogram(
            "agentserve_call_e2e_seconds", "Last token - arrival of a call.", call, buckets=_E2E_S, registry=registry
        )
        self._queue = Histogram(
            "agentserve_call_queue_seconds",
            "Arrival - first dispatch: the wait at the gateway.",
            call,
            buckets=_TTFT_S,
            registry=registry,
        )
        self._run_e2e = Histogram(
            "agentserve_run_e2e_seconds", "End - submission of a run.", run, buckets=_E2E_S, registry=registry
        )
        self._count_calls = Counter("agentserve_calls", "Calls ended.", (*call, "outcome"), registry=registry)
        self._count_runs = Counter(
            "agentserve_runs", "Runs ended; attained is none without an SLO.", (*run, "status", "attained"),
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter("agentserve_tokens", "Tokens of ended calls.", (*call, "kind"), registry=registry)
        self._dispatches = Counter("agentserve_dispatches", "Dispatches.", ("policy", "split"), registry=registry)
        self._refused = Counter("agentserve_rejections", "Calls refused.", ("policy", "refusal"), registry=registry)
        self._migrations = Counter(
            "agentserve_migrations", "Moves of running calls: done, or refused by the driver.", ("cause", "outcome"),
            registry=registry,
        )  # fmt: skip
        self._attempts_failed = Counter("agentserve_attempts_failed", "Attempts that broke.", registry=registry)
        live_calls = Gauge("agentserve_live_calls", "Calls not yet ended.", registry=registry)
        live_calls.set_function(lambda: len(self._calls))
        live_runs = Gauge("agentserve_live_runs", "Runs not yet ended.", registry=registry)
        live_runs.set_function(lambda: len(self._runs))

    def record(self, event: RunEvent) -> None:
        """Count one event. Never raises."""
        try:
            self._count(event)
        except Exception:  # a malformed event must not harm the call that it tells of
            if self._failures_logged < 10:
                self._failures_logged += 1
                _logger.exception("event %s of run %s was not counted", event.kind, event.run_id)

    def render(self) -> bytes:
        """The Prometheus text exposition, of type CONTENT_TYPE."""
        return generate_latest(self.registry)

    def _count(self, event: RunEvent) -> None:
        kind, data, request_id = event.kind, event.data, event.request_id or ""
        if kind is Kind.RUN_SUBMITTED:
            _remember(self._runs, event.run_id, self._workflow.of(data.get("workflow")), self._max_live)
        elif kind is Kind.RUN_FINISHED:
            self._run_finished(event)
        elif kind is Kind.CALL_ARRIVED:
            call = _LiveCall(self._workflow_of(event), self._model.of(data.get("model")), event.at_s)
            _remember(self._calls, request_id, call, self._max_live)
        elif kind is Kind.CALL_DECIDED:
            self._decided(event)
        elif kind is Kind.CALL_MIGRATED:
            self._migrations.labels(_one_of(data.get("cause"), _CAUSES), "done").inc()
        elif kind is Kind.CALL_MIGRATION_REFUSED:
            self._migrations.labels("unknown", "refused").inc()
        elif kind is Kind.CALL_ATTEMPT_FAILED:
            self._attempts_failed.inc()
        elif kind is Kind.CALL_FINISHED:
            self._call_finished(event)

    def _decided(self, event: RunEvent) -> None:
        decision = decision_of(event)
        policy = self._policy.of((decision.get("reason") or {}).get("policy"))
        if decision.get("type") == "reject":
            self._refused.labels(policy, str(decision.get("refusal"))[:64]).inc()
        elif decision.get("type") == "dispatch":
            split = decision.get("prefill_instance") != decision.get("decode_instance")
            self._dispatches.labels(policy, str(split).lower()).inc()
            call = self._calls.get(event.request_id or "")
            if call is not None and not call.dispatched:
                self._calls[event.request_id or ""] = call._replace(dispatched=True)
                self._queue.labels(call.workflow, call.model).observe(max(0.0, event.at_s - call.arrived_s))

    def _call_finished(self, event: RunEvent) -> None:
        data = event.data
        call = self._calls.pop(event.request_id or "", None) or _LiveCall(self._workflow_of(event), "unknown", 0.0)
        workflow, model = call.workflow, call.model
        self._count_calls.labels(workflow, model, _one_of(data.get("outcome"), _OUTCOMES)).inc()
        for histogram, name in ((self._ttft, "ttft_s"), (self._tpot, "tpot_s"), (self._call_e2e, "e2e_s")):
            if data.get(name) is not None:
                histogram.labels(workflow, model).observe(data[name])
        if data.get("ttft_s") is None:
            return  # no engine took the prompt, whose length is a guess then
        for kind, name in (("prompt", "prompt_tokens"), ("output", "output_tokens"), ("cached", "cached_tokens")):
            if data.get(name):
                self._tokens.labels(workflow, model, kind).inc(data[name])

    def _run_finished(self, event: RunEvent) -> None:
        data, workflow = event.data, self._workflow_of(event)
        self._runs.pop(event.run_id, None)
        attained = "none" if data.get("attained") is None else str(bool(data["attained"])).lower()
        self._count_runs.labels(workflow, _one_of(data.get("status"), _STATUSES), attained).inc()
        if data.get("e2e_s") is not None:
            self._run_e2e.labels(workflow).observe(data["e2e_s"])

    def _workflow_of(self, event: RunEvent) -> str:
        return self._runs.get(event.run_id, "unknown")


def _remember(known: OrderedDict[str, Any], key: str, value: object, limit: int) -> None:
    known[key] = value
    while len(known) > limit:
        known.popitem(last=False)


def _one_of(value: object, known: frozenset[str]) -> str:
    return value if isinstance(value, str) and value in known else OTHER
