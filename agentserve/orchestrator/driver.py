"""How is the pure scheduler driven live? Facts become events, decisions become acts; one task per call.

`feed` is the only way into the core, so its inputs are totally ordered and a recorded log replays exactly.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

from agentserve.engines import open_adapter
from agentserve.engines.adapter import EngineAdapter
from agentserve.engines.http import EngineUnreachable, Limits
from agentserve.engines.networks import Networks
from agentserve.errors import AgentServeError, TooLarge, Unavailable
from agentserve.journal import Kind, Sink
from agentserve.orchestrator.acts import Acts
from agentserve.orchestrator.call import Attempt, CallFailed, LiveCall
from agentserve.orchestrator.diary import Diary
from agentserve.orchestrator.eventlog import EventLog
from agentserve.orchestrator.instances import Instance, gate_for
from agentserve.orchestrator.legs import release, settle
from agentserve.orchestrator.prompts import PromptSizer
from agentserve.orchestrator.request import CallRequest, migration_refusal
from agentserve.orchestrator.serving import serve_call
from agentserve.orchestrator.stream import JoinedStream
from agentserve.settings import Settings
from scheduler import events
from scheduler.core import Scheduler
from scheduler.errors import SchedulerError

logger = logging.getLogger(__name__)


class Orchestrator:
    """Serves calls on the instances it was told of; an async context manager that owns every task it starts.

    `on_unreachable(instance_id, reason)`: an engine did not answer (the registry then calls `lost`); without it the
    instance is taken out here. `traceparent(request_id)`: the W3C header for engines. `clock`: Unix seconds.
    `on_handled(event type, seconds)`: how long the scheduler took for an event.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        *,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.time,
        event_log: EventLog | None = None,
        traceparent: Callable[[str], str | None] | None = None,
        on_unreachable: Callable[[str, str], None] | None = None,
        on_handled: Callable[[str, float], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.settings = settings
        self.clock = clock
        self.diary = Diary(sinks, clock)
        self.instances: dict[str, Instance] = {}
        self.calls: dict[str, LiveCall] = {}
        self.accepting = True
        self.mode = events.Mode.SPLIT
        self.on_unreachable = on_unreachable
        self._limits = Limits(
            connect_timeout_s=settings.connect_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
        self._networks = Networks.parse(settings.engine_networks)
        self._api_key = settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
        self._log = event_log
        self._on_handled = on_handled
        self.traceparent = traceparent
        self.sizer = PromptSizer()
        self._ids = itertools.count(1)
        self._inbox: deque[events.Event] = deque()
        self._handling = False
        self._acts = Acts(self)
        self._tasks = asyncio.TaskGroup()
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if self._log is not None:
            self._tasks.create_task(self._until_stopped(self._log.run()))
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self._acts.stop_timer()
        self.stop_calls()
        self._stopping.set()
        await self._tasks.__aexit__(None, None, None)
        for instance in self.instances.values():
            await instance.adapter.close()

    async def _until_stopped(self, work: Any) -> None:
        """Run `work` for as long as the orchestrator lives."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            await self._stopping.wait()
            task.cancel()

    # -- instances ---------------------------------------------------------------------------------------------------

    def joined(
        self,
        spec: events.InstanceSpec,
        url: str,
        engine: str,
        kv_address: str | None = None,
        *,
        announced: bool = False,
    ) -> None:
        """An instance is a candidate, new or again. Raises SchedulerError or AgentServeError if it cannot be used.

        `announced`: a worker says so, and it must be inside of the configured networks.
        """
        if announced:
            self._networks.check_announced(url, kv_address)
        known = self.instances.get(spec.instance_id)
        is_same = known is not None and known.is_reached_as(spec, url, engine, kv_address)
        if known is not None and is_same:
            adapter = known.adapter
        else:
            adapter = open_adapter(
                engine,
                url,
                supports_priority=spec.supports_priority,
                kv_address=kv_address,
                api_key=self._api_key,
                limits=replace(self._limits, networks=self._networks) if announced else self._limits,
            )
        try:
            self._handle(events.InstanceJoined(event_id=self.next_id(), instance=spec))
        except SchedulerError:
            if not is_same:
                self._close_soon(adapter)
            raise
        if known is not None and not is_same:
            self._close_soon(known.adapter)
        # Put in place before decisions that name it are carried out by the calls' tasks, which run later.
        gate = known.gate if known is not None and is_same and known.spec == spec else gate_for(spec)
        self.instances[spec.instance_id] = Instance(spec, url, engine, adapter, kv_address, gate)
        self._pump()

    def reported(self, instance_id: str, measured_at_s: float, **figures: Any) -> None:
        """A worker's report; `figures` are InstanceReported's fields."""
        instance = self.instances.get(instance_id)
        if instance is None or not instance.is_live:
            return
        instance.reported = {"measured_at_s": measured_at_s, **figures}
        self.feed(
            events.InstanceReported(
                event_id=self.next_id(), instance_id=instance_id, measured_at_s=measured_at_s, **figures
            )
        )

    def draining(self, instance_id: str) -> None:
        """An instance takes no new work."""
        instance = self.instances.get(instance_id)
        if instance is not None and instance.is_live:
            instance.state = "draining"
            self.feed(events.InstanceDraining(event_id=self.next_id(), instance_id=instance_id))

    def lost(self, instance_id: str, reason: str) -> None:
        """An instance is gone: no candidate any more, and what ran there goes on elsewhere."""
        instance = self.instances.get(instance_id)
        if instance is None or not instance.is_live:
            return
        instance.drained = instance.state == "draining"
        instance.state, instance.reason, instance.reported = "lost", reason, {}
        self.feed(events.InstanceLost(event_id=self.next_id(), instance_id=instance_id, reason=reason))
        for live in tuple(self.calls.values()):
            if instance_id in live.runs_on and live.leg is not None and not live.leg.done():
                live.runs_on = (instance_id,)
                self._break_leg(live, f"instance {instance_id} is lost: {reason}")

    def _break_leg(self, live: LiveCall, why: str) -> None:
        # A call that cannot go on elsewhere stays: its engine may live on behind a worker that died.
        if live.stream.finish_reason is not None or not (live.stream.can_go_on or live.may_restart):
            return
        live.broken = EngineUnreachable(why)
        if live.leg is not None:
            live.leg.cancel()

    def models(self) -> tuple[str, ...]:
        """Models that a live instance serves, in order of name."""
        return tuple(sorted({one.spec.model for one in self.instances.values() if one.is_live}))

    # -- calls -------------------------------------------------------------------------------------------------------

    def submit(self, request: CallRequest) -> LiveCall:
        """Take a call; its answer comes through the returned object. TooLarge, or Unavailable while stopping."""
        if not self.accepting:
            raise Unavailable("the gateway is stopping; try again")
        ids = request.resume and (*request.resume.prompt_ids, *request.resume.token_ids)
        estimate = self.sizer.estimate(request.model, request.body, ids or None)
        if estimate.tokens > self.settings.max_prompt_tokens:
            raise TooLarge(
                f"the prompt has about {estimate.tokens} tokens; the limit is {self.settings.max_prompt_tokens}"
            )
        refusal = migration_refusal(request.path, request.body) or self._replay_refusal(request.model)
        live = LiveCall(request, JoinedStream(request, refusal), estimate, self.clock())
        self.calls[request.request_id] = live
        self.diary.of_call(
            live,
            Kind.CALL_ARRIVED,
            node=request.node,
            model=request.model,
            prompt_tokens=estimate.tokens,
            stream=request.wants_stream,
            traceparent=request.traceparent,
        )
        live.task = self._tasks.create_task(serve_call(self, live), name=f"call {request.request_id}")
        self.feed(self._arrival(live))
        return live

    def cancel(self, request_id: str, why: str = "the client left") -> bool:
        """Give up a call and free its engines at once; whether it was in flight."""
        live = self.calls.get(request_id)
        if live is None:
            return False
        self._cancel(live, CallFailed(f"cancelled: {why}", 409, "cancelled"))
        return True

    def move_deadlines(self, request_id: str, target_s: float | None, latest_s: float | None) -> None:
        """The call's run changed elsewhere, so its deadlines did too."""
        if request_id in self.calls:
            self.feed(
                events.DeadlinesMoved(
                    event_id=self.next_id(),
                    request_id=request_id,
                    target_deadline_s=target_s,
                    latest_deadline_s=latest_s,
                )
            )

    def run_ended(self, run_id: str, *, succeeded: bool) -> None:
        """A run is over: the scheduler learns from it and forgets it."""
        self.feed(events.RunEnded(event_id=self.next_id(), run_id=run_id, succeeded=succeeded))

    def switch(self, mode: events.Mode, observed: str) -> None:
        """Do what the mode allows from the next decision on; in `observe`, the policy `observed` places the calls."""
        self.mode = mode
        self.feed(events.ModeChanged(event_id=self.next_id(), mode=mode, observed=observed))

    async def drain(self, timeout_s: float) -> bool:
        """Take no new calls and wait for those in flight; whether all ended in time."""
        self.accepting = False
        tasks = [live.task for live in self.calls.values() if live.task is not None]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        return not late

    def stop_calls(self) -> None:
        """Take no new calls and end those in flight now; their clients are told that the gateway stops."""
        self.accepting = False
        for live in tuple(self.calls.values()):
            self._cancel(live, CallFailed("the gateway is stopping", 503, "stopping"))

    def snapshot(self) -> dict[str, Any]:
        """Instances as reported and as the scheduler estimates them, and how many calls are in flight."""
        estimated = self.scheduler.snapshot()
        instances = [self.instances[name].to_plain() for name in sorted(self.instances)]
        return {"instances": instances, "scheduler": estimated, "live_calls": len(self.calls)}

    # -- the core ----------------------------------------------------------------------------------------------------

    def next_id(self) -> str:
        """A fresh event id."""
        return f"e{next(self._ids)}"

    def feed(self, event: events.Event) -> None:
        """Give the core a fact and carry out what it decides; events that acts cause come after them, in order."""
        self._inbox.append(event)
        if not self._handling:
            self._pump()

    def wake(self) -> None:
        """The time that the core asked for has come."""
        self.feed(events.Woke(event_id=self.next_id()))

    def _pump(self) -> None:
        self._handling = True
        try:
            while self._inbox:
                event = self._inbox.popleft()
                try:
                    self._handle(event)
                except SchedulerError as error:
                    logger.warning("the scheduler refused %s: %s", type(event).__name__, error)
        finally:
            self._handling = False

    def _handle(self, event: events.Event) -> None:
        now_s = self.clock()
        was_handling, self._handling = self._handling, True
        try:
            began_s = time.perf_counter()
            decisions = self.scheduler.handle(event, now_s)
            if self._on_handled is not None:
                self._on_handled(type(event).__name__, time.perf_counter() - began_s)
            if self._log is not None:
                self._log.record(now_s, event, decisions)
            for decision in decisions:
                self._acts.carry_out(decision)
        finally:
            self._handling = was_handling

    def _arrival(self, live: LiveCall) -> events.RequestArrived:
        request, estimate = live.request, live.estimate
        return events.RequestArrived(
            event_id=self.next_id(),
            request_id=request.request_id,
            model=request.model,
            prompt_tokens=estimate.tokens,
            max_tokens=request.max_tokens,
            run_id=request.run_id,
            workflow=request.workflow,
            node=request.node,
            tenant=request.tenant,
            tenant_weight=request.tenant_weight,
            run_deadline_s=request.run_deadline_s,
            target_deadline_s=request.target_deadline_s,
            latest_deadline_s=request.latest_deadline_s,
            downstream_s=request.downstream_s,
            first_call_of_run=request.first_call_of_run,
            session_id=request.session_id,
            prefix_hashes=estimate.hashes,
            prefix_block_tokens=estimate.block_tokens,
            migration_refused=live.stream.refusal,
        )

    def _replay_refusal(self, model: str) -> str | None:
        serving = [one.spec for one in self.instances.values() if one.spec.model == model and one.is_live]
        if serving and not any(spec.supports_replay for spec in serving):
            return "its engines give no token ids"
        return None

    def _cancel(self, live: LiveCall, error: CallFailed) -> None:
        self.conclude(live, "cancelled", error)
        self.feed(events.RequestCancelled(event_id=self.next_id(), request_id=live.request_id))
        if live.task is not None:
            live.task.cancel()

    def give_up(self, live: LiveCall, error: CallFailed) -> None:
        """End a call that failed on our side; the core forgets it."""
        if live.outcome is None:
            self.conclude(live, "failed", error)
            self.feed(events.RequestCancelled(event_id=self.next_id(), request_id=live.request_id))

    def conclude(self, live: LiveCall, outcome: str, error: AgentServeError | None = None) -> None:
        """End a call once and for all; what comes later is ignored."""
        if live.outcome is not None:
            return
        live.outcome, live.error = outcome, error
        live.record = self.diary.call_ended(live)
        if self.calls.get(live.request_id) is live:
            del self.calls[live.request_id]
        live.end(outcome, error)

    def adapter(self, instance_id: str) -> EngineAdapter:
        """How to reach an instance; EngineUnreachable if it is not known."""
        instance = self.instances.get(instance_id)
        if instance is None:
            raise EngineUnreachable(f"instance {instance_id} is not known")
        return instance.adapter

    @asynccontextmanager
    async def seat(self, attempt: Attempt) -> AsyncIterator[None]:
        """Hold an attempt back until its turn, where the engine that decodes it knows no priorities."""
        instance = self.instances.get(attempt.decode)
        if instance is None or instance.gate is None:
            yield
            return
        async with instance.gate.seat(attempt.priority):
            yield

    def release_soon(self, attempt: Attempt, handoff: Mapping[str, Any]) -> None:
        """Have the KV freed that a prefill leg left for nobody; what comes of it is not waited for."""
        if not self._stopping.is_set():
            self._tasks.create_task(release(self, attempt, handoff))

    def settle_soon(self, attempt: Attempt, prefill: asyncio.Future[Mapping[str, Any]]) -> None:
        """End a prefill leg that is not wanted any more, and free what it kept; not waited for."""
        if self._stopping.is_set():
            prefill.cancel()
        else:
            self._tasks.create_task(settle(self, attempt, prefill))

    def _close_soon(self, adapter: EngineAdapter) -> None:
        self._tasks.create_task(adapter.close())
