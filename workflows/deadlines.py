"""By when must each running step be done? What is left of a run's SLO, shared out over what remains to do."""

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.forecast import Forecast
from workflows.graph import Workflow
from workflows.run import Run


@dataclass(frozen=True, slots=True)
class StepDeadline:
    """Of one running step: absolute `target_s` (its fair share) and `latest_s` (past which the run is lost).

    `predicted_s`: expected time the step still takes; `downstream_s`: expected time from its end to the run's end;
    `slack_s`: deadline − now − predicted remaining time, of the whole run.
    """

    target_s: float
    latest_s: float
    predicted_s: float
    downstream_s: float
    slack_s: float


def derive(run: Run, workflow: Workflow, forecast: Forecast, now_s: float) -> Mapping[str, StepDeadline]:
    """Deadlines of the run's running steps, by step id; empty without an SLO or without running steps."""
    return {}
