"""What happens to runs and steps as calls, reports and requests come in? State, deadlines, journal and learning.

Redis is the truth; this process keeps the runs it works on. Every change of a run derives its deadlines anew and tells
the scheduler those of the calls in flight.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from agentserve.errors import Conflict, NotFound, Unavailable
from agentserve.gateway.identity import CallIdentity
from agentserve.gateway.learning import LONE_CALL, UNNAMED, Learning
from agentserve.gateway.ledger import Ledger
from agentserve.journal import Kind, RunEvent
from agentserve.orchestrator.driver import Orchestrator
from agentserve.records import RunRecord
from agentserve.tenants.tenant import NOBODY, Tenant
from agentserve.tracker.store import RunSummary, Store
from scheduler.events import Mode
from workflows.deadlines import StepDeadline, derive
from workflows.forecast import observe_run_end, observe_step
from workflows.graph import Workflow
from workflows.run import (
    DeadlinesDerived,
    Run,
    RunFinished,
    RunStatus,
    Step,
    StepFinished,
    StepKind,
    StepStarted,
    StepStatus,
    Together,
    Transition,
    new_run,
)

_MOVED_S: Final = 0.001
_OUTCOME: Final = {
    StepStatus.RUNNING: "running",
    StepStatus.SUCCEEDED: "ok",
    StepStatus.FAILED: "failed",
    StepStatus.CANCELLED: "cancelled",
}
DEFAULT_NODE: Final = "call"


@dataclass(eq=False, slots=True)
class CallContext:
    """A call's place: its run and step, and the deadlines that hold when it begins."""

    run: Run
    step_id: str
    node: str
    request_id: str
    is_first: bool
    deadline: StepDeadline | None


@dataclass(eq=False, slots=True)
class LiveRun:
    """A run that this process works on."""

    run: Run
    workflow: Workflow
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    deadlines: Mapping[str, StepDeadline] = field(default_factory=dict)
    calls: dict[str, CallContext] = field(default_factory=dict)
    has_called: bool = False


class RunService:
    """All that can happen to a run. Raises our errors and those of `workflows`; never leaves a run half changed.

    `restore(events)`: told the journal of a run that another gateway process began, before it goes on here.
    `blame(end)`: what to say of a run that missed its SLO, told in the event of its end, given that event.
    `foresee(end)`: what else to say there: the run's mode, and the estimate of a run that was only observed.
    """

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        *,
        clock: Callable[[], float] = time.time,
        restore: Callable[[Sequence[RunEvent]], None] | None = None,
        blame: Callable[[RunEvent], Mapping[str, Any] | None] | None = None,
        foresee: Callable[[RunEvent], Mapping[str, Any]] | None = None,
        max_known: int = 10_000,
    ) -> None:
        self.store = store
        self.learning = Learning(store, clock)
        self.ledger = Ledger(store)
        self._orchestrator = orchestrator
        self._diary = orchestrator.diary
        self._clock = clock
        self._restore = restore
        self._blame = blame
        self._foresee = foresee
        self._max_known = max_known
        self._known: OrderedDict[str, LiveRun] = OrderedDict()
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What must run beside: keeping forecasts fresh, and writing what is owed to the store."""
        return (self.learning.run, self.ledger.run)

    # -- runs --------------------------------------------------------------------------------------------------------

    async def create(
        self,
        run_id: str | None,
        workflow: str,
        *,
        slo_s: float | None = None,
        deadline_s: float | None = None,
        implicit: bool = False,
        traceparent: str | None = None,
        tenant: Tenant = NOBODY,
        first: StepStarted | None = None,
    ) -> tuple[LiveRun, bool]:
        """Submit a run, or find the one of that id; whether it is new. Conflict if it is another workflow's.

        `first`: a step that a new run begins with, stored in the same write.
        """
        slo_s = None if deadline_s is not None else slo_s
        name = run_id or tenant.inside(f"run-{uuid.uuid4().hex}")
        owner = "" if tenant is NOBODY else tenant.name
        graph = await self.learning.workflow(workflow)
        async with self._one_opener(name):
            known = self._known.get(name)
            if known is None:
                fresh = new_run(name, workflow, self._clock(), slo_s, deadline_s, implicit, owner)
                run, is_new = await self.store.create(fresh if first is None else fresh.apply(first))
                if is_new:
                    known = self._remember(LiveRun(run, graph))
                    self._tell_submitted(run, traceparent)
                    if first is not None:
                        self._tell_changes(fresh, known)
                        self._rederive(known)
                    return known, True
                known = await self._opened(run)
        if known.run.workflow != workflow:
            raise Conflict(f"run {name} is of workflow {known.run.workflow!r}, not {workflow!r}")
        return known, False

    async def show(self, run_id: str) -> tuple[Run, Mapping[str, StepDeadline]]:
        """The run, and the deadlines of its running steps as last derived. NotFound."""
        live = self._known.get(run_id)
        if live is not None:
            return live.run, live.deadlines
        return await self.store.load(run_id), {}

    async def list(self, status: RunStatus | None, limit: int, tenant: Tenant = NOBODY) -> Sequence[RunSummary]:
        """The newest runs that the tenant may see, the newest first."""
        return await self.store.list(status, limit, None if tenant.admin else tenant.name)

    async def finish(self, run_id: str, status: RunStatus, error: str | None) -> Run:
        """End a run; the same end again changes nothing. Its calls in flight are given up."""
        live = await self._open(run_id)
        async with live.lock:
            await self._apply(live, RunFinished(status=status, at_s=self._clock(), error=error))
        for request_id in tuple(live.calls):
            self._orchestrator.cancel(request_id, f"its run has ended ({status})")
        return live.run

    async def cancel(self, run_id: str) -> Run:
        """Stop a run and everything it has in flight; a run that has ended already stays as it is."""
        run, _ = await self.show(run_id)
        if run.status is not RunStatus.RUNNING:
            return run
        return await self.finish(run_id, RunStatus.CANCELLED, "cancelled by request")

    async def report(self, run_id: str, transitions: Sequence[StepStarted | StepFinished]) -> Run:
        """Apply reported starts and ends of steps, in order; stops at the first that does not fit."""
        live = await self._open(run_id)
        async with live.lock:
            for transition in transitions:
                await self._apply(live, transition)
        return live.run

    def mode_changed(self, before: Mode, now: Mode) -> None:
        """Tell every run that lives here."""
        for run_id, live in self._known.items():
            if live.run.status is RunStatus.RUNNING:
                self._diary.write(Kind.MODE_CHANGED, run_id, data={"mode": str(now), "before": str(before)})

    # -- calls -------------------------------------------------------------------------------------------------------

    async def begin_call(
        self, identity: CallIdentity, request_id: str, default_slo_s: float | None, tenant: Tenant = NOBODY
    ) -> CallContext:
        """Find or make the call's run and step. Conflict if the run has ended or the step is another node's."""
        node = identity.node or (DEFAULT_NODE if identity.step_id is None else identity.step_id)
        first = self._started(identity, identity.step_id or _implicit_id(tenant.outside(request_id)), node)
        live, has_begun = await self._run_of(identity, default_slo_s, tenant, first)
        async with live.lock:
            step_id = first.step_id
            if not has_begun and identity.step_id is None:
                step_id = self._implicit_step(live.run, node, tenant.outside(request_id))
            if live.run.status is not RunStatus.RUNNING:
                raise Conflict(f"run {live.run.run_id} has ended ({live.run.status})")
            is_first = not live.has_called and not any(
                step.kind is StepKind.LLM and step.step_id != step_id for step in live.run.steps.values()
            )
            changes: list[Transition] = [] if has_begun else [self._started(identity, step_id, node)]
            changes += self._ends_of_parents(live, identity.parents)
            if changes:
                await self._apply(live, Together(tuple(changes)))
            live.has_called = True
            context = CallContext(live.run, step_id, node, request_id, is_first, live.deadlines.get(step_id))
            live.calls[request_id] = context
            return context

    async def end_call(self, context: CallContext, outcome: str, error: str | None, *, keep_step: bool = False) -> None:
        """The call ended (ok, failed, cancelled): a step and a run that it alone made end with it.

        `keep_step`: the gateway is stopping, and the client will come back to the step.
        """
        live = self._known.get(context.run.run_id)
        if live is None or live.calls.get(context.request_id) is not context:
            return  # a repetition of the call took its place
        async with live.lock:
            del live.calls[context.request_id]
            if live.run.status is not RunStatus.RUNNING and not live.calls:
                self._known.pop(live.run.run_id, None)
            step = live.run.steps.get(context.step_id)
            is_shared = any(other.step_id == context.step_id for other in live.calls.values())
            if step is None or not step.implicit or is_shared or (keep_step and not live.run.implicit):
                return
            ends: list[Transition] = []
            if step.status is StepStatus.RUNNING:
                status = {"ok": StepStatus.SUCCEEDED, "cancelled": StepStatus.CANCELLED}.get(outcome, StepStatus.FAILED)
                ends.append(StepFinished(step_id=step.step_id, status=status, at_s=self._clock(), error=error))
            if live.run.implicit and live.run.status is RunStatus.RUNNING:
                ended = {"ok": RunStatus.SUCCEEDED, "cancelled": RunStatus.CANCELLED}.get(outcome, RunStatus.FAILED)
                ends.append(RunFinished(status=ended, at_s=self._clock(), error=error))
            if ends:
                await self._apply(live, Together(tuple(ends)))

    async def _run_of(
        self, identity: CallIdentity, default_slo_s: float | None, tenant: Tenant, first: StepStarted
    ) -> tuple[LiveRun, bool]:
        """The run that a call names, or a new one that begins with `first`; whether it did."""
        if identity.run_id is not None:
            try:
                return await self._open(identity.run_id), False
            except NotFound:
                pass
        slo_s = identity.slo_s if identity.slo_s is not None else default_slo_s
        return await self.create(
            identity.run_id,
            identity.workflow or tenant.inside(LONE_CALL if identity.run_id is None else UNNAMED),
            slo_s=slo_s,
            deadline_s=identity.deadline_s,
            implicit=identity.run_id is None,
            traceparent=identity.traceparent,
            tenant=tenant,
            first=first,
        )

    def _started(self, identity: CallIdentity, step_id: str, node: str) -> StepStarted:
        return StepStarted(
            step_id=step_id,
            node=node,
            kind=StepKind.LLM,
            parents=identity.parents,
            implicit=identity.step_id is None,
            at_s=self._clock(),
        )

    def _implicit_step(self, run: Run, node: str, request_id: str) -> str:
        """The id of a bare call's step: the same again for the same call, another once that step has ended."""
        first = _implicit_id(request_id)
        step_id, attempt = first, 1
        while (step := run.steps.get(step_id)) is not None and (
            step.status is not StepStatus.RUNNING or step.node != node
        ):
            attempt += 1
            step_id = f"{first}~{attempt}"
        return step_id

    def _ends_of_parents(self, live: LiveRun, parents: Sequence[str]) -> Sequence[Transition]:
        """A step that waited for others has begun, so those have ended, whether their ends were reported or not."""
        busy = {context.step_id for context in live.calls.values()}
        waited_for = (live.run.steps.get(name) for name in dict.fromkeys(parents) if name not in busy)
        return [
            StepFinished(step_id=parent.step_id, status=StepStatus.SUCCEEDED, at_s=self._clock())
            for parent in waited_for
            if parent is not None and parent.status is StepStatus.RUNNING
        ]

    # -- one change --------------------------------------------------------------------------------------------------

    async def _apply(self, live: LiveRun, transition: Transition) -> None:
        """Change the run, tell the journal, learn, and derive deadlines anew; nothing of it if nothing changes."""
        before = live.run
        if before.apply(transition) is before:
            return
        live.run = await self.ledger.apply(before, transition)
        self._tell_changes(before, live)
        self._rederive(live)
        if live.run.status is not RunStatus.RUNNING:
            self._tell_run_end(live)
            if not live.calls:
                self._known.pop(live.run.run_id, None)

    def _rederive(self, live: LiveRun) -> None:
        forecast = self.learning.forecast(live.workflow)
        before, now = live.deadlines, derive(live.run, live.workflow, forecast, self._clock())
        live.deadlines = now
        moved = {name: one for name, one in now.items() if _has_moved(before.get(name), one)}
        if not moved:
            return
        for step_id, one in moved.items():
            self._tell_deadline(live.run, step_id, one)
        for context in live.calls.values():
            if context.step_id in moved:
                mine = moved[context.step_id]
                self._orchestrator.move_deadlines(context.request_id, mine.target_s, mine.latest_s)
        derived = {name: (one.target_s, one.latest_s) for name, one in now.items()}
        self.ledger.deadlines(live.run.run_id, DeadlinesDerived(deadlines=derived))

    async def _open(self, run_id: str) -> LiveRun:
        async with self._one_opener(run_id):
            live = self._known.get(run_id)
            if live is None:
                live = await self._opened(await self.store.load(run_id))
            else:
                self._known.move_to_end(run_id)
            return live

    async def _opened(self, run: Run) -> LiveRun:
        """Go on with a run from the store: who restores from its journal is told of it, deadlines are derived."""
        live = LiveRun(run, await self.learning.workflow(run.workflow))
        if run.status is RunStatus.RUNNING:
            if self._restore is not None:
                self._restore(await self.store.read(run.run_id))
            self._remember(live)
            self._rederive(live)
        return live

    def _one_opener(self, run_id: str) -> asyncio.Lock:
        """Of several requests that bring the same unknown run, one makes or loads it."""
        lock = self._opening.get(run_id)
        if lock is None:
            lock = self._opening[run_id] = asyncio.Lock()
        return lock

    def _remember(self, live: LiveRun) -> LiveRun:
        self._known[live.run.run_id] = live
        if len(self._known) > self._max_known:
            idle = next((name for name, one in self._known.items() if not one.calls and not one.lock.locked()), None)
            if idle is None:
                raise Unavailable(f"{self._max_known} runs are in flight already")
            del self._known[idle]
        return live

    # -- journal and learning ----------------------------------------------------------------------------------------

    def _tell_submitted(self, run: Run, traceparent: str | None) -> None:
        data: dict[str, Any] = {"workflow": run.workflow, "slo_s": run.slo_s, "deadline_s": run.deadline_s}
        data |= {"traceparent": traceparent, "mode": str(self._orchestrator.mode)}
        self._diary.write(Kind.RUN_SUBMITTED, run.run_id, data=data, at_s=run.submitted_s)

    def _tell_changes(self, before: Run, live: LiveRun) -> None:
        for step_id, step in live.run.steps.items():
            old = before.steps.get(step_id)
            if old is None:
                data = {"node": step.node, "kind": str(step.kind), "parents": list(step.parents)}
                self._diary.write(Kind.STEP_STARTED, live.run.run_id, step_id, data=data)
            if step.status is not StepStatus.RUNNING and (old is None or old.status is StepStatus.RUNNING):
                self._tell_step_end(live, step)

    def _tell_step_end(self, live: LiveRun, step: Step) -> None:
        data = {"node": step.node, "outcome": _OUTCOME[step.status], "error": step.error}
        self._diary.write(Kind.STEP_FINISHED, live.run.run_id, step.step_id, data=data)
        if step.status is StepStatus.SUCCEEDED and step.finished_s is not None:
            duration_s = step.finished_s - step.started_s
            self.learning.learn(live.workflow.name, observe_step(step.node, step.kind, duration_s))

    def _tell_deadline(self, run: Run, step_id: str, one: StepDeadline) -> None:
        data = {
            "node": run.steps[step_id].node,
            "target_deadline_s": one.target_s,
            "latest_deadline_s": one.latest_s,
            "slack_s": one.slack_s,
            "predicted_s": one.predicted_s,
            "downstream_s": one.downstream_s,
        }
        self._diary.write(Kind.STEP_DEADLINES, run.run_id, step_id, data=data)

    def _tell_run_end(self, live: LiveRun) -> None:
        run = live.run
        record = RunRecord(
            run_id=run.run_id,
            workflow=run.workflow,
            submitted_s=run.submitted_s,
            finished_s=run.finished_s if run.finished_s is not None else self._clock(),
            slo_s=run.slo_s,
            succeeded=run.status is RunStatus.SUCCEEDED,
        )
        data = {"status": str(run.status), "e2e_s": record.e2e_s, "attained": record.attained, "error": run.error}
        end = RunEvent(run_id=run.run_id, kind=Kind.RUN_FINISHED, at_s=self._clock(), data=data)
        data["blame"] = self._blame(end) if self._blame is not None else None
        told = self._foresee(end) if self._foresee is not None else {}
        # A switch while no gateway held the run is in no journal.
        mode = told.get("mode") if told.get("mode") == self._orchestrator.mode else None
        data |= {"mode": mode, "foreseen": told.get("foreseen")}
        self._diary.write(Kind.RUN_FINISHED, run.run_id, data=data, at_s=end.at_s)
        self.learning.learn(live.workflow.name, observe_run_end(run, live.workflow))
        self._orchestrator.run_ended(run.run_id, succeeded=record.succeeded)


def _implicit_id(request_id: str) -> str:
    return f"{DEFAULT_NODE}-{request_id}"[:120]


def _has_moved(before: StepDeadline | None, now: StepDeadline) -> bool:
    return (
        before is None
        or abs(before.target_s - now.target_s) > _MOVED_S
        or abs(before.latest_s - now.latest_s) > _MOVED_S
    )
