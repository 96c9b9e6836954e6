"""How long will what remains take? Learned online from counters that add up."""

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.graph import Workflow
from workflows.run import Run, StepKind


def observe_step(node: str, kind: StepKind, duration_s: float) -> dict[str, int]:
    """Increments for a step that succeeded; call once, when it ends."""
    return {}


def observe_transition(source: str, targets: Mapping[str, int], *, visit: int = 1) -> dict[str, int]:
    """Increments for what followed a node: target (or END) → how many steps of it. `observe_run_end` calls it for a whole run."""
    return {}


def observe_run_end(run: Run, workflow: Workflow | None = None) -> dict[str, int]:
    """Increments for all transitions of a run that has ended; call once per run, at its end."""
    return {}


def admit(counts: Mapping[str, int], increments: Mapping[str, int]) -> dict[str, int]:
    """The increments to send to the store: bounded in keys, with the decay of counters that grew large."""
    return dict(increments)


@dataclass(frozen=True, slots=True)
class NodeForecast:
    """What is known of a node's duration, in seconds, and of how many observations it is made."""

    kind: StepKind
    mean_s: float
    p10_s: float
    p50_s: float
    p90_s: float
    observations: int


class Forecast:
    """Expectations about the rest of a run of one workflow, immutable."""

    @classmethod
    def from_counts(cls, workflow: Workflow, counts: Mapping[str, int]) -> "Forecast":
        """The forecast from a workflow's counters; with none of them, from the graph's shape alone."""
        return cls()
