"""What state is a run in, and what may happen to it next? A pure state machine over immutable values.

`Run.apply(transition)` is the only definition of what a transition does. It is idempotent: a transition that has
already happened returns the very same run. The tracker stores its result by compare-and-set on `version`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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

    `implicit`: made by a call that named no run, so it ends when its only step ends.
    """

    run_id: str
    workflow: str
    submitted_s: float
    slo_s: float | None
    deadline_s: float | None
    implicit: bool = False
    status: RunStatus = RunStatus.RUNNING
    finished_s: float | None = None
    error: str | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    version: int = 1


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


Transition = StepStarted | StepFinished | DeadlinesDerived | RunFinished
