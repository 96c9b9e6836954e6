"""How do the runs of a workload go on in virtual time? Steps, tool times, deadlines and learning, as at the gateway.

What a plan says of the future (output lengths, tool times, steps to come) stays in here: a call is told to the outside
when it begins, with what a live gateway would know of it then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentserve.lab.kernel import Kernel
from agentserve.lab.learned import Learned
from agentserve.lab.plans import RunPlan, StepPlan, Workload
from agentserve.records import RunRecord
from workflows.deadlines import StepDeadline, derive
from workflows.forecast import observe_run_end, observe_step
from workflows.run import (
    Run,
    RunFinished,
    RunStatus,
    StepFinished,
    StepKind,
    StepStarted,
    StepStatus,
    Transition,
    new_run,
)

_MOVED_S = 0.001


@dataclass(eq=False, slots=True)
class VirtualRun:
    """One run that is under way."""

    plan: RunPlan
    run: Run
    waits_for: dict[str, set[str]] = field(default_factory=dict)
    children: dict[str, list[StepPlan]] = field(default_factory=dict)
    deadlines: Mapping[str, StepDeadline] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)
    """Step id → request id of the calls in flight."""
    left: int = 0
    has_called: bool = False


@dataclass(frozen=True, slots=True)
class BegunCall:
    """A call as it begins: what the gateway is told, and its plan for whoever plays the engines."""

    request_id: str
    run: VirtualRun
    step: StepPlan
    deadline: StepDeadline | None
    is_first: bool


class VirtualRuns:
    """Plays a workload's runs.

    `begin(call)` sends a call, `move(request_id, target_s, latest_s)` tells new deadlines of one, `cancel(request_id)`
    gives one up; whoever serves the calls says `call_ended` of each.
    """

    def __init__(
        self,
        kernel: Kernel,
        workload: Workload,
        slos: Mapping[str, float],
        *,
        begin: Callable[[BegunCall], None],
        move: Callable[[str, float, float], None],
        cancel: Callable[[str], None],
        on_run_end: Callable[[RunRecord], None],
    ) -> None:
        self._kernel = kernel
        self._slos = slos
        self._begin, self._move, self._cancel, self._on_run_end = begin, move, cancel, on_run_end
        self._learned = Learned(workload.workflows)
        self.live: dict[str, VirtualRun] = {}
        self.to_come = len(workload.plans)
        for plan in workload.plans:
            kernel.at(plan.arrival_s, self._submit, plan)

    @property
    def is_done(self) -> bool:
        """Whether every run has come and ended."""
        return not self.to_come and not self.live

    def call_ended(self, run: VirtualRun, step: StepPlan, *, ok: bool) -> None:
        """A call is over: its step ends, and what waited for it begins."""
        run.calls.pop(step.step_id, None)
        if run.plan.run_id not in self.live:
            return
        status = StepStatus.SUCCEEDED if ok else StepStatus.FAILED
        self._apply(run, StepFinished(step_id=step.step_id, status=status, at_s=self._kernel.now_s))
        if not ok:
            self._end(run, RunStatus.FAILED)
            return
        run.left -= 1
        if not run.left:
            self._end(run, RunStatus.SUCCEEDED)
            return
        for child in run.children.get(step.step_id, ()):
            waits_for = run.waits_for[child.step_id]
            waits_for.discard(step.step_id)
            if not waits_for:
                self._ready(run, child)
        if run.calls:
            self._rederive(run)

    def _submit(self, plan: RunPlan) -> None:
        self.to_come -= 1
        self._learned.workflow(plan.workflow)
        now_s = self._kernel.now_s
        run = VirtualRun(plan, new_run(plan.run_id, plan.workflow, now_s, self._slos.get(plan.run_id)))
        run.left = len(plan.steps)
        for step in plan.steps:
            run.waits_for[step.step_id] = set(step.parents)
            for parent in step.parents:
                run.children.setdefault(parent, []).append(step)
        self.live[plan.run_id] = run
        for step in plan.steps:
            if not step.parents:
                self._ready(run, step)

    def _ready(self, run: VirtualRun, step: StepPlan) -> None:
        """All that a step waited for is over: its tool runs, then its call begins."""
        if step.tool_gap_s <= 0.0:
            self._call(run, step, step.parents)
            return
        tool_id = f"{step.step_id}-tool"
        now_s = self._kernel.now_s
        self._apply(
            run,
            StepStarted(step_id=tool_id, node=step.tool_node, kind=StepKind.TOOL, parents=step.parents, at_s=now_s),
        )
        self._kernel.after(step.tool_gap_s, self._tool_ended, run, step, tool_id)

    def _tool_ended(self, run: VirtualRun, step: StepPlan, tool_id: str) -> None:
        if run.plan.run_id in self.live:
            self._call(run, step, (tool_id,))

    def _call(self, run: VirtualRun, step: StepPlan, parents: tuple[str, ...]) -> None:
        now_s = self._kernel.now_s
        self._apply(
            run,
            StepStarted(step_id=step.step_id, node=step.node, kind=StepKind.LLM, parents=parents, at_s=now_s),
        )
        for name in parents:  # a step that waited for others has begun, so those have ended
            if run.run.steps[name].status is StepStatus.RUNNING:
                self._apply(run, StepFinished(step_id=name, status=StepStatus.SUCCEEDED, at_s=now_s))
        self._rederive(run)
        is_first, run.has_called = not run.has_called, True
        request_id = f"{run.plan.run_id}.{step.step_id}"
        run.calls[step.step_id] = request_id
        self._begin(BegunCall(request_id, run, step, run.deadlines.get(step.step_id), is_first))

    def _end(self, run: VirtualRun, status: RunStatus) -> None:
        now_s = self._kernel.now_s
        del self.live[run.plan.run_id]
        self._apply(run, RunFinished(status=status, at_s=now_s))
        for request_id in list(run.calls.values()):
            self._cancel(request_id)
        self._on_run_end(
            RunRecord(
                run_id=run.plan.run_id,
                workflow=run.plan.workflow,
                submitted_s=run.run.submitted_s,
                finished_s=now_s,
                slo_s=run.run.slo_s,
                succeeded=status is RunStatus.SUCCEEDED,
            )
        )

    def _apply(self, run: VirtualRun, transition: Transition) -> None:
        """Change the run and learn."""
        now_s = self._kernel.now_s
        run.run = run.run.apply(transition)
        name = run.plan.workflow
        if isinstance(transition, StepFinished):
            step = run.run.steps[transition.step_id]
            if step.status is StepStatus.SUCCEEDED:
                self._learned.learn(name, observe_step(step.node, step.kind, now_s - step.started_s))
        if isinstance(transition, RunFinished):
            self._learned.learn(name, observe_run_end(run.run, self._learned.workflow(name)))

    def _rederive(self, run: VirtualRun) -> None:
        """Derive deadlines anew and tell those of the calls in flight; without any, nobody would hear of them."""
        now_s, name, before = self._kernel.now_s, run.plan.workflow, run.deadlines
        run.deadlines = derive(run.run, self._learned.workflow(name), self._learned.forecast(name, now_s), now_s)
        for step_id, request_id in run.calls.items():
            now, old = run.deadlines.get(step_id), before.get(step_id)
            if now is not None and _has_moved(old, now):
                self._move(request_id, now.target_s, now.latest_s)


def _has_moved(before: StepDeadline | None, now: StepDeadline) -> bool:
    return (
        before is None
        or abs(before.target_s - now.target_s) > _MOVED_S
        or abs(before.latest_s - now.latest_s) > _MOVED_S
    )
