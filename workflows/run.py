"""What state is a run in, and what may happen to it next? A pure state machine over immutable values.

`Run.apply(transition)` is the only definition of what a transition does. It is idempotent: a transition that has
already happened returns the very same run. The tracker stores its result by compare-and-set on `version`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from workflows.errors import DuplicateStep, IllegalTransition, InvalidSlo


class RunStatus(StrEnum):
    """A run is running until it ends in one of three ways."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    """A step is running until it ends in one of three ways."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepKind(StrEnum):
    """What a step spends its time on: a node that calls models, or one that does not."""

    LLM = "llm"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One execution of a node. `implicit`: begun by a bare LLM call, so it ends when that call ends."""

    step_id: str
    node: str
    kind: StepKind
    parents: tuple[str, ...] = ()
    implicit: bool = False
    status: StepStatus = StepStatus.RUNNING
    started_s: float
    finished_s: float | None = None
    target_deadline_s: float | None = None
    latest_deadline_s: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a workflow. `deadline_s` None: no SLO. `version` counts applied transitions, from 1.

    `implicit`: made by a call that named no run, so it ends when its only step ends. `tenant`: whose it is, empty where
    nobody asked.
    """

    run_id: str
    workflow: str
    tenant: str = ""
    submitted_s: float
    slo_s: float | None
    deadline_s: float | None
    implicit: bool = False
    status: RunStatus = RunStatus.RUNNING
    finished_s: float | None = None
    error: str | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    version: int = 1

    @property
    def active(self) -> tuple["Step", ...]:
        """The steps that are running, in the order they were started in."""
        return tuple(step for step in self.steps.values() if step.status is StepStatus.RUNNING)

    def apply(self, transition: "Transition") -> "Run":
        """The run after `transition`; this very run if it has already happened or changes nothing.

        Raises IllegalTransition (DuplicateStep for a step id used twice) naming the run, the step and both states.
        """
        match transition:
            case StepStarted():
                return _start_step(self, transition)
            case StepFinished():
                return _finish_step(self, transition)
            case DeadlinesDerived():
                return _set_deadlines(self, transition)
            case RunFinished():
                return _finish_run(self, transition)
            case Together():
                return _all_of(self, transition)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A node began to execute. Refused after the run ended; DuplicateStep if the id is another node's or has ended."""

    step_id: str
    node: str
    kind: StepKind
    parents: tuple[str, ...] = ()
    implicit: bool = False
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A node's execution ended."""

    step_id: str
    status: StepStatus
    at_s: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinesDerived:
    """New (target, latest) deadlines, absolute seconds, of running steps; steps that have ended are left alone."""

    deadlines: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run ended; steps still running end with it (cancelled, or failed with a failed run)."""

    status: RunStatus
    at_s: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """Several transitions, one after the other, and none of them if one is refused: one write for all."""

    transitions: tuple["Transition", ...]


Transition = StepStarted | StepFinished | DeadlinesDerived | RunFinished | Together

RUN_MAY_BECOME: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.RUNNING: frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}
"""The states a run may go to from each state; staying in an end state is a repetition, not a transition."""

STEP_MAY_BECOME: Mapping[StepStatus, frozenset[StepStatus]] = {
    StepStatus.RUNNING: frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED}),
    StepStatus.SUCCEEDED: frozenset(),
    StepStatus.FAILED: frozenset(),
    StepStatus.CANCELLED: frozenset(),
}
"""The states a step may go to from each state."""


def new_run(
    run_id: str,
    workflow: str,
    submitted_s: float,
    slo_s: float | None = None,
    deadline_s: float | None = None,
    implicit: bool = False,
    tenant: str = "",
) -> Run:
    """A run that was submitted at `submitted_s`, with an SLO in seconds, or an absolute deadline, or neither.

    Raises InvalidSlo if the SLO is not positive and finite, the deadline is not after the submission, or both are told.
    """
    if slo_s is not None and deadline_s is not None:
        raise InvalidSlo(f"run {run_id!r}: give an SLO or a deadline, not both")
    if slo_s is not None:
        if not (math.isfinite(slo_s) and slo_s > 0):
            raise InvalidSlo(f"run {run_id!r}: the SLO must be a positive, finite number of seconds, not {slo_s!r}")
        deadline_s = submitted_s + slo_s
    elif deadline_s is not None:
        if not math.isfinite(deadline_s):
            raise InvalidSlo(f"run {run_id!r}: the deadline must be a finite time in seconds, not {deadline_s!r}")
        if deadline_s <= submitted_s:
            late_s = submitted_s - deadline_s
            raise InvalidSlo(f"run {run_id!r}: the deadline had passed {late_s:.3f} s before the run was submitted")
        slo_s = deadline_s - submitted_s
    return Run(
        run_id=run_id,
        workflow=workflow,
        tenant=tenant,
        submitted_s=submitted_s,
        slo_s=slo_s,
        deadline_s=deadline_s,
        implicit=implicit,
    )


def _with_step(run: Run, step: Step) -> Run:
    # Written out: `replace` looks every field up and takes twice the time, and each step of each run comes by here.
    return Run(
        run_id=run.run_id,
        workflow=run.workflow,
        tenant=run.tenant,
        submitted_s=run.submitted_s,
        slo_s=run.slo_s,
        deadline_s=run.deadline_s,
        implicit=run.implicit,
        status=run.status,
        finished_s=run.finished_s,
        error=run.error,
        steps={**run.steps, step.step_id: step},
        version=run.version + 1,
    )


def _start_step(run: Run, start: StepStarted) -> Run:
    known = run.steps.get(start.step_id)
    if known is not None:
        return _start_again(run, known, start)
    if run.status is not RunStatus.RUNNING:
        raise IllegalTransition(f"run {run.run_id!r}: step {start.step_id!r} cannot start, the run is {run.status}")
    return _with_step(
        run,
        Step(
            step_id=start.step_id,
            node=start.node,
            kind=start.kind,
            parents=start.parents,
            implicit=start.implicit,
            started_s=max(start.at_s, run.submitted_s),
        ),
    )


def _start_again(run: Run, known: Step, start: StepStarted) -> Run:
    """A start of a known step: a repetition, or word from the client about a step that a call or a header began."""
    if known.node != start.node:
        raise DuplicateStep(
            f"run {run.run_id!r}: step {start.step_id!r} is of node {known.node!r} and {known.status}, "
            f"it cannot start at node {start.node!r}"
        )
    if known.status is not StepStatus.RUNNING:
        if known.started_s == max(start.at_s, run.submitted_s):
            return run
        raise DuplicateStep(
            f"run {run.run_id!r}: step {start.step_id!r} of node {known.node!r} is {known.status}, it cannot be "
            f"{StepStatus.RUNNING} again"
        )
    calls_model = StepKind.LLM in (known.kind, start.kind)
    step = replace(
        known,
        kind=StepKind.LLM if calls_model else StepKind.TOOL,
        parents=known.parents or start.parents,
        implicit=known.implicit and start.implicit,
    )
    return run if step == known else _with_step(run, step)


def _finish_step(run: Run, finish: StepFinished) -> Run:
    step = run.steps.get(finish.step_id)
    if step is None:
        raise IllegalTransition(
            f"run {run.run_id!r} ({run.status}): step {finish.step_id!r} never started, it cannot be {finish.status}"
        )
    if step.status is finish.status and step.status is not StepStatus.RUNNING:
        return run
    if finish.status not in STEP_MAY_BECOME[step.status]:
        raise IllegalTransition(
            f"run {run.run_id!r}: step {finish.step_id!r} is {step.status}, it cannot become {finish.status}"
        )
    finished_s = max(finish.at_s, step.started_s)
    return _with_step(run, replace(step, status=finish.status, finished_s=finished_s, error=finish.error))


def _set_deadlines(run: Run, derived: DeadlinesDerived) -> Run:
    changed: dict[str, Step] = {}
    for step_id, (target_s, latest_s) in derived.deadlines.items():
        step = run.steps.get(step_id)
        if step is None or step.status is not StepStatus.RUNNING:
            continue
        if (step.target_deadline_s, step.latest_deadline_s) != (target_s, latest_s):
            changed[step_id] = replace(step, target_deadline_s=target_s, latest_deadline_s=latest_s)
    if not changed:
        return run
    return replace(run, steps={**run.steps, **changed}, version=run.version + 1)


def _all_of(run: Run, together: Together) -> Run:
    for transition in together.transitions:
        run = run.apply(transition)
    return run


def _finish_run(run: Run, finish: RunFinished) -> Run:
    if run.status is finish.status and run.status is not RunStatus.RUNNING:
        return run
    if finish.status not in RUN_MAY_BECOME[run.status]:
        raise IllegalTransition(f"run {run.run_id!r} is {run.status}, it cannot become {finish.status}")
    finished_s = max(finish.at_s, run.submitted_s)
    left = StepStatus.FAILED if finish.status is RunStatus.FAILED else StepStatus.CANCELLED
    ended = {
        step.step_id: replace(step, status=left, finished_s=max(finish.at_s, step.started_s), error=finish.error)
        for step in run.active
    }
    return replace(
        run,
        status=finish.status,
        finished_s=finished_s,
        error=finish.error,
        steps={**run.steps, **ended},
        version=run.version + 1,
    )
