"""What would GoodServe do? Just-enough by black-box estimates, rectified every τ (arXiv 2605.16867).

T(r, g) = q_g + p_g·(L_in - H) + d_g·L, with q, p, d smoothed from what was observed. A call goes to the weakest
instance with T within its remaining time; with none, to the most capable. A running call that is expected to be late
moves to a stronger instance that is still just enough. The paper has one deadline per call (here: the step's target),
no queue order, no prefill/decode split, and no hysteresis, cap or cost of a move: those are `GoodServeConfig`'s, as is
a margin on T. Of equally capable instances the paper does not say which; the smaller T is taken, the baseline's better
reading. A call without deadline goes where T is smallest. The paper's ablations: without migration late calls stay,
without the length predictor every answer is taken to be as long as the mean of all so far (a call's own limit is known
all the same).
"""

from scheduler.call import Call
from scheduler.decisions import Candidate, Explanation, LengthForecast, MigrationCause
from scheduler.estimate import Bools, Floats, Pool
from scheduler.latency import Demand, cached_tokens
from scheduler.migration import may_move, staying_candidate
from scheduler.placement import Move, Placement, colocated, demand_of, fits
from scheduler.ranking import at_decode, at_prefill, offers, take
from scheduler.risk import Outlook, outlook
from scheduler.selection import argmin, best_rows, just_enough, most_capable
from scheduler.state import ClusterState


class GoodServe:
    """Just-enough routing with predict-and-rectify, as published."""

    name = "goodserve"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The weakest instance that is expected to meet the call's deadline."""
        pool, demand = state.pool_of(call), _demand(call, state)
        allowed = colocated(pool, call, demand)
        if not allowed.any():
            return self._place_split(call, state, now_s)
        cached = cached_tokens(pool, demand)
        total_s = pool.box_q + pool.box_p * (demand.context_tokens - cached) + pool.box_d * demand.output_tokens
        total_s *= state.config.goodserve.margin
        deadline_s = call.target_deadline_s
        if deadline_s is None:
            row, rule = argmin(total_s, allowed), "no deadline: smallest T"
        else:
            meets = allowed & (total_s <= deadline_s - now_s)
            row = just_enough(meets, pool.capability, total_s)
            rule = f"just enough: weakest of {int(meets.sum())} that meet the deadline"
            if row is None:
                row, rule = most_capable(allowed, pool.capability, total_s), "none meets the deadline: most capable"
        assert row is not None  # noqa: S101  # `allowed` has one
        losers = [other for other in best_rows(total_s, allowed, state.config.explained_candidates + 1) if other != row]
        rows = [row, *losers[: state.config.explained_candidates]]
        reason = _reason(self.name, rule, call, demand, int(allowed.sum()), tuple(
            _candidate(call, pool, demand, cached, other, _verdict(pool, total_s, row, other, deadline_s, now_s), now_s)
            for other in rows
        ))  # fmt: skip
        return _placement(pool, demand, cached, row, reason)

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a late call to the weakest stronger instance that is still just enough."""
        limits, pool = state.config.goodserve, state.pool_of(call)
        seen = outlook(call, pool, now_s)
        deadline_s, seat = call.target_deadline_s, call.seat
        if not limits.migration or seen is None or seat is None or deadline_s is None:
            return None
        if not may_move(
            call, state, max_moves=limits.max_moves, cooldown_s=limits.cooldown_s, max_concurrent=len(state.calls) + 1
        ):
            return None
        source, demand = pool.row[seat.decode], _demand(call, state)
        remaining = seen.remaining_tokens if limits.predictor else demand.output_tokens
        stay_s = float(pool.box_d[source]) * remaining
        if now_s + limits.margin * stay_s <= deadline_s:
            return None
        cached = cached_tokens(pool, demand)
        replay_s = pool.box_p * (demand.context_tokens - cached)
        total_s = pool.box_q + pool.box_d * demand.output_tokens + (replay_s if limits.charge_replay else 0.0)
        stronger = fits(pool, demand) & pool.can_decode & pool.can_replay
        stronger &= pool.capability > pool.capability[source]
        meets = stronger & (limits.margin * total_s <= deadline_s - now_s) & (stay_s - total_s >= limits.min_gain_s)
        row = just_enough(meets, pool.capability, total_s)
        if row is None:
            return None
        return self._move(call, state, demand, cached, row, meets, seen, stay_s - float(total_s[row]), now_s)

    def _place_split(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """Just enough over the pairs of separate prefill and decode instances, which the paper does not have."""
        demand, options = offers(call, state, now_s, demand=_demand(call, state))
        if not options.allowed.any():
            return None
        pool = options.pool
        prefill_s = pool.box_q + pool.box_p * (demand.context_tokens - options.terms.cached)
        total_s = at_prefill(options, prefill_s) + at_decode(options, pool.box_d * demand.output_tokens)
        total_s *= state.config.goodserve.margin
        capability, deadline_s = at_decode(options, pool.capability), call.target_deadline_s
        if deadline_s is None:
            among, rule = options.allowed, "no deadline: smallest T"
        else:
            among = options.allowed & (total_s <= deadline_s - now_s)
            rule = f"just enough: weakest decode instance of {int(among.sum())} pairs that meet the deadline"
            if not among.any():
                among, rule = options.allowed, "none meets the deadline: most capable decode instance"
                capability = -capability
            among = among & (capability == capability[among].min())
        return take(
            self.name,
            rule,
            call,
            state,
            demand,
            options,
            total_s,
            now_s,
            among=among,
            verdict=lambda option: f"T {total_s.item(option):.3f} s, capability {abs(capability.item(option)):.0f}",
        )

    def _move(
        self,
        call: Call,
        state: ClusterState,
        demand: Demand,
        cached: Floats,
        row: int,
        meets: Bools,
        seen: Outlook,
        gain_s: float,
        now_s: float,
    ) -> Move:
        pool = state.pool_of(call)
        told = (_candidate(call, pool, demand, cached, row, "chosen", now_s), staying_candidate(call, seen))
        rule = f"late: weakest of {int(meets.sum())} stronger instances that meet the deadline"
        reason = _reason(self.name, rule, call, demand, int(meets.sum()) + 1, told)
        placement = _placement(pool, demand, cached, row, reason)
        return Move(
            placement=placement,
            cause=MigrationCause.LATE,
            gain_s=gain_s,
            cost_s=placement.queue_s + placement.prefill_s,
        )


def _demand(call: Call, state: ClusterState) -> Demand:
    """What the call needs by the predictor or, without it, by the mean of all answers."""
    if state.config.goodserve.predictor:
        return demand_of(call)
    mean = state.recent.mean_answer_tokens(call.arrived.model)
    tokens = state.config.length.prior_median_tokens if mean is None else mean
    limit = call.arrived.max_tokens
    tokens = max(tokens if limit is None else min(tokens, float(limit)), call.emitted + 1.0)
    return Demand(
        context_tokens=max(call.context_tokens, 1),
        emitted=call.emitted,
        length=LengthForecast(tokens, tokens, tokens, "mean of all answers" if mean is not None else "cold start"),
        prefix_hashes=call.arrived.prefix_hashes,
        prefix_block_tokens=call.arrived.prefix_block_tokens,
    )


def _reason(
    policy: str, rule: str, call: Call, demand: Demand, total: int, candidates: tuple[Candidate, ...]
) -> Explanation:
    return Explanation(
        policy=policy,
        rule=rule,
        candidates=candidates,
        candidates_total=total,
        length=demand.length,
        target_deadline_s=call.target_deadline_s,
        latest_deadline_s=call.latest_deadline_s,
    )


def _verdict(pool: Pool, total_s: Floats, row: int, other: int, deadline_s: float | None, now_s: float) -> str:
    if other == row:
        return "chosen"
    late_s = 0.0 if deadline_s is None else now_s + float(total_s[other]) - deadline_s
    if late_s > 0.0:
        return f"late by {late_s:.3f} s"
    if pool.capability[other] > pool.capability[row]:
        return f"stronger than needed: {float(pool.capability[other]):.0f} against {float(pool.capability[row]):.0f}"
    return f"T larger by {float(total_s[other] - total_s[row]):.3f} s"


def _candidate(
    call: Call, pool: Pool, demand: Demand, cached: Floats, row: int, verdict: str, now_s: float
) -> Candidate:
    queue_s, prefill_s, decode_s = _parts(pool, demand, cached, row)
    finish_s = now_s + queue_s + prefill_s + decode_s
    return Candidate(
        prefill_instance=pool.ids[row],
        decode_instance=pool.ids[row],
        predicted_queue_s=queue_s,
        predicted_prefill_s=prefill_s,
        predicted_transfer_s=0.0,
        predicted_decode_s=decode_s,
        predicted_finish_s=finish_s,
        slack_s=None if call.target_deadline_s is None else call.target_deadline_s - finish_s,
        cached_tokens=int(cached[row]),
        verdict=verdict,
    )


def _placement(pool: Pool, demand: Demand, cached: Floats, row: int, reason: Explanation) -> Placement:
    queue_s, prefill_s, decode_s = _parts(pool, demand, cached, row)
    return Placement(
        prefill=pool.ids[row],
        decode=pool.ids[row],
        priority=0,
        cached_tokens=float(cached[row]),
        queue_s=queue_s,
        prefill_s=prefill_s,
        transfer_s=0.0,
        decode_s=decode_s,
        reason=reason,
    )


def _parts(pool: Pool, demand: Demand, cached: Floats, row: int) -> tuple[float, float, float]:
    fresh = demand.context_tokens - float(cached[row])
    return float(pool.box_q[row]), float(pool.box_p[row]) * fresh, float(pool.box_d[row]) * demand.output_tokens


POLICY = GoodServe
