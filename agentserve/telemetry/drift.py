"""Do GPU profiles still fit their instances? The scheduler's online corrections as gauges, and a log line on drift."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Snapshot = Callable[[], Mapping[str, Any]]
"""The scheduler's: `instances`, each with its corrections, their samples and the phases that have drifted."""

PHASES: Final = ("prefill", "decode")
_LOOK_EVERY_S: Final = 5.0

_logger = logging.getLogger(__name__)


class CorrectionCollector(Collector):
    """Gauges `agentserve_profile_correction{instance,phase}`: observed ÷ predicted times, of every live instance."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Its name, without asking the scheduler."""
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they are now."""
        family = self._family()
        for instance in self._snapshot()["instances"]:
            for phase in PHASES:
                family.add_metric([instance["instance_id"], phase], instance[f"{phase}_correction"])
        yield family

    def _family(self) -> GaugeMetricFamily:
        text = "Observed time / time by the GPU profile, as applied to predictions; 1 where nothing was seen yet."
        return GaugeMetricFamily("agentserve_profile_correction", text, labels=("instance", "phase"))


class DriftLog:
    """Says once in the log that a profile does not fit an instance any more; again after it has fitted meanwhile."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._drifted: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Compare with the last look; instances that left are forgotten."""
        found: set[tuple[str, str]] = set()
        for instance in self._snapshot()["instances"]:
            name = instance["instance_id"]
            for phase in instance["drifted"]:
                found.add((name, phase))
                if (name, phase) not in self._drifted:
                    _logger.warning(
                        "%s: %s takes %.2f × the time of its GPU profile (%s); predictions are corrected, "
                        "`agentserve profile` measures it anew",
                        name, phase, instance[f"{phase}_correction"], instance["gpu"],
                    )  # fmt: skip
        self._drifted = found

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)
