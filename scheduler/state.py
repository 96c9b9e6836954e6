"""What is true of the cluster now, and how does each fact change it? The only file that changes anything.

Policies and the other files read a `ClusterState`; every change is one of its methods. A live call is in exactly one
`CallState`; what its seat charged to instances is taken back when the seat is left (`check_integrity` recounts).
"""

from collections.abc import Callable
from random import Random

from scheduler.alone import Alone
from scheduler.call import Call, CallState, Seat
from scheduler.config import SchedulerConfig
from scheduler.errors import InvalidEvent
from scheduler.estimate import Pool
from scheduler.events import InstanceReported, InstanceSpec, RequestArrived
from scheduler.length import LengthModel
from scheduler.placement import Move, Placement
from scheduler.profiles.profile import GpuProfile
from scheduler.recent import Recent
from scheduler.rest import RestModel
from scheduler.runs import Runs, remember
from scheduler.shares import Shares
from scheduler.speeds import close_window, met_an_idle_queue, observe_first_token, observe_prefill
from scheduler.stakes import rest_after, stake
from scheduler.waiting import WaitingRoom

Profiles = Callable[[str, str], GpuProfile]


class ClusterState:
    """Instances by model, live calls by id, and what was learned."""

    def __init__(self, config: SchedulerConfig, profiles: Profiles, seed: int) -> None:
        self.config = config
        self.profiles = profiles
        self.random = Random(seed)  # noqa: S311  # reproducible draws for policies, no secret
        self.random_aside = Random(seed)  # noqa: S311  # for one that only looks on
        self.may_split = True
        self.lengths = LengthModel(config.length)
        self.rests = RestModel(config.length)
        self.pools: dict[str, Pool] = {}
        self.model_of: dict[str, str] = {}
        self.calls: dict[str, Call] = {}
        self.held: dict[str, None] = {}
        """Calls that no instance can serve now."""
        self.waiting = WaitingRoom()
        """Calls that a policy keeps at the gateway."""
        self.runs = Runs(config.max_ended)
        self.shares = Shares(config.fairness)
        self.recent = Recent()
        self.alone = Alone()
        self.weighs_stakes = False
        """Whether the policy reads `Pool.stake`: keeping it costs time."""
        self.moving = 0
        self.now_s = 0.0
        self.epoch_s: float | None = None
        """When the first instance or call came: what priorities count from, so that they fit in 32 bits."""
        self.wake_at_s: float | None = None
        self._ended: dict[str, None] = {}
        self._gone: dict[str, None] = {}

    # Look-ups

    def pool_of(self, call: Call) -> Pool:
        """The pool that serves the call's model; it must exist."""
        return self.pools[call.arrived.model]

    def live_call(self, request_id: str) -> Call | None:
        """The live call, None for one that ended; InvalidEvent for one that was never heard of."""
        call = self.calls.get(request_id)
        if call is None and request_id not in self._ended:
            raise InvalidEvent(f"unknown request {request_id!r}")
        return call

    def live_pool(self, instance_id: str) -> Pool | None:
        """The pool of a live instance, None for one that was lost; InvalidEvent for one that never joined."""
        model = self.model_of.get(instance_id)
        if model is not None:
            return self.pools[model]
        if instance_id not in self._gone:
            raise InvalidEvent(f"unknown instance {instance_id!r}")
        return None

    def allow_splits(self, may_split: bool) -> None:
        """Whether calls that one instance could serve may be split over two from now on."""
        self.may_split = may_split
        for pool in self.pools.values():
            pool.may_split = may_split

    # Instances

    def tick(self, now_s: float) -> None:
        """Note the time of the event at hand."""
        self.now_s = now_s

    def _begin(self) -> None:
        if self.epoch_s is None:
            self.epoch_s = self.now_s

    def wake(self, at_s: float | None) -> None:
        """Note the wake-up that was asked for; None: it came, none is pending."""
        self.wake_at_s = at_s

    def join(self, spec: InstanceSpec) -> bool:
        """Add an instance, or take in its new facts; False if nothing changed. Raises UnknownProfile."""
        profile = self.profiles(spec.gpu, spec.model)
        pool = self.pools.get(self.model_of.get(spec.instance_id, ""))
        calls: list[Call] = []
        if pool is not None:
            if pool.specs[spec.instance_id] == spec:
                return pool.open(spec.instance_id, True)
            calls = [self.calls[name] for name in pool.residents[spec.instance_id]] if pool.model == spec.model else []
            self.lose(spec.instance_id)
        self._begin()
        self._gone.pop(spec.instance_id, None)
        self.model_of[spec.instance_id] = spec.model
        joined = self.pools.setdefault(spec.model, Pool(spec.model, self.config.estimate))
        joined.may_split = self.may_split
        joined.join(spec, profile)
        self.alone.changed(joined)
        for call in calls:
            self._recharge(call, joined, spec.instance_id)
        return True

    def refresh(self, call: Call | None = None) -> None:
        """Bring the pool that serves a call, or all of them, up to date, before a policy reads it."""
        for pool in self.pools.values() if call is None else (self.pools[call.arrived.model],):
            pool.refresh(self.now_s)

    def drain(self, pool: Pool, instance_id: str) -> None:
        """Let an instance take no new work."""
        pool.open(instance_id, False)

    def lose(self, instance_id: str) -> None:
        """Forget an instance; its calls keep their seat there until the driver reports them."""
        pool = self.pools[self.model_of.pop(instance_id)]
        for request_id in pool.residents[instance_id]:
            seat = self.calls[request_id].seat
            assert seat is not None  # noqa: S101  # residents have a seat: an invariant that check_integrity recounts
            seat.is_queued = seat.is_queued and seat.prefill != instance_id
            seat.is_bound = seat.is_bound and seat.decode != instance_id
        pool.leave(instance_id)
        self.alone.changed(pool)
        self.recent.lost(instance_id)
        remember(self._gone, instance_id, self.config.max_ended)

    def report(self, pool: Pool, event: InstanceReported) -> None:
        """Take in a worker's report."""
        own_before = 0
        for request_id in pool.residents[event.instance_id]:
            seat = self.calls[request_id].seat
            own_before += seat is not None and seat.dispatched_s <= event.measured_at_s
        pool.report(event, own_before, self.now_s)

    # Calls

    def admit(self, event: RequestArrived) -> Call:
        """Take in a new call, not yet placed; InvalidEvent if its id is already live."""
        if event.request_id in self.calls:
            raise InvalidEvent(f"request {event.request_id!r} is already live")
        self._begin()
        call = Call(
            arrived=event,
            arrived_s=self.now_s,
            distribution=self.lengths.distribution(event.workflow, event.node, event.model, event.prompt_tokens),
            target_deadline_s=event.target_deadline_s,
            latest_deadline_s=event.latest_deadline_s,
        )
        self._ended.pop(event.request_id, None)
        self.calls[event.request_id] = call
        self.shares.begin(call, self.now_s)
        self.runs.begin(call, self.now_s, self.alone.of(event, call.remaining_tokens()))
        return call

    def hold(self, call: Call) -> None:
        """Keep a call until an instance joins."""
        call.state = CallState.HELD
        self.waiting.leave(call)
        if call.held_since_s is None:
            call.held_since_s = self.now_s
        self.held[call.request_id] = None

    def wait(self, call: Call, rank: float, *, gives_way: bool) -> None:
        """Keep a call that could be served at the gateway; one that waits already keeps its place."""
        call.gives_way = gives_way
        call.state = CallState.HELD
        self.held.pop(call.request_id, None)
        call.held_since_s = None
        self.waiting.enter(call, rank)

    def dispatch(self, call: Call, placement: Placement) -> None:
        """Seat a call where its policy placed it."""
        self.held.pop(call.request_id, None)
        self.waiting.leave(call)
        call.held_since_s = None
        call.attempt += 1
        call.state = CallState.DISPATCHED
        self.pool_of(call).last_placed = placement.decode
        self.runs.dispatched(call, placement.decode)
        self._seat(call, placement)

    def prefill_finished(self, call: Call) -> None:
        """The prefill leg of a split call ended: its instance is free of it."""
        seat = call.seat
        if seat is None or not seat.is_queued:
            return
        pool = self.pool_of(call)
        # The one step before a KV move waits for its stream to be stopped: it tells nothing of prefill speed.
        is_step = call.state is CallState.MOVING
        if not is_step and met_an_idle_queue(seat):
            observe_prefill(call, pool, seat, self.config.estimate, self.now_s)
        self._leave_queue(call, pool, seat)

    def first_token(self, call: Call, cached_tokens: int | None) -> None:
        """The first token of the present attempt came: its prefill is over, its decode runs."""
        seat = call.seat
        if seat is None or seat.first_token_s is not None:
            return
        pool = self.pool_of(call)
        if seat.is_split:
            pool.broken.clear(seat.prefill, seat.decode)
        is_kv_move = call.state is CallState.MOVING and seat.is_split
        if call.state is CallState.MOVING:
            self._end_move(call)
        call.state = CallState.RUNNING
        call.next_check_s = self.now_s + self.config.risk_period_s
        seat.first_token_s = seat.window_from_s = self.now_s
        if cached_tokens is not None and seat.prefill in pool.row and not is_kv_move:
            pool.observe_cached(pool.row[seat.prefill], seat.cached_tokens, float(cached_tokens))
            seat.cached_tokens = float(cached_tokens)
        if seat.is_queued:
            if not is_kv_move:
                observe_first_token(call, pool, seat, self.config.estimate, self.now_s)
            self._leave_queue(call, pool, seat)
        if seat.is_bound:
            pool.start(pool.row[seat.decode])

    def progress(self, call: Call, output_tokens: int) -> None:
        """`output_tokens` reached the gateway so far; a smaller count than before is old news."""
        tokens = output_tokens - call.emitted
        if tokens <= 0:
            return
        call.emitted = output_tokens
        self.shares.charge(call, 0.0, tokens, self.now_s)
        seat = call.seat
        if seat is None or not seat.is_bound:
            return
        pool = self.pools[call.arrived.model]
        row = pool.row[seat.decode]
        if seat.first_token_s is not None:
            seat.window_tokens += tokens
            seat.window_profile_s += tokens * pool.profile_step_s(row)
            if seat.window_tokens >= self.config.estimate.window_tokens:
                close_window(pool, seat, self.now_s)
        remaining = seat.remaining - tokens
        if remaining < 1.0:
            remaining = call.remaining_tokens()
        pool.grow(row, float(tokens), remaining - seat.remaining)
        seat.kv_tokens += tokens
        seat.remaining = remaining

    def reestimate(self, call: Call) -> None:
        """Sharpen a running call's remaining length by what it put out; the next risk check is due τ from now."""
        call.next_check_s = self.now_s + self.config.risk_period_s
        seat = call.seat
        if seat is not None and seat.is_bound:
            remaining = call.remaining_tokens()
            pool = self.pool_of(call)
            pool.grow(pool.row[seat.decode], 0.0, remaining - seat.remaining)
            seat.remaining = remaining
            self._take_stake(call, pool, seat)

    def end_run(self, run_id: str, *, succeeded: bool) -> None:
        """Forget a run; learn what was left of it after each of its calls."""
        facts = self.runs.close(run_id)
        if facts is None:
            return
        if succeeded:
            self.rests.learn(facts, self.now_s)

    def move_deadlines(self, call: Call, target_s: float | None, latest_s: float | None) -> None:
        """Take in new deadlines; they are checked at the next occasion."""
        call.target_deadline_s, call.latest_deadline_s = target_s, latest_s
        call.next_check_s = self.now_s

    def begin_move(self, call: Call, move: Move) -> None:
        """Seat a running call at its target; the seat it leaves is kept, should the move be refused."""
        self._release(call)
        call.left_seat, call.state = call.seat, CallState.MOVING
        call.attempt += 1
        call.moves += 1
        call.moved_s = self.now_s
        self.moving += 1
        self._seat(call, move.placement)

    def refuse_move(self, call: Call) -> None:
        """Put a call back where it was; the refused move still counts against its cap."""
        self._release(call)
        seat = call.seat = call.left_seat
        self._end_move(call)
        call.state = CallState.RUNNING
        call.attempt -= 1
        pool = self.pool_of(call)
        if seat is not None and seat.decode in pool.row:
            self._bind(call, pool, seat)
            pool.start(pool.row[seat.decode])
            seat.window_from_s, seat.window_tokens, seat.window_profile_s = self.now_s, 0, 0.0

    def doubt_pair(self, call: Call, instance_id: str) -> None:
        """The present attempt broke there: if that is a decode leg whose prefill had ended, KV did not pass."""
        seat, pool = call.seat, self.pool_of(call)
        if seat is None or not seat.is_split or seat.decode != instance_id or seat.first_token_s is not None:
            return
        if not seat.is_queued and {seat.prefill, seat.decode} <= pool.row.keys():
            pool.broken.note(seat.prefill, seat.decode, self.now_s + self.config.estimate.pair_retry_s)

    def fail(self, call: Call, instance_id: str, output_tokens: int) -> None:
        """The present attempt broke; the call is nowhere."""
        self._release(call)
        if call.state is CallState.MOVING:
            self._end_move(call)
        call.state = CallState.HELD
        call.seat = None
        call.failures += 1
        call.failed_on = instance_id
        call.emitted = output_tokens

    def finish(self, call: Call, output_tokens: int) -> None:
        """A call ended well: learn its length and its speed, then forget it."""
        seat = call.seat
        if seat is not None and seat.is_bound and seat.first_token_s is not None:
            self.progress(call, output_tokens)
            if seat.window_tokens > 0:
                close_window(self.pool_of(call), seat, self.now_s)
        event = call.arrived
        self.lengths.observe(event.workflow, event.node, event.model, event.prompt_tokens, output_tokens)
        self.recent.answered(event.model, output_tokens)
        self.end(call)

    def end(self, call: Call) -> None:
        """Forget a call, however it ended."""
        self._release(call)
        if call.state is CallState.MOVING:
            self._end_move(call)
        del self.calls[call.request_id]
        self.held.pop(call.request_id, None)
        self.waiting.leave(call)
        self.shares.end(call)
        seat = call.seat
        needs = self.alone.needs(call.arrived, 0.0 if seat is None else seat.cached_tokens)
        facts = self.runs.of(call)
        took_s, needed_s = self.runs.ended(call, self.now_s, self.alone.of(call.arrived, call.emitted), *needs)
        if seat is not None:
            self.recent.put_out(seat.decode, call.emitted, self.now_s)
            if seat.first_token_s is not None and (call.deadline_s is None or call.deadline_s > self.now_s):
                self.rests.paced(facts.workflow, facts.slo_s, took_s, needed_s)
        remember(self._ended, call.request_id, self.config.max_ended)

    # Seats

    def _seat(self, call: Call, placement: Placement) -> None:
        pool = self.pool_of(call)
        seat = call.seat = Seat(
            prefill=placement.prefill,
            decode=placement.decode,
            dispatched_s=self.now_s,
            cached_tokens=placement.cached_tokens,
            predicted_queue_s=placement.queue_s,
            predicted_prefill_s=placement.prefill_s,
            predicted_transfer_s=placement.transfer_s,
            predicted_decode_s=placement.decode_s,
        )
        seat.queued_tokens = max(call.context_tokens - placement.cached_tokens, 1.0)
        seat.work_s = placement.prefill_s
        self.shares.charge(call, seat.queued_tokens, 0.0, self.now_s)
        self._enqueue(call, pool, seat)
        self._bind(call, pool, seat)
        if self.weighs_stakes:
            pool.draw_more(pool.row[seat.decode], seat.stake, seat.stake_tokens, self.now_s)
        self.recent.seated(placement, call.context_tokens, self.now_s)
        event = call.arrived
        pool.mean_prompt_tokens += 0.02 * (event.prompt_tokens - pool.mean_prompt_tokens)
        if event.prefix_hashes:
            for name in dict.fromkeys((seat.prefill, seat.decode)):
                pool.hold_prefix(name, event.prefix_hashes, event.prefix_block_tokens)

    def _enqueue(self, call: Call, pool: Pool, seat: Seat) -> None:
        pool.queue(pool.row[seat.prefill], seat.queued_tokens, seat.work_s, self.now_s)
        pool.residents[seat.prefill][call.request_id] = None
        seat.is_queued = True

    def _bind(self, call: Call, pool: Pool, seat: Seat) -> None:
        seat.kv_tokens = float(call.context_tokens)
        seat.remaining = call.remaining_tokens()
        pool.bind(pool.row[seat.decode], seat.kv_tokens, seat.remaining)
        pool.residents[seat.decode][call.request_id] = None
        seat.is_bound = True
        seat.stake = seat.stake_tokens = 0.0
        self._take_stake(call, pool, seat)

    def _take_stake(self, call: Call, pool: Pool, seat: Seat) -> None:
        """Note what the call's run loses by delay where it decodes."""
        deadline_s = call.deadline_s
        if not self.weighs_stakes or deadline_s is None:
            return
        row = pool.row[seat.decode]
        rest = rest_after(call, self.runs, self.rests, self.alone, seat.cached_tokens, seat.remaining)
        per_s = stake(rest, deadline_s - self.now_s, pool.step_s(row), seat.remaining)
        per_s *= self.shares.worth(call, self.now_s)
        pool.restake(row, per_s - seat.stake, per_s * seat.remaining - seat.stake_tokens)
        seat.stake, seat.stake_tokens = per_s, per_s * seat.remaining

    def _recharge(self, call: Call, pool: Pool, instance_id: str) -> None:
        """Charge a resident again to an instance that announced itself anew."""
        seat = call.seat
        assert seat is not None  # noqa: S101  # it was a resident
        if seat.prefill == instance_id and seat.first_token_s is None and not seat.is_queued:
            self._enqueue(call, pool, seat)
        if seat.decode == instance_id:
            self._bind(call, pool, seat)
            if seat.first_token_s is not None:
                pool.start(pool.row[instance_id])

    def _leave_queue(self, call: Call, pool: Pool, seat: Seat) -> None:
        pool.unqueue(pool.row[seat.prefill], seat.queued_tokens, seat.work_s, self.now_s)
        seat.is_queued = False
        if seat.is_split:
            del pool.residents[seat.prefill][call.request_id]

    def _release(self, call: Call) -> None:
        """Take back all that the call's seat charged."""
        seat = call.seat
        if seat is None:
            return
        pool = self.pool_of(call)
        if seat.is_queued:
            self._leave_queue(call, pool, seat)
        if seat.is_bound:
            is_running = seat.first_token_s is not None
            row = pool.row[seat.decode]
            pool.restake(row, -seat.stake, -seat.stake_tokens)
            pool.unbind(row, seat.kv_tokens, seat.remaining, is_running=is_running)
            del pool.residents[seat.decode][call.request_id]
            seat.is_bound = False

    def _end_move(self, call: Call) -> None:
        self.moving -= 1
        call.left_seat = None
