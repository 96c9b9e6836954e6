"""How is each decision of the scheduler carried out on virtual engines? The live driver's acts, without a network.

The scheduler sees what it would see live: reports at the workers' pace and as late as they come, first tokens, progress
and ends. True output lengths are known to the engines alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from agentserve.emulator.sequence import EngineRequest, RemoteKv
from agentserve.lab.kernel import Kernel
from agentserve.lab.options import SimulatedInstance, SimulationOptions
from agentserve.lab.prefix_keys import answer_keys, coarse, prompt_keys
from agentserve.lab.results import Placement
from agentserve.lab.virtual_fleet import LiveCall, Seat, VirtualFleet
from agentserve.lab.virtual_runs import BegunCall
from agentserve.records import CallRecord
from scheduler import events
from scheduler.core import Scheduler
from scheduler.decisions import Cancel, Decision, Dispatch, Hold, Migrate, MoveBy, Reject, WakeAt
from scheduler.frozen import builder
from scheduler.profiles.profile import GpuProfile

__all__ = ["LiveCall", "VirtualCalls"]

PREFIX_TOKENS = 256
"""Prompt tokens per prefix hash that the scheduler is told, about what the live gateway's chunks hold."""

_new_arrival = builder(events.RequestArrived)
_new_deadlines = builder(events.DeadlinesMoved)
_new_first_token = builder(events.FirstToken)
_new_finish = builder(events.RequestFinished)
_new_request = builder(EngineRequest)
_new_placement = builder(Placement)


class VirtualCalls:
    """Serves calls. `on_end(call, record)` is told of each that ended, well or not."""

    def __init__(
        self,
        kernel: Kernel,
        scheduler: Scheduler,
        instances: Sequence[SimulatedInstance],
        profiles: Callable[[str, str], GpuProfile],
        model: str,
        options: SimulationOptions,
        on_end: Callable[[LiveCall, CallRecord], None],
    ) -> None:
        self._kernel = kernel
        self._scheduler = scheduler
        self._model = model
        self._options = options
        self._on_end = on_end
        self._woken = 0
        self._ended: deque[tuple[LiveCall, CallRecord]] = deque()
        self.calls: dict[str, LiveCall] = {}
        self.placements: list[Placement] = []
        self.errors: dict[str, int] = {}
        self.fleet = VirtualFleet(kernel, profiles, options, feed=self._feed, listener=self)
        for given in instances:
            self.fleet.join(given)

    @property
    def seats(self) -> dict[str, Seat]:
        """The instances by their ids."""
        return self.fleet.seats

    # Instances

    def lose(self, instance_id: str) -> None:
        """An instance dies: its calls go on elsewhere from what they put out."""
        for attempt_id, call, tokens in self.fleet.lose(instance_id):
            if call.begun.request_id in self.calls and attempt_id in (call.attempt_id, call.prefill_id):
                call.emitted += tokens if attempt_id == call.attempt_id else 0
                self._close_legs(call, but=instance_id)
                self._fail(call, instance_id, "the instance died")

    def tell_progress(self) -> None:
        """Tokens that came to the gateway since the scheduler last heard of them."""
        self.fleet.tell_progress()

    # Calls

    def begin(self, begun: BegunCall) -> None:
        """A call reached the gateway."""
        step, run, deadline = begun.step, begun.run, begun.deadline
        block_tokens = self._options.engine_block_tokens
        keys = prompt_keys(run.plan, step, block_tokens)
        call = LiveCall(begun, self._kernel.now_s, keys)
        self.calls[begun.request_id] = call
        self._feed(
            _new_arrival(
                event_id=self.fleet.next_id(),
                request_id=begun.request_id,
                model=self._model,
                prompt_tokens=step.prompt_tokens,
                max_tokens=None,
                run_id=run.plan.run_id,
                workflow=run.plan.workflow,
                node=step.node,
                run_deadline_s=run.run.deadline_s,
                target_deadline_s=deadline.target_s if deadline is not None else None,
                latest_deadline_s=deadline.latest_s if deadline is not None else None,
                downstream_s=deadline.downstream_s if deadline is not None else 0.0,
                first_call_of_run=begun.is_first,
                session_id=run.plan.session_id,
                prefix_hashes=coarse(keys, block_tokens, PREFIX_TOKENS),
                tenant=run.plan.tenant,
                prefix_block_tokens=max(PREFIX_TOKENS // block_tokens, 1) * block_tokens,
            )
        )

    def move_deadlines(self, request_id: str, target_s: float, latest_s: float) -> None:
        """A call in flight got other deadlines."""
        if request_id in self.calls:
            self._feed(
                _new_deadlines(
                    event_id=self.fleet.next_id(),
                    request_id=request_id,
                    target_deadline_s=target_s,
                    latest_deadline_s=latest_s,
                )
            )

    def cancel(self, request_id: str) -> None:
        """Nobody wants a call any more."""
        call = self.calls.get(request_id)
        if call is not None:
            self._close_legs(call)
            self._conclude(call, ok=False)
            self._feed(events.RequestCancelled(event_id=self.fleet.next_id(), request_id=request_id))

    def run_ended(self, run_id: str, *, succeeded: bool) -> None:
        """A run is over."""
        self._feed(events.RunEnded(event_id=self.fleet.next_id(), run_id=run_id, succeeded=succeeded))

    # What engines say

    def first_token(self, instance_id: str, attempt_id: str, cached_tokens: int) -> None:
        """The first token of an attempt, or the only one of a prefill leg."""
        call = self.seats[instance_id].calls.get(attempt_id)
        if call is None:
            return
        if attempt_id != call.attempt_id:
            if call.cause is None:
                call.cached_tokens = cached_tokens
            return
        now_s = self._kernel.now_s
        if call.first_token_s is None:
            call.first_token_s = now_s
        if call.cause is None and call.cached_tokens is None:
            call.cached_tokens = cached_tokens
        if call.served_by not in (None, instance_id):
            call.migrations += 1
        call.served_by = instance_id
        cached = call.cached_tokens if call.cause is None else None
        self._feed(
            _new_first_token(event_id=self.fleet.next_id(), request_id=call.begun.request_id, cached_tokens=cached),
        )

    def finished(self, instance_id: str, attempt_id: str) -> None:
        """A request ended on its engine: a prefill leg, or the whole call."""
        call = self.seats[instance_id].calls.pop(attempt_id, None)
        if call is None:
            return
        if attempt_id != call.attempt_id:
            self._prefilled(call, instance_id, attempt_id)
            return
        step = call.begun.step
        self._conclude(call, ok=True)
        self._feed(
            _new_finish(
                event_id=self.fleet.next_id(),
                request_id=call.begun.request_id,
                prompt_tokens=step.prompt_tokens,
                output_tokens=step.output_tokens,
                cached_tokens=call.cached_tokens,
            )
        )

    def transferred(self, instance_id: str, attempt_id: str) -> None:
        """A decode leg has its KV: the prefill side may free it."""
        call = self.seats[instance_id].calls.get(attempt_id)
        if call is not None and call.lease_on is not None:
            self.seats[call.lease_on].virtual.release(call.prefill_id)
            call.lease_on = None

    # Decisions

    def _feed(self, event: events.Event) -> None:
        for decision in self._scheduler.handle(event, self._kernel.now_s):
            self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case WakeAt():
                self._woken += 1
                self._kernel.at(decision.at_s, self._wake, self._woken)
            case Dispatch():
                self._assign(decision.request_id, decision.prefill_instance, decision.decode_instance, decision, None)
            case Migrate():
                source = decision.source if decision.by is MoveBy.KV else decision.target
                self._assign(decision.request_id, source, decision.target, decision, str(decision.cause))
            case Hold():
                pass
            case Cancel() | Reject():
                self._give_up(decision)
            case _:
                assert_never(decision)

    def _assign(
        self, request_id: str, prefill: str, decode: str, decision: Dispatch | Migrate, cause: str | None
    ) -> None:
        call = self.calls.get(request_id)
        if call is None:
            return
        if isinstance(decision, Migrate):
            self._stop_at_source(call)
        call.cause = cause or ("lost" if call.attempt else None)
        call.attempt, call.prefill, call.decode = decision.attempt, prefill, decode
        call.priority, call.attempt_id = decision.priority, f"{request_id}#{decision.attempt}"
        call.is_prefilled = prefill == decode
        call.split = call.split or (prefill != decode and isinstance(decision, Dispatch))
        self.placements.append(
            _new_placement(
                request_id=request_id,
                at_s=self._kernel.now_s,
                prefill_instance=prefill,
                decode_instance=decode,
                cause=call.cause or "dispatch",
            )
        )
        self._kernel.after(self._options.relay_s, self._send, call, decision.attempt)

    def _send(self, call: LiveCall, attempt: int) -> None:
        """The request reaches its engine, unless something overtook it."""
        if attempt != call.attempt or call.begun.request_id not in self.calls:
            return
        instance_id = call.decode if call.is_prefilled else call.prefill
        seat = self.seats[instance_id]
        if not seat.is_live:
            self._fail(call, instance_id, "the instance is gone")
            return
        if call.is_prefilled:
            self._add(seat, call.attempt_id, call, tokens_left=call.begun.step.output_tokens - call.emitted)
        else:
            self._add(seat, call.prefill_id, call, tokens_left=1, keep_kv=True)

    def _add(
        self,
        seat: Seat,
        name: str,
        call: LiveCall,
        *,
        tokens_left: int,
        keep_kv: bool = False,
        remote_kv: RemoteKv | None = None,
    ) -> None:
        step, block_tokens = call.begun.step, self._options.engine_block_tokens
        prompt = step.prompt_tokens + call.emitted
        total = step.prompt_tokens + step.output_tokens
        request = _new_request(
            request_id=name,
            prompt_tokens=prompt,
            output_tokens=max(tokens_left, 1),
            block_keys=(*call.keys, *answer_keys(call.begun.request_id, len(call.keys), total, block_tokens)),
            priority=call.priority,
            keep_kv=keep_kv,
            remote_kv=remote_kv,
        )
        try:
            seat.virtual.add(request)
        except ValueError as error:
            self._fail(call, seat.given.spec.instance_id, str(error), retryable=False)
            return
        seat.calls[name] = call

    def _prefilled(self, call: LiveCall, instance_id: str, attempt_id: str) -> None:
        """A prefill leg ended: the decode leg pulls its KV."""
        source = self.seats[instance_id]
        lease = source.virtual.engine.lease(attempt_id)
        call.is_prefilled, call.lease_on = True, instance_id
        target = self.seats[call.decode]
        self._feed(events.PrefillFinished(event_id=self.fleet.next_id(), request_id=call.begun.request_id))
        if lease is None or not target.is_live:
            self._close_legs(call)
            self._fail(call, call.decode, "the KV could not be handed over")
            return
        link = source.given.spec.kv_link_bytes_per_s or source.profile.kv_link_bytes_per_s
        left = call.begun.step.output_tokens - call.emitted
        remote = RemoteKv(tokens=lease.tokens, link_bytes_per_s=link)
        self._add(target, call.attempt_id, call, tokens_left=left, remote_kv=remote)

    def _stop_at_source(self, call: LiveCall) -> None:
        """A running call leaves: what it put out so far is kept."""
        seat = self.seats[call.decode]
        if seat.is_live:
            call.emitted += seat.virtual.emitted().get(call.attempt_id, 0)
        self._close_legs(call)

    def _close_legs(self, call: LiveCall, but: str | None = None) -> None:
        """Abort what runs for a call and free what is pinned for it."""
        for instance_id, name in ((call.prefill, call.prefill_id), (call.decode, call.attempt_id)):
            seat = self.seats.get(instance_id)
            if seat is not None and instance_id != but and seat.calls.pop(name, None) is not None:
                seat.virtual.abort(name)
                if name == call.prefill_id:
                    seat.virtual.release(name)  # the iteration that runs may be its last, which pins its KV
        if call.lease_on is not None:
            self.seats[call.lease_on].virtual.release(call.prefill_id)
            call.lease_on = None

    def _fail(self, call: LiveCall, instance_id: str, error: str, *, retryable: bool = True) -> None:
        self._feed(
            events.RequestFailed(
                event_id=self.fleet.next_id(),
                request_id=call.begun.request_id,
                instance_id=instance_id,
                output_tokens=call.emitted,
                error=error,
                retryable=retryable,
            )
        )

    def _give_up(self, decision: Cancel | Reject) -> None:
        call = self.calls.get(decision.request_id)
        if call is None:
            return
        if isinstance(decision, Reject):
            self.errors[decision.refusal.value] = self.errors.get(decision.refusal.value, 0) + 1
        self._close_legs(call)
        self._conclude(call, ok=False)

    def _conclude(self, call: LiveCall, *, ok: bool) -> None:
        del self.calls[call.begun.request_id]
        # Told after the scheduler has heard of the end, like a client that calls again when it has its answer.
        self._ended.append((call, call.record(self._kernel.now_s, ok=ok)))
        self._kernel.after(0.0, self._tell_ends)

    def _tell_ends(self) -> None:
        """All at once: the first may end the last run, after which nothing more happens."""
        while self._ended:
            self._on_end(*self._ended.popleft())

    def _wake(self, number: int) -> None:
        if number == self._woken:
            self._feed(events.Woke(event_id=self.fleet.next_id()))
