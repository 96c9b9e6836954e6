"""Do GPU profiles still fit their instances? The log says when the scheduler's corrections tell otherwise."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

Snapshot = Callable[[], Mapping[str, Any]]
"""The scheduler's: `instances`, each with its corrections, their samples and the phases that have drifted."""

PHASES: Final = ("prefill", "decode")
_LOOK_EVERY_S: Final = 5.0

_logger = logging.getLogger(__name__)


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
