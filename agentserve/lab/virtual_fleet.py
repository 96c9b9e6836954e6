"""Which instances are there in virtual time, what runs on them, and what is heard of it? They join, slow and die."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from agentserve.emulator.engine import Engine
from agentserve.lab.kernel import Kernel
from agentserve.lab.options import SimulatedInstance, SimulationOptions
from agentserve.lab.virtual_engine import VirtualEngine
from agentserve.lab.virtual_runs import BegunCall
from agentserve.records import CallRecord
from scheduler import events
from scheduler.frozen import builder
from scheduler.profiles.profile import GpuProfile

UNCHANGED_S = 1.0
"""A report that says nothing new is told this often."""

_new_record = builder(CallRecord)
_new_report = builder(events.InstanceReported)
_new_progress = builder(events.Progress)


class FleetListener(Protocol):
    """Who is told what the engines did, by instance."""

    def first_token(self, instance_id: str, attempt_id: str, cached_tokens: int) -> None:
        """A request put out its first token."""
        ...

    def finished(self, instance_id: str, attempt_id: str) -> None:
        """A request put out its last token."""
        ...

    def transferred(self, instance_id: str, attempt_id: str) -> None:
        """A request's KV has come from where it was."""
        ...


@dataclass(eq=False, slots=True)
class LiveCall:
    """A call in flight. `attempt_id` names it on the engine where it decodes, or is to."""

    begun: BegunCall
    arrived_s: float
    keys: tuple[int, ...]
    prefill: str = ""
    decode: str = ""
    attempt: int = 0
    attempt_id: str = ""
    cause: str | None = None
    priority: int = 0
    emitted: int = 0
    """Tokens put out before the present attempt began."""
    told: int = 0
    first_token_s: float | None = None
    cached_tokens: int | None = None
    is_prefilled: bool = False
    lease_on: str | None = None
    """The instance that pins KV for the decode leg."""
    migrations: int = 0
    split: bool = False
    served_by: str | None = None

    @property
    def prefill_id(self) -> str:
        """The attempt's name on the engine of its prefill leg."""
        return f"{self.attempt_id}p"

    def record(self, now_s: float, *, ok: bool) -> CallRecord:
        """What is recorded of a call that ends now."""
        begun, step = self.begun, self.begun.step
        return _new_record(
            request_id=begun.request_id,
            run_id=begun.run.plan.run_id,
            node=step.node,
            arrived_s=self.arrived_s,
            first_token_s=self.first_token_s,
            finished_s=now_s,
            prompt_tokens=step.prompt_tokens,
            output_tokens=step.output_tokens if ok else self.emitted,
            cached_tokens=self.cached_tokens,
            migrations=self.migrations,
            split=self.split,
            ok=ok,
        )


@dataclass(eq=False, slots=True)
class Seat:
    """One instance: its engine, and the calls it serves by the name of their attempts."""

    given: SimulatedInstance
    profile: GpuProfile
    virtual: VirtualEngine
    calls: dict[str, LiveCall] = field(default_factory=dict)
    is_live: bool = True
    last_report: tuple[int, int] = (-1, -1)
    reported_s: float = -1e9
    preemptions: int = 0


class VirtualFleet:
    """The instances of a simulation. `feed` tells the scheduler an event."""

    def __init__(
        self,
        kernel: Kernel,
        profiles: Callable[[str, str], GpuProfile],
        options: SimulationOptions,
        *,
        feed: Callable[[events.Event], None],
        listener: FleetListener,
    ) -> None:
        self._kernel = kernel
        self._profiles = profiles
        self._options = options
        self._feed = feed
        self._listener = listener
        self._ids = count(1)
        self.seats: dict[str, Seat] = {}

    def next_id(self) -> str:
        """A fresh event id."""
        return f"e{next(self._ids)}"

    def join(self, given: SimulatedInstance) -> None:
        """An instance with an empty cache becomes a candidate."""
        spec, options = given.spec, self._options
        profile = self._profiles(spec.gpu, spec.model)
        engine = Engine(
            profile,
            max_num_seqs=spec.max_num_seqs,
            max_batched_tokens=spec.max_batched_tokens,
            block_tokens=options.engine_block_tokens,
            kv_capacity_tokens=spec.kv_capacity_tokens,
            kv_link_bytes_per_s=spec.kv_link_bytes_per_s,
            use_priority=options.engine_priority and spec.supports_priority,
        )
        engine.slowdown = given.slowdown / spec.speed
        ears = _Ears(self._listener, spec.instance_id)
        self.seats[spec.instance_id] = Seat(given, profile, VirtualEngine(self._kernel, engine, ears))
        self._feed(events.InstanceJoined(event_id=self.next_id(), instance=spec))

    def lose(self, instance_id: str) -> list[tuple[str, LiveCall, int]]:
        """An instance dies with all that ran there: each attempt, its call and the tokens it had put out."""
        seat = self.seats[instance_id]
        if not seat.is_live:
            return []
        self._tell_progress(seat)
        emitted, broken = seat.virtual.emitted(), seat.calls
        seat.is_live, seat.calls = False, {}
        seat.virtual.stop()
        self._feed(events.InstanceLost(event_id=self.next_id(), instance_id=instance_id, reason="fault"))
        return [(attempt_id, call, emitted.get(attempt_id, 0)) for attempt_id, call in broken.items()]

    def come_back(self, instance_id: str) -> None:
        """A lost instance joins again, with nothing cached."""
        if not self.seats[instance_id].is_live:
            self.join(self.seats[instance_id].given)

    def drain(self, instance_id: str) -> None:
        """An instance takes no new work."""
        if self.seats[instance_id].is_live:
            self._feed(events.InstanceDraining(event_id=self.next_id(), instance_id=instance_id))

    def slow_down(self, instance_id: str, factor: float) -> None:
        """An instance becomes a straggler."""
        seat = self.seats[instance_id]
        seat.virtual.slow_down(factor * seat.given.slowdown / seat.given.spec.speed)

    def report(self, instance_id: str) -> None:
        """A worker reads its engine now, the scheduler hears of it later; without changes once a second."""
        seat, now_s = self.seats[instance_id], self._kernel.now_s
        engine = seat.virtual.engine
        counters = engine.counters
        requests, iterations = seat.last_report
        if (
            requests == counters.requests
            and iterations == counters.iterations
            and now_s - seat.reported_s < UNCHANGED_S
        ):
            return
        if not seat.is_live:
            return
        state = engine.state
        seat.last_report, seat.reported_s = (counters.requests, counters.iterations), now_s
        event = _new_report(
            event_id=self.next_id(),
            instance_id=instance_id,
            measured_at_s=now_s,
            running=state.running,
            waiting=state.waiting,
            kv_usage=state.kv_usage,
            preemptions=counters.preemptions - seat.preemptions,
        )
        seat.preemptions = counters.preemptions
        self._kernel.after(self._options.report_delay_s, self._report_came, seat, event)

    def tell_progress(self) -> None:
        """Tokens that came to the gateway since the scheduler last heard of them."""
        for seat in self.seats.values():
            if seat.is_live:
                self._tell_progress(seat)

    def _tell_progress(self, seat: Seat) -> None:
        for attempt_id, tokens in seat.virtual.emitted().items():
            call = seat.calls.get(attempt_id)
            if call is None or attempt_id != call.attempt_id:
                continue
            total = call.emitted + tokens
            if total > call.told:
                call.told = total
                self._feed(
                    _new_progress(event_id=self.next_id(), request_id=call.begun.request_id, output_tokens=total)
                )

    def _report_came(self, seat: Seat, event: events.InstanceReported) -> None:
        if seat.is_live and self.seats[event.instance_id] is seat:
            self._feed(event)


@dataclass(frozen=True, slots=True)
class _Ears:
    """Hears one engine."""

    listener: FleetListener
    instance_id: str

    def first_token(self, attempt_id: str, cached_tokens: int) -> None:
        """A request put out its first token here."""
        self.listener.first_token(self.instance_id, attempt_id, cached_tokens)

    def finished(self, attempt_id: str) -> None:
        """A request put out its last token."""
        self.listener.finished(self.instance_id, attempt_id)

    def transferred(self, attempt_id: str) -> None:
        """A request's KV has come from where it was."""
        self.listener.transferred(self.instance_id, attempt_id)
