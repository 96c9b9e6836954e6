"""What has the simulated gateway learned of each workflow? The live gateway's rules, without a store between."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workflows.forecast import Forecast, admit
from workflows.graph import Workflow, unknown_shape

REBUILD_S: Final = 0.5
"""The same as the live gateway's."""
REBUILD_SHARE: Final = 0.02
"""And only once this share of new observations has come: in virtual time half a second costs nothing to wait for."""

CHECK_EVERY: Final = 64


@dataclass(slots=True)
class _Known:
    workflow: Workflow
    forecast: Forecast
    counts: dict[str, int] = field(default_factory=dict)
    observations: int = 0
    built_of: int = 0
    built_at_s: float = 0.0


class Learned:
    """Workflows and forecasts by name."""

    def __init__(self, workflows: Mapping[str, Workflow]) -> None:
        self._known = {name: _Known(one, Forecast.from_counts(one, {})) for name, one in workflows.items()}

    def workflow(self, name: str) -> Workflow:
        """The workflow of that name; one that was never declared is learned from its runs."""
        if name not in self._known:
            graph = unknown_shape(name)
            self._known[name] = _Known(graph, Forecast.from_counts(graph, {}))
        return self._known[name].workflow

    def forecast(self, name: str, now_s: float) -> Forecast:
        """What is expected of the workflow now."""
        known = self._known[name]
        is_due = now_s - known.built_at_s >= REBUILD_S
        if is_due and known.observations - known.built_of > REBUILD_SHARE * known.built_of:
            known.forecast = Forecast.from_counts(known.workflow, known.counts, known.forecast)
            known.built_of, known.built_at_s = known.observations, now_s
        return known.forecast

    def learn(self, name: str, increments: Mapping[str, int]) -> None:
        """Count what was observed."""
        known = self._known[name]
        known.observations += 1
        # What `admit` adds is a bound on keys and the halving of old counters, both at thousands of observations.
        is_checked = known.observations % CHECK_EVERY == 0
        for key, count in (admit(known.counts, increments) if is_checked else increments).items():
            known.counts[key] = known.counts.get(key, 0) + count
