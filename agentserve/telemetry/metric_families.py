"""Which counters and histograms does a gateway count from its journal? Each with its meaning, labels and buckets.

Names follow Prometheus: base units, ratios as `_ratio`, counters end in `_total` (which the client adds). No label is
called `instance` or `job`: Prometheus puts its own there, with the address of the gateway.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scheduler.events import Mode

_TTFT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_TPOT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)
_E2E_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)
_SLACK_S: Final = (-120, -30, -15, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 15, 30, 120)
_DECISION_S: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_RATIOS: Final = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)

_CALL: Final = ("workflow", "model")
_RUN: Final = ("workflow",)


class Families:
    """The families of one registry. Latencies of calls and runs are those of `agentserve/records.py`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.ttft = self._histogram("time_to_first_token_seconds", "First token - arrival.", _CALL, _TTFT_S)
        self.tpot = self._histogram("time_per_output_token_seconds", "(E2E - TTFT) / (tokens - 1).", _CALL, _TPOT_S)
        self.call_e2e = self._histogram("call_e2e_seconds", "Last token - arrival of a call.", _CALL, _E2E_S)
        self.queue = self._histogram(
            "call_queue_seconds", "Arrival - first dispatch: the wait at the gateway.", _CALL, _TTFT_S
        )
        self.run_e2e = self._histogram("run_e2e_seconds", "End - submission of a run.", _RUN, _E2E_S)
        self.step_slack = self._histogram(
            "step_slack_seconds", "Target deadline - end of a step that succeeded; below 0: late.", _RUN, _SLACK_S
        )
        self.decision = self._histogram(
            "decision_seconds", "Time that the scheduler takes for one event.", ("event",), _DECISION_S
        )
        self.length_ratio = self._histogram(
            "output_length_ratio", "Output tokens of a call / the median predicted at its dispatch.", _CALL, _RATIOS
        )
        self.length_predictions = self._counter(
            "length_predictions", "Calls by where their length came out: inside p10 to p90, below, above.",
            (*_CALL, "interval"),
        )  # fmt: skip
        self.calls = self._counter("calls", "Calls ended.", (*_CALL, "outcome"))
        self.runs = self._counter("runs", "Runs ended; attained is none without an SLO.", (*_RUN, "status", "attained"))
        self.missed = self._counter(
            "missed_runs", "Runs that missed their SLO, by what lost the time.", (*_RUN, "blame")
        )
        self.tokens = self._counter("tokens", "Tokens of ended calls: prompt, output, cached.", (*_CALL, "kind"))
        self.dispatches = self._counter("dispatches", "Dispatches; split: to two instances.", ("policy", "split"))
        self.rejections = self._counter("rejections", "Calls that the scheduler refused.", ("policy", "refusal"))
        self.migrations = self._counter(
            "migrations", "Moves of running calls: done, refused by the driver, failed, void (it ended before).",
            ("cause", "outcome"),
        )  # fmt: skip
        self.attempts_failed = self._counter("attempts_failed", "Attempts that broke.", ())

        self.refused = self._counter(
            "refused_requests",
            "Requests refused for want of a key, a right or room, by tenant and code.",
            ("tenant", "code"),
        )

        self.mode = Gauge(
            "agentserve_mode", "1: the gateway is in this mode; 0: it is not.", ("mode",), registry=registry
        )
        self.mode_runs = self._counter(
            "mode_runs", "Runs ended that were in one mode all the while; attained is none without an SLO.",
            ("mode", "attained"),
        )  # fmt: skip
        self.foreseen_runs = self._counter(
            "foreseen_runs", "Runs in mode observe by an estimate: with our placements, and with those taken.",
            ("placement", "attained"),
        )  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        """Let counters start at 0 whose labels are known: a rate does not see the first count of a new series."""
        for attained in ("true", "false"):
            for mode in Mode:
                self.mode_runs.labels(str(mode), attained)
            for placement in ("ours", "taken"):
                self.foreseen_runs.labels(placement, attained)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"agentserve_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"agentserve_{name}", text, labels, registry=self._registry)
