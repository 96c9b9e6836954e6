"""How is a run written down? Runs and steps to and from plain JSON, for the store and the REST interface."""

from collections.abc import Mapping
from typing import Any

from workflows.errors import WorkflowError
from workflows.run import Run, RunStatus, Step, StepKind, StepStatus


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
    """The step that `step_to_plain` wrote; raises WorkflowError for anything else."""
    try:
        return Step(
            step_id=plain["step_id"],
            node=plain["node"],
            kind=StepKind(plain["kind"]),
            parents=tuple(plain["parents"]),
            implicit=plain["implicit"],
            status=StepStatus(plain["status"]),
            started_s=plain["started_s"],
            finished_s=plain["finished_s"],
            target_deadline_s=plain["target_deadline_s"],
            latest_deadline_s=plain["latest_deadline_s"],
            error=plain["error"],
        )
    except (KeyError, TypeError, ValueError) as error:
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
    """The run that `run_to_plain` wrote; raises WorkflowError for anything else."""
    try:
        steps = [step_from_plain(step) for step in plain["steps"]]
        return Run(
            run_id=plain["run_id"],
            workflow=plain["workflow"],
            tenant=plain.get("tenant", ""),  # runs of older versions have none
            submitted_s=plain["submitted_s"],
            slo_s=plain["slo_s"],
            deadline_s=plain["deadline_s"],
            implicit=plain["implicit"],
            status=RunStatus(plain["status"]),
            finished_s=plain["finished_s"],
            error=plain["error"],
            version=plain["version"],
            steps={step.step_id: step for step in steps},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkflowError(f"not a run as written by run_to_plain: {error!r}") from error
