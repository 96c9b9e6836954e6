"""What does the scheduler decide at each event? The table from events to decisions, and the order of their checks."""

from collections.abc import Callable, Mapping
from typing import Any

from scheduler import risk
from scheduler.call import Call, CallState
from scheduler.check import check_deadlines, check_instance, check_output, check_report, check_request
from scheduler.config import SchedulerConfig
from scheduler.decisions import Cancel, Decision, Dispatch, Explanation, Hold, Migrate, Refusal, Reject, WakeAt
from scheduler.errors import InvalidEvent
from scheduler.events import (
    DeadlinesMoved,
    Event,
    FirstToken,
    InstanceDraining,
    InstanceJoined,
    InstanceLost,
    InstanceReported,
    MigrationRefused,
    Mode,
    ModeChanged,
    PrefillFinished,
    Progress,
    RequestArrived,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RunEnded,
    Woke,
)
from scheduler.frozen import builder
from scheduler.integrity import check_integrity
from scheduler.modes import foresee, moves_calls, plain_policy
from scheduler.placement import Move, Placement
from scheduler.policies import configured
from scheduler.policy import Balancer, Evacuator, Patient, Policy, Ranker, Rectifier, Wait
from scheduler.profiles import load_profile
from scheduler.snapshot import snapshot
from scheduler.state import ClusterState, Profiles

_new_dispatch = builder(Dispatch)


class Scheduler:
    """A pure state machine: the same events at the same times give the same decisions.

    A decision with a higher `attempt` replaces whatever the driver still does for the same request. An event about a
    call that has ended, or an instance that was lost, is old news and changes nothing.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy, profiles: Profiles = load_profile, seed: int = 0):
        self.config = config
        self.own_policy = policy
        self._state = ClusterState(config, profiles, seed)
        self._state.weighs_stakes = getattr(policy, "weighs_stakes", False)
        self._adopt(Mode.SPLIT, policy)
        self._handlers: dict[type, Callable[[Any, float], list[Decision]]] = {
            InstanceJoined: self._joined,
            InstanceReported: self._reported,
            InstanceDraining: self._draining,
            InstanceLost: self._lost,
            RequestArrived: self._arrived,
            DeadlinesMoved: self._deadlines_moved,
            PrefillFinished: self._prefill_finished,
            FirstToken: self._first_token,
            Progress: self._progress,
            RequestFinished: self._finished,
            RequestFailed: self._failed,
            RequestCancelled: self._cancelled,
            RunEnded: self._run_ended,
            MigrationRefused: self._migration_refused,
            Woke: self._woke,
            ModeChanged: self._mode_changed,
        }

    def handle(self, event: Event, now_s: float) -> list[Decision]:
        """Take in one fact and return what the driver is to do, in order.

        Raises InvalidEvent or UnknownProfile, and then has changed nothing.
        """
        handler = self._handlers.get(type(event))
        if handler is None:
            raise InvalidEvent(f"not an event: {type(event).__name__}")
        self._state.tick(now_s)
        decisions = handler(event, now_s)
        self._ask_to_wake(event.event_id, now_s, decisions)
        return decisions

    def snapshot(self) -> dict[str, Any]:
        """The estimated state of every instance and the count of calls, as plain JSON values."""
        return {"policy": self.policy.name, "mode": self.mode.value, **snapshot(self._state)}

    def check_integrity(self) -> None:
        """Recount every sum from the live calls; raises AssertionError naming what does not agree."""
        check_integrity(self._state)

    # Instances

    def _joined(self, event: InstanceJoined, now_s: float) -> list[Decision]:
        check_instance(event.instance)
        if not self._state.join(event.instance):
            return []
        return [*self._retry_held(event.event_id, now_s), *self._ask_waiting(event.event_id, now_s)]

    def _reported(self, event: InstanceReported, now_s: float) -> list[Decision]:
        check_report(event)
        pool = self._state.live_pool(event.instance_id)
        if pool is not None:
            self._state.report(pool, event)
        return []

    def _draining(self, event: InstanceDraining, now_s: float) -> list[Decision]:
        pool = self._state.live_pool(event.instance_id)
        if pool is None:
            return []
        self._state.drain(pool, event.instance_id)
        residents = [self._state.calls[name] for name in pool.residents[event.instance_id]]
        return [d for call in residents for d in self._check(event.event_id, call, now_s)]

    def _lost(self, event: InstanceLost, now_s: float) -> list[Decision]:
        if self._state.live_pool(event.instance_id) is not None:
            self._state.lose(event.instance_id)
        return []

    # Calls

    def _arrived(self, event: RequestArrived, now_s: float) -> list[Decision]:
        check_request(event)
        return self._place(event.event_id, self._state.admit(event), now_s)

    def _deadlines_moved(self, event: DeadlinesMoved, now_s: float) -> list[Decision]:
        check_deadlines(event.request_id, event.target_deadline_s, event.latest_deadline_s)
        call = self._state.live_call(event.request_id)
        if call is not None:
            self._state.move_deadlines(call, event.target_deadline_s, event.latest_deadline_s)
        return []

    def _prefill_finished(self, event: PrefillFinished, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is not None:
            self._state.prefill_finished(call)
        return self._ask_waiting(event.event_id, now_s)

    def _first_token(self, event: FirstToken, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is not None:
            self._state.first_token(call, event.cached_tokens)
        return self._ask_waiting(event.event_id, now_s)

    def _progress(self, event: Progress, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is None:
            return []
        check_output(event.request_id, event.output_tokens)
        self._state.progress(call, event.output_tokens)
        if call.state is not CallState.RUNNING or now_s < call.next_check_s:
            return []
        return self._check(event.event_id, call, now_s)

    def _finished(self, event: RequestFinished, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is not None:
            check_output(event.request_id, event.output_tokens)
            self._state.finish(call, event.output_tokens)
        return self._ask_waiting(event.event_id, now_s)

    def _failed(self, event: RequestFailed, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is None or event.instance_id not in _seats(call):
            return []
        check_output(event.request_id, event.output_tokens)
        if event.retryable:
            self._state.doubt_pair(call, event.instance_id)
        self._state.fail(call, event.instance_id, event.output_tokens)
        why = f"attempt {call.attempt} failed on {event.instance_id}: {event.error}"
        return [*self._after_failure(event, call, why, now_s), *self._ask_waiting(event.event_id, now_s)]

    def _after_failure(self, event: RequestFailed, call: Call, why: str, now_s: float) -> list[Decision]:
        if not event.retryable:
            return [self._reject(event.event_id, call, Refusal.NOT_RETRYABLE, why)]
        if call.emitted and call.arrived.migration_refused is not None:
            why = f"{why}; {call.emitted} tokens are out and the call may not move: {call.arrived.migration_refused}"
            return [self._reject(event.event_id, call, Refusal.NOT_RETRYABLE, why)]
        if call.failures >= self.config.max_attempts:
            return [self._reject(event.event_id, call, Refusal.TOO_MANY_ATTEMPTS, f"{why}; no attempt is left")]
        return self._place(event.event_id, call, now_s)

    def _cancelled(self, event: RequestCancelled, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is None:
            return []
        was_held = call.state is CallState.HELD
        self._state.end(call)
        freed = self._ask_waiting(event.event_id, now_s)
        if was_held:
            return freed
        reason = self._explain(call, "the client or the run no longer wants it")
        return [Cancel(cause_id=event.event_id, request_id=call.request_id, reason=reason), *freed]

    def _run_ended(self, event: RunEnded, now_s: float) -> list[Decision]:
        self._state.end_run(event.run_id, succeeded=event.succeeded)
        return []

    def _migration_refused(self, event: MigrationRefused, now_s: float) -> list[Decision]:
        call = self._state.live_call(event.request_id)
        if call is not None and call.state is CallState.MOVING:
            self._state.refuse_move(call)
        return []

    def _woke(self, event: Woke, now_s: float) -> list[Decision]:
        self._state.wake(None)
        decisions = self._expire_held(event.event_id, now_s)
        for call in risk.overdue(self._state.calls.values(), now_s, self.config.migration.checks_per_wake):
            decisions += self._check(event.event_id, call, now_s)
        if self._balancer is not None:
            self._state.refresh()
            for call, move in self._balancer.rebalance(self._state, now_s):
                assert call.seat is not None  # noqa: S101  # only running calls move
                decisions.append(self._migrate(event.event_id, call, call.seat.decode, move))
        return [*decisions, *self._ask_many_waiting(event.event_id, now_s)]

    def _mode_changed(self, event: ModeChanged, now_s: float) -> list[Decision]:
        observed = plain_policy(event.observed)
        self._adopt(event.mode, observed if event.mode is Mode.OBSERVE else self.own_policy)
        return self._ask_many_waiting(event.event_id, now_s)

    def _adopt(self, mode: Mode, policy: Policy) -> None:
        """Let `policy` place the calls from now on, and do what else the mode allows."""
        self.mode = mode
        self.policy = policy
        moves = moves_calls(mode)
        self._ranker = policy if isinstance(policy, Ranker) else None
        self._patient = policy if isinstance(policy, Patient) else None
        self._rectifier = policy if moves and isinstance(policy, Rectifier) else None
        self._evacuator = policy if moves and isinstance(policy, Evacuator) else None
        self._balancer = policy if moves and isinstance(policy, Balancer) else None
        self._shadow = self.own_policy if mode is Mode.OBSERVE else None
        # The observed policy splits where it would by itself.
        self._state.allow_splits(mode in (Mode.OBSERVE, Mode.SPLIT))

    # Placing

    def _place(self, cause_id: str, call: Call, now_s: float) -> list[Decision]:
        """Dispatch, hold or reject a call that is nowhere."""
        pool = self._state.pools.get(call.arrived.model)
        if pool is None:
            if not self._state.pools or (call.state is CallState.HELD and call.held_since_s is not None):
                return self._hold(cause_id, call, "no instance has joined")
            known = ", ".join(sorted(self._state.pools))
            message = f"unknown model {call.arrived.model!r}; served are {known}"
            return [self._reject(cause_id, call, Refusal.UNKNOWN_MODEL, message)]
        if (
            pool.ids
            and call.context_tokens + 1 > pool.least_capacity
            and call.context_tokens + 1 > pool.kv_capacity.max()
        ):
            largest = int(pool.kv_capacity.max())
            message = f"{call.context_tokens} tokens and one more do not fit: the largest KV cache has {largest} tokens"
            return [self._reject(cause_id, call, Refusal.TOO_LONG, message)]
        self._state.refresh(call)
        if self._still_waits(call, now_s):
            return []
        placement = self.policy.place(call, self._state, now_s) if pool.ids else None
        if placement is None:
            return self._hold(cause_id, call, "no open instance can serve it")
        if isinstance(placement, Wait):
            return self._wait(cause_id, call, placement, now_s)
        return [self._dispatch(cause_id, call, placement, now_s)]

    def _dispatch(self, cause_id: str, call: Call, placement: Placement, now_s: float) -> Dispatch:
        shadow = None
        if self._shadow is not None and call.attempt == 0:
            shadow = foresee(self._shadow, call, self._state, placement, now_s)
        self._state.dispatch(call, placement)
        return _new_dispatch(
            cause_id=cause_id,
            request_id=call.request_id,
            attempt=call.attempt,
            prefill_instance=placement.prefill,
            decode_instance=placement.decode,
            priority=placement.priority,
            reason=placement.reason,
            shadow=shadow,
        )

    def _hold(self, cause_id: str, call: Call, why: str) -> list[Decision]:
        """Hold a call; one that is held already stays so without a word."""
        if call.held_since_s is not None:
            return []
        self._state.hold(call)
        rule = f"{why}; held for up to {self.config.hold_limit_s:g} s"
        return [Hold(cause_id=cause_id, request_id=call.request_id, reason=self._explain(call, rule))]

    def _wait(self, cause_id: str, call: Call, answer: Wait, now_s: float) -> list[Decision]:
        """Let a call wait by its policy's wish; one that waits already does so without a word."""
        waits_already = call.request_id in self._state.waiting
        rank = 0.0 if waits_already else self._rank(call, now_s)
        self._state.wait(call, rank, gives_way=answer.gives_way)
        if waits_already:
            return []
        return [Hold(cause_id=cause_id, request_id=call.request_id, reason=self._explain(call, answer.rule))]

    def _still_waits(self, call: Call, now_s: float) -> bool:
        """Whether a call that waits would surely be told to wait again."""
        return (
            call.gives_way
            and self._patient is not None
            and call.request_id in self._state.waiting
            and self._patient.still_waits(call, self._state, now_s)
        )

    def _rank(self, call: Call, now_s: float) -> float:
        return 0.0 if self._ranker is None else self._ranker.rank(call, self._state, now_s)

    def _ask_waiting(self, cause_id: str, now_s: float, tries: int | None = None) -> list[Decision]:
        """Ask about the first few waiting calls again, and about more for as long as some of them go."""
        room, decisions = self._state.waiting, list[Decision]()
        tries = tries or self.config.waiting_tries
        shares = self._state.shares
        turn = (lambda tenants: shares.in_turn(tenants, now_s)) if shares.order_calls else None
        while room:
            before = len(room)
            for call in room.first(tries, turn):
                decisions += self._place(cause_id, call, now_s)
            if len(room) == before:
                break
        return decisions

    def _ask_many_waiting(self, cause_id: str, now_s: float) -> list[Decision]:
        """Rank the waiting calls anew and ask about many of them."""
        if not self._state.waiting:
            return []
        self._state.waiting.sort(lambda call: self._rank(call, now_s))
        return self._ask_waiting(cause_id, now_s, self.config.waiting_tries_per_wake)

    def _retry_held(self, cause_id: str, now_s: float) -> list[Decision]:
        """Try every held call again, the least slack first."""
        held = [self._state.calls[name] for name in self._state.held]
        held.sort(key=lambda call: (_or_inf(call.target_deadline_s), call.request_id))
        return [d for call in held for d in self._place(cause_id, call, now_s)]

    def _expire_held(self, cause_id: str, now_s: float) -> list[Decision]:
        decisions: list[Decision] = []
        for request_id in list(self._state.held):
            call = self._state.calls[request_id]
            if now_s >= self._expiry_s(call):
                message = f"no instance of {call.arrived.model} could take it within {self.config.hold_limit_s:g} s"
                decisions.append(self._reject(cause_id, call, Refusal.NO_INSTANCE, message))
        return decisions

    def _reject(self, cause_id: str, call: Call, refusal: Refusal, message: str) -> Reject:
        self._state.end(call)
        reason = self._explain(call, message)
        return Reject(cause_id=cause_id, request_id=call.request_id, refusal=refusal, message=message, reason=reason)

    # Watching

    def _check(self, cause_id: str, call: Call, now_s: float) -> list[Decision]:
        """Re-estimate a running call and move it if the policy says so."""
        self._state.reestimate(call)
        if self._rectifier is None and self._evacuator is None:
            return []
        pool = self._state.pool_of(call)
        pool.expire(now_s)
        seat = call.seat
        if call.state is not CallState.RUNNING or seat is None or seat.decode not in pool.row:
            return []
        move: Move | None = None
        if not pool.is_open[pool.row[seat.decode]]:
            if self._evacuator is not None:
                self._state.refresh(call)
                move = self._evacuator.evacuate(call, self._state, now_s)
        elif self._rectifier is not None and risk.is_late(call, pool, now_s):
            self._state.refresh(call)
            move = self._rectifier.rectify(call, self._state, now_s)
        return [] if move is None else [self._migrate(cause_id, call, seat.decode, move)]

    def _migrate(self, cause_id: str, call: Call, source: str, move: Move) -> Migrate:
        self._state.begin_move(call, move)
        return Migrate(
            cause_id=cause_id,
            request_id=call.request_id,
            attempt=call.attempt,
            source=source,
            target=move.placement.decode,
            priority=move.placement.priority,
            cause=move.cause,
            predicted_gain_s=move.gain_s,
            predicted_cost_s=move.cost_s,
            reason=move.placement.reason,
            by=move.by,
        )

    def _ask_to_wake(self, cause_id: str, now_s: float, decisions: list[Decision]) -> None:
        """Append a WakeAt if nothing pending wakes in time for the next risk check or the first hold to expire."""
        state = self._state
        if not state.calls:
            return
        at_s = now_s + self.config.risk_period_s
        pending_s = state.wake_at_s
        if pending_s is not None and now_s <= pending_s <= at_s and not state.held:
            return
        if state.held:
            expiry_s = min(self._expiry_s(state.calls[name]) for name in state.held)
            at_s = expiry_s if len(state.held) == len(state.calls) else min(at_s, expiry_s)
        at_s = max(at_s, now_s)
        if state.wake_at_s is None or at_s < state.wake_at_s or state.wake_at_s < now_s:
            state.wake(at_s)
            decisions.append(WakeAt(cause_id=cause_id, at_s=at_s))

    def _expiry_s(self, call: Call) -> float:
        since_s = call.held_since_s if call.held_since_s is not None else call.arrived_s
        return since_s + self.config.hold_limit_s

    def _explain(self, call: Call, rule: str) -> Explanation:
        return Explanation(
            policy=self.policy.name,
            rule=rule,
            target_deadline_s=call.target_deadline_s,
            latest_deadline_s=call.latest_deadline_s,
        )


def make_scheduler(
    policy_name: str,
    config: SchedulerConfig | None = None,
    seed: int = 0,
    profiles: Profiles = load_profile,
    params: Mapping[str, Any] | None = None,
) -> Scheduler:
    """Build a scheduler; raises UnknownPolicy or InvalidConfig (of `params`) naming the known ones."""
    policy, config = configured(policy_name, config or SchedulerConfig(), params)
    return Scheduler(config, policy, profiles, seed)


def _seats(call: Call) -> set[str]:
    """Instances on which the present attempt, or the one a move is leaving, runs."""
    return {name for seat in (call.seat, call.left_seat) if seat is not None for name in (seat.prefill, seat.decode)}


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value
