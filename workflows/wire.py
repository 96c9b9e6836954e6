"""How is a run written down? Runs and steps to and from plain JSON, for the store and the REST interface."""

from collections.abc import Mapping
from typing import Any, Final

from workflows.errors import WorkflowError
from workflows.run import Run, RunStatus, Step, StepKind, StepStatus

MAX_TIME_S: Final = 1e12
"""Past every clock: 30,000 years."""


def step_to_plain(step: Step) -> dict[str, Any]:
    """The step as plain JSON, every field."""
    return {
        "step_id": step.step_id,
        "node": step.node,
        "kind": str(step.kind),
        "parents": list(step.parents),
        "implicit": step.implicit,
        "status": str(step.status),
        "started_s": step.started_s,
        "finished_s": step.finished_s,
        "target_deadline_s": step.target_deadline_s,
        "latest_deadline_s": step.latest_deadline_s,
        "error": step.error,
    }


def step_from_plain(plain: Mapping[str, Any]) -> Step:
    """The step that `step_to_plain` of this or an older version wrote; raises WorkflowError for anything else."""
    try:
        return Step(
            step_id=_text(plain["step_id"]),
            node=_text(plain["node"]),
            kind=StepKind(plain["kind"]),
            parents=tuple(_text(parent) for parent in plain.get("parents", ())),
            implicit=bool(plain.get("implicit", False)),
            status=StepStatus(plain["status"]),
            started_s=_time(plain["started_s"]),
            finished_s=_time_or_none(plain, "finished_s"),
            target_deadline_s=_time_or_none(plain, "target_deadline_s"),
            latest_deadline_s=_time_or_none(plain, "latest_deadline_s"),
            error=_text_or_none(plain, "error"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkflowError(f"not a step as written by step_to_plain: {error!r}") from error


def run_to_plain(run: Run) -> dict[str, Any]:
    """The run and its steps as plain JSON, every field; `steps` is a list in the order they were started in."""
    return {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "tenant": run.tenant,
        "submitted_s": run.submitted_s,
        "slo_s": run.slo_s,
        "deadline_s": run.deadline_s,
        "implicit": run.implicit,
        "status": str(run.status),
        "finished_s": run.finished_s,
        "error": run.error,
        "version": run.version,
        "steps": [step_to_plain(step) for step in run.steps.values()],
    }


def run_from_plain(plain: Mapping[str, Any]) -> Run:
    """The run that `run_to_plain` of this or an older version wrote; raises WorkflowError for anything else."""
    try:
        steps = [step_from_plain(step) for step in plain["steps"]]
        return Run(
            run_id=_text(plain["run_id"]),
            workflow=_text(plain["workflow"]),
            tenant=_text(plain.get("tenant", "")),  # runs of older versions have none
            submitted_s=_time(plain["submitted_s"]),
            slo_s=_time_or_none(plain, "slo_s"),
            deadline_s=_time_or_none(plain, "deadline_s"),
            implicit=bool(plain.get("implicit", False)),
            status=RunStatus(plain["status"]),
            finished_s=_time_or_none(plain, "finished_s"),
            error=_text_or_none(plain, "error"),
            version=int(plain["version"]),
            steps={step.step_id: step for step in steps},
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkflowError(f"not a run as written by run_to_plain: {error!r}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _text_or_none(plain: Mapping[str, Any], name: str) -> str | None:
    value = plain.get(name)
    return None if value is None else _text(value)


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_TIME_S:
        raise TypeError(f"{value!r:.40} is no time in seconds")
    return value


def _time_or_none(plain: Mapping[str, Any], name: str) -> float | None:
    value = plain.get(name)
    return None if value is None else _time(value)
