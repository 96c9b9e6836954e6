"""What does Prometheus read of the instances? Gauges of what the gateway knows anyway, for a bounded number of them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from agentserve.telemetry.drift import PHASES

Snapshot = Callable[[], Mapping[str, Any]]
"""The orchestrator's: `instances` with their state, and under `scheduler` what that one estimates of each."""

MAX_WORKERS: Final = 256
LOST_SHOWN_S: Final = 3600.0
_LOST: Final = "lost"
_WHO: Final = ("worker", "model", "gpu", "role")
_ESTIMATES: Final = {
    "queued": ("agentserve_instance_queued_calls", "Calls sent there whose first token was not seen yet."),
    "running": ("agentserve_instance_running_calls", "Calls of this gateway that decode there."),
    "kv_usage": ("agentserve_instance_kv_usage_ratio", "Share of the KV cache in use, 0 to 1, as estimated."),
    "predicted_queue_s": (
        "agentserve_instance_predicted_queue_seconds",
        "How long the prefills sent there will still take, as predicted.",
    ),
}


class ClusterCollector(Collector):
    """Gauges of each instance (label `worker`) and their number by state.

    `refresh` reads the cluster and belongs on the event loop; `collect` gives what was read, from any thread. At most
    `max_workers` instances have gauges of their own, live ones first. One that is lost is shown for `lost_shown_s`, one
    that left after a drain not at all.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        max_workers: int = MAX_WORKERS,
        lost_shown_s: float = LOST_SHOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot, self._clock = snapshot, clock
        self._max_workers, self._lost_shown_s = max_workers, lost_shown_s
        self._lost_since_s: dict[str, float] = {}
        self._read: list[Metric] = []

    def refresh(self) -> None:
        """Read the cluster as it is now."""
        cluster = self._snapshot()
        shown = self._shown(cluster["instances"])
        estimates = {one["instance_id"]: one for one in cluster["scheduler"]["instances"]}
        listed = sorted(shown, key=lambda one: (one["state"] == _LOST, one["instance_id"]))[: self._max_workers]
        families = _families()
        for (gpu, role, state), count in sorted(Counter((i["gpu"], i["role"], i["state"]) for i in shown).items()):
            families["instances"].add_metric([gpu[:64], role, state], count)
        for instance in listed:
            _add(families, instance, None if instance["state"] == _LOST else estimates.get(instance["instance_id"]))
        self._read = list(families.values())

    def describe(self) -> Iterator[Metric]:
        """Their names, without asking for the cluster."""
        yield from _families().values()

    def collect(self) -> Iterator[Metric]:
        """The gauges as last read."""
        yield from self._read

    def _shown(self, instances: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """All but those that left for good or were lost long ago."""
        now_s = self._clock()
        lost = {one["instance_id"] for one in instances if one["state"] == _LOST}
        self._lost_since_s = {name: self._lost_since_s.get(name, now_s) for name in lost}
        return [
            one
            for one in instances
            if one["state"] != _LOST
            or not (one["drained"] or now_s - self._lost_since_s[one["instance_id"]] > self._lost_shown_s)
        ]


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        "instances": GaugeMetricFamily(
            "agentserve_instances", "Instances by state: online, draining, lost.", labels=("gpu", "role", "state")
        ),
        "up": GaugeMetricFamily("agentserve_instance_up", "1: calls run there; 0: it is lost.", labels=_WHO),
        **{name: GaugeMetricFamily(*told, labels=_WHO) for name, told in _ESTIMATES.items()},
        "correction": GaugeMetricFamily(
            "agentserve_profile_correction_ratio",
            "Observed time / time by the GPU profile, as applied to predictions; 1 where nothing was seen yet.",
            labels=("worker", "phase"),
        ),
        "drifted": GaugeMetricFamily(
            "agentserve_profile_drifted", "1: the GPU profile does not fit the instance.", labels=("worker", "phase")
        ),
    }


def _add(
    families: Mapping[str, GaugeMetricFamily], instance: Mapping[str, Any], estimate: Mapping[str, Any] | None
) -> None:
    who = [instance["instance_id"], instance["model"][:64], instance["gpu"][:64], instance["role"]]
    families["up"].add_metric(who, 0 if instance["state"] == _LOST else 1)
    if estimate is None:
        return
    for name in _ESTIMATES:
        families[name].add_metric(who, estimate[name])
    for phase in PHASES:
        families["correction"].add_metric([who[0], phase], estimate[f"{phase}_correction"])
        families["drifted"].add_metric([who[0], phase], phase in estimate["drifted"])
