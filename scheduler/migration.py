"""Is it worth to move this running call, and where to? Gain against cost, with hysteresis and caps.

A call goes on at its target by replay of its tokens, or by a move of its KV if that is allowed and costs less.

    stay = remaining · step at the source          go = cost + decode at the target
    gain = stay - go                               cost: of the cheaper way (handover.py)

It pays when gain ≥ max(min_gain_s, min_gain_share · stay), gain exceeds the delay caused to the target's residents, and
the chance of the run to end in time grows by min_chance_gain more than those of the target's residents fall. A call of
a lost run moves where it ends five times as soon and the target's residents lose next to nothing. Off a draining
instance it pays when the call would stay longer than drain_patience_s. Either way the target needs room in its KV
cache for all that is still to come.
"""

import numpy as np

from scheduler.call import Call, CallState
from scheduler.config import MigrationConfig
from scheduler.decisions import Candidate, Explanation, MigrationCause
from scheduler.estimate import Bools, Pool
from scheduler.handover import Ways, ways
from scheduler.latency import Demand, Terms, predict
from scheduler.placement import Move, Placement, demand_of, fits
from scheduler.risk import Outlook, outlook
from scheduler.selection import argmin, best_rows
from scheduler.stakes import likely_lengths, outcome, rest_after
from scheduler.state import ClusterState

_KV_ROOM = 0.95
"""Share of the target's KV cache that may be in use once the moved call has ended."""
_LOST_CHANCE = 0.02
"""Below this a run counts as lost; its calls still move where that costs others less than this …"""
_LOST_GAIN = 5.0
"""… and they end so many times sooner, counted from now."""
_MOST_CHANCE = 1.0 + 1e-9
"""Rounding included."""


def may_move(call: Call, state: ClusterState, *, max_moves: int, cooldown_s: float, max_concurrent: int) -> bool:
    """Whether the call itself, its own history and the cluster's cap allow a move now."""
    return (
        call.state is CallState.RUNNING
        and call.arrived.migration_refused is None
        and call.moves < max_moves
        and (call.moved_s is None or state.now_s - call.moved_s >= cooldown_s)
        and state.moving < max_concurrent
    )


def targets(pool: Pool, call: Call, demand: Demand) -> Bools:
    """Instances on which the call could go on: open, decoding, replaying, with KV room, and not where it is."""
    need = demand.context_tokens + demand.output_tokens
    allowed = (
        fits(pool, demand) & pool.can_decode & pool.can_replay & (pool.kv_used + need <= _KV_ROOM * pool.kv_capacity)
    )
    if call.seat is not None and call.seat.decode in pool.row:
        allowed[pool.row[call.seat.decode]] = False
    return allowed


def rescue(call: Call, state: ClusterState, policy: str, priority: int, now_s: float) -> Move | None:
    """Move a late call if that pays in time and in chance; None: it stays."""
    limits = state.config.migration
    pool = state.pool_of(call)
    seen = outlook(call, pool, now_s)
    deadline_s = call.deadline_s
    if seen is None or deadline_s is None or not _limited(call, state, limits, limits.max_moves):
        return None
    demand, left_s = demand_of(call), deadline_s - now_s
    cached = 0.0 if call.seat is None else call.seat.cached_tokens
    rest = rest_after(call, state.runs, state.rests, state.alone, cached, demand.output_tokens)
    lengths = likely_lengths(demand)
    (stay_chance,) = rest.chances_here((left_s,), seen.step_s, lengths.tolist())
    if stay_chance >= _LOST_CHANCE and stay_chance + limits.min_chance_gain > _MOST_CHANCE:
        return None  # no chance grows by so much
    terms = predict(pool, demand, now_s)
    going = ways(call, pool, demand, terms, state.config)
    stay_s = seen.finish_s - now_s
    gain_s = stay_s - going.go_s
    pays = targets(pool, call, demand)
    pays &= (gain_s >= max(limits.min_gain_s, limits.min_gain_share * stay_s)) & (gain_s > going.harm_s)
    if not pays.any():
        return None
    chance = outcome(rest, left_s, going.cost_s, terms.step_s, lengths)
    prices = state.config.agentserve
    draw, draw_tokens = pool.draw_per_s(now_s)
    slowed = np.minimum(pool.stake_tokens, pool.stake * demand.output_tokens) * terms.marginal_s
    stalled = (pool.stake + prices.queue_weight * draw * going.cost_s) * np.where(going.by_kv, 0.0, terms.chunk_s)
    others_lose = stalled + slowed + prices.coming_weight * draw_tokens * terms.marginal_s * terms.decode_s
    saves = chance - others_lose >= stay_chance + limits.min_chance_gain
    if stay_chance < _LOST_CHANCE:
        saves |= (stay_s >= _LOST_GAIN * going.go_s) & (others_lose <= _LOST_CHANCE)
    pays &= saves
    row = argmin(going.go_s + going.harm_s, pays)
    if row is None:
        return None
    rule = f"late: moving raises the chance of the deadline from {stay_chance:.2f} to {float(chance[row]):.2f}"
    return move_to(call, state, policy, priority, MigrationCause.LATE, rule, row, terms, going, pays, seen, now_s)


def evacuate(call: Call, state: ClusterState, policy: str, priority: int, now_s: float) -> Move | None:
    """Move a call off a draining instance if it would stay there long; drains do not count against its cap."""
    limits = state.config.migration
    pool = state.pool_of(call)
    seen = outlook(call, pool, now_s)
    if seen is None or not _limited(call, state, limits, call.moves + 1):
        return None
    stay_s = seen.finish_s - now_s
    if stay_s <= limits.drain_patience_s:
        return None
    demand = demand_of(call)
    terms = predict(pool, demand, now_s)
    going = ways(call, pool, demand, terms, state.config)
    pays = targets(pool, call, demand) & (going.cost_s < stay_s)
    row = argmin(going.go_s + going.harm_s, pays)
    if row is None:
        return None
    rule = f"drain: {stay_s:.2f} s left on a draining instance, {limits.drain_patience_s:.2f} s tolerated"
    return move_to(call, state, policy, priority, MigrationCause.DRAIN, rule, row, terms, going, pays, seen, now_s)


def _limited(call: Call, state: ClusterState, limits: MigrationConfig, max_moves: int) -> bool:
    return may_move(
        call, state, max_moves=max_moves, cooldown_s=limits.cooldown_s, max_concurrent=limits.max_concurrent
    )


def move_to(
    call: Call,
    state: ClusterState,
    policy: str,
    priority: int,
    cause: MigrationCause,
    rule: str,
    row: int,
    terms: Terms,
    going: Ways,
    pays: Bools,
    seen: Outlook,
    now_s: float,
) -> Move:
    """The answer, with the target first among the candidates, then staying, then the best other targets."""
    pool, demand = state.pool_of(call), demand_of(call)
    go_s = going.go_s
    rows = [other for other in best_rows(go_s, pays, state.config.explained_candidates) if other != row]
    told = [_target(call, pool, terms, going, row, "chosen", now_s), staying_candidate(call, seen)]
    told += [
        _target(
            call, pool, terms, going, other, f"ends {float(go_s[other] - go_s[row]):+.3f} s{going.words(other)}", now_s
        )
        for other in rows
    ]
    reason = Explanation(
        policy=policy,
        rule=rule + going.words(row),
        candidates=tuple(told[: state.config.explained_candidates + 1]),
        candidates_total=int(pays.sum()) + 1,
        length=demand.length,
        target_deadline_s=call.target_deadline_s,
        latest_deadline_s=call.latest_deadline_s,
    )
    placement = Placement(
        prefill=told[0].prefill_instance,
        decode=told[0].decode_instance,
        priority=priority,
        cached_tokens=float(going.cached[row]),
        queue_s=told[0].predicted_queue_s,
        prefill_s=told[0].predicted_prefill_s,
        transfer_s=told[0].predicted_transfer_s,
        decode_s=told[0].predicted_decode_s,
        reason=reason,
    )
    return Move(
        placement=placement,
        cause=cause,
        gain_s=seen.finish_s - now_s - float(go_s[row]),
        cost_s=float(going.cost_s[row]),
    )


def _target(call: Call, pool: Pool, terms: Terms, going: Ways, row: int, verdict: str, now_s: float) -> Candidate:
    """Going on at a target as decision data: prefilled there by replay, or at the source by KV move."""
    queue_s, prefill_s, transfer_s = going.queue_s.item(row), going.prefill_s.item(row), going.transfer_s.item(row)
    finish_s = now_s + queue_s + prefill_s + transfer_s + terms.decode_s.item(row)
    return Candidate(
        prefill_instance=pool.ids[going.source if going.by_kv[row] else row],
        decode_instance=pool.ids[row],
        predicted_queue_s=queue_s,
        predicted_prefill_s=prefill_s,
        predicted_transfer_s=transfer_s,
        predicted_decode_s=terms.decode_s.item(row),
        predicted_finish_s=finish_s,
        slack_s=None if call.target_deadline_s is None else call.target_deadline_s - finish_s,
        cached_tokens=int(going.cached[row]),
        verdict=verdict,
    )


def staying_candidate(call: Call, seen: Outlook) -> Candidate:
    """Going on where the call is, as decision data."""
    assert call.seat is not None  # noqa: S101  # an outlook exists only for a seated call
    slack_s = None if call.target_deadline_s is None else call.target_deadline_s - seen.finish_s
    return Candidate(
        prefill_instance=call.seat.prefill,
        decode_instance=call.seat.decode,
        predicted_queue_s=0.0,
        predicted_prefill_s=0.0,
        predicted_transfer_s=0.0,
        predicted_decode_s=seen.remaining_tokens * seen.step_s,
        predicted_finish_s=seen.finish_s,
        slack_s=slack_s,
        cached_tokens=0,
        verdict=f"staying: {seen.remaining_tokens:.0f} tokens left at {seen.step_s * 1e3:.1f} ms each",
    )
