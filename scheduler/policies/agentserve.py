"""Where does a call go so that the most runs meet their SLO? Our policy: prices in runs that end in time.

A placement costs what its own run and all others lose by it of their chances to end in time (stakes.py):

    price = 1 - V                                            the run's own chance of missing its SLO
          + r · (stake · chunk + stake_tokens · marginal)    what the runs of resident calls lose
          + c · draw_tokens · marginal · decode              what runs of calls to come lose while this one decodes
          + q · draw · chunk · (queue + prefill)             and behind its prefill
          + second_price · (own time · capability + delay of others + evicted prefixes + KV pressure, in seconds)

The third term keeps fast instances for those that need them: where tight calls come, a step is dear. Calls that lose
nothing by it go to slow or full instances; where nothing is at stake anywhere, the least delay in sum decides.

A new run waits at the gateway while what it costs others, over all that is expected of it, exceeds its own chance.
A run whose chance is gone gives way: its calls wait while they would cost others, for a bounded time in all. Engines
order their queues by deadline, lost runs last. Calls without a deadline have no stake and go where the delay is least;
for the others a second of their own is dearer on a stronger instance: just enough, where nothing else speaks.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import AgentServeConfig
from scheduler.decisions import Explanation
from scheduler.estimate import Floats, Pool
from scheduler.frozen import builder
from scheduler.latency import Demand, Terms, predict
from scheduler.migration import evacuate, rescue
from scheduler.placement import Move, Options, Placement, add_pairs, colocated, demand_of, weigh
from scheduler.policy import Wait
from scheduler.rest import Rest
from scheduler.selection import argmin, best_rows
from scheduler.stakes import expected_rest_s, likely_lengths, outcome, rest_after
from scheduler.state import ClusterState

PRIORITY_PER_S = 100.0
"""Priorities are hundredths of a second since the first event: ±248 days in 32 bits."""
LOWEST_PRIORITY = 2**31 - 1
_ROUNDING = 1e-9
_DEARER = "price %+.5f: chance %+.3f, others lose %+.4f, delay %+.3f s"

_new_explanation = builder(Explanation)


@dataclass(slots=True)
class _Priced:
    """Every option's price and what it is made of."""

    price: Floats
    chance: Floats | None
    """None without a deadline."""
    loss: Floats
    """What other runs lose of their chances."""
    delay_s: Floats
    rest: Rest | None
    is_lost: bool


class AgentServe:
    """Run-level chances, stakes of residents and of calls to come, prefix reuse and delay, in one price."""

    name = "agentserve"
    weighs_stakes = True

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The placement with the smallest price; or a while at the gateway, if that is better for all."""
        demand, prices = demand_of(call), state.config.agentserve
        options = _options(call, state, demand, prices, now_s)
        total = options.count()
        if not total:
            return None
        priced = _price(call, state, demand, options, now_s)
        mask = None if total == len(priced.price) else options.allowed
        best = best_rows(priced.price, mask, state.config.explained_candidates + 1)
        waits = _waits(call, state, options, priced, best[0], now_s)
        if waits is not None:
            return Wait(waits, gives_way=priced.is_lost)
        reason = _new_explanation(
            policy=self.name,
            rule=_rule(priced, best[0], total),
            candidates=options.candidates(best, _verdicts(priced, best), now_s, call.target_deadline_s),
            candidates_total=total,
            length=demand.length,
            target_deadline_s=call.target_deadline_s,
            latest_deadline_s=call.latest_deadline_s,
        )
        urgency = LOWEST_PRIORITY if priced.is_lost else priority(call, state, options.own_s.item(best[0]), now_s)
        return options.placement(best[0], urgency, reason)

    def still_waits(self, call: Call, state: ClusterState, now_s: float) -> bool:
        """Whether a call of a lost run surely gives way again: told by bounds on all placements, in half the time.

        No chance exceeds that of an ideal placement, no loss to others is below the least stall plus the least slowing.
        """
        pool, prices, deadline_s = state.pool_of(call), state.config.agentserve, call.deadline_s
        demand = demand_of(call)
        if deadline_s is None or colocated(pool, call, demand) is not pool.mixed or not pool.mixed_count:
            return False
        terms = predict(pool, demand, now_s)
        rest = _rest(call, state, demand, terms)
        stalled, coming = _losses(pool, terms, demand, prices, now_s)
        least = stalled.item(stalled.argmin()) + coming.item(coming.argmin())
        if least <= prices.lost_loss or not _may_give_way(call, state, now_s):
            return False
        if deadline_s <= now_s:
            return True
        ready_s = terms.wait_s - terms.seat_s + terms.prefill_s
        left_s = deadline_s - now_s - ready_s.item(ready_s.argmin())
        step_s = terms.step_s.item(terms.step_s.argmin())
        (chance,) = rest.chances_here((left_s,), step_s, _lengths(call, demand).tolist())
        return chance + _ROUNDING < prices.lost_chance

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """Those whose deadline is still to come first, the nearest at the start; then the lost ones, as they came."""
        deadline_s = call.deadline_s
        if deadline_s is None:
            return _NO_DEADLINE_RANK
        return deadline_s - now_s if deadline_s > now_s else _LOST_RANK + call.arrived_s

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a late call only where the gain in time and in chance exceeds what the move costs."""
        if not state.config.agentserve.late_moves:
            return None
        return rescue(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a call that would stay long on a draining instance."""
        return evacuate(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)


_NO_DEADLINE_RANK = 1e9
_LOST_RANK = 1e10


def _options(call: Call, state: ClusterState, demand: Demand, prices: AgentServeConfig, now_s: float) -> Options:
    """Colocated placements, and the split pairs that are quicker than all of them."""
    options = weigh(state.pool_of(call), call, demand, prices, now_s)
    if options.pool.kv_groups:
        seconds = options.own_s + options.harm_s
        best = argmin(seconds, options.allowed)
        add_pairs(options, call, demand, prices, float("inf") if best is None else seconds.item(best))
    return options


def _price(call: Call, state: ClusterState, demand: Demand, options: Options, now_s: float) -> _Priced:
    prices = state.config.agentserve
    stalled, coming = _losses(options.pool, options.terms, demand, prices, now_s)
    loss = stalled + coming
    if options.prefill_rows:
        pairs = stalled[options.prefill_rows] + coming[options.decode_rows]
        loss = np.concatenate((loss, pairs))
    deadline_s = call.deadline_s
    own_s = options.own_s if deadline_s is None else _dearer(options, prices.capability_weight)
    delay_s = own_s + options.harm_s
    price = delay_s * prices.second_price
    price += loss
    if deadline_s is None:
        return _Priced(price, None, loss, delay_s, None, False)
    rest = _rest(call, state, demand, options.terms)
    chance = outcome(rest, deadline_s - now_s, options.ready_s, options.step_s, _lengths(call, demand))
    price += 1.0
    price -= chance * state.shares.worth(call, now_s)
    is_any = options.count() == len(chance)  # argmax and item: a third of the time of max()
    best = chance.item(chance.argmax()) if is_any else float(chance.max(where=options.allowed, initial=0.0))
    is_lost = best < prices.lost_chance or deadline_s <= now_s
    return _Priced(price, chance, loss, delay_s, rest, is_lost)


def _losses(pool: Pool, terms: Terms, demand: Demand, prices: AgentServeConfig, now_s: float) -> tuple[Floats, Floats]:
    """What other runs lose of their chances where the call prefills, and where it decodes."""
    stake = pool.stake
    slowed = np.minimum(pool.stake_tokens, stake * demand.output_tokens)
    draw, draw_tokens = pool.draw_per_s(now_s)
    coming = draw_tokens * terms.decode_s
    behind = terms.wait_s + terms.prefill_s
    behind *= draw
    if (prices.resident_weight, prices.coming_weight, prices.queue_weight) != (1.0, 1.0, 1.0):  # four operations less
        slowed *= prices.resident_weight
        stake = stake * prices.resident_weight
        coming *= prices.coming_weight
        behind *= prices.queue_weight
    coming += slowed
    coming *= terms.marginal_s
    stalled = stake + behind
    stalled *= terms.chunk_s
    return stalled, coming


def _rest(call: Call, state: ClusterState, demand: Demand, terms: Terms) -> Rest:
    """What the call's run has to do after it."""
    cached = terms.cached.item(terms.cached.argmax())
    return rest_after(call, state.runs, state.rests, state.alone, cached, demand.output_tokens)


def _lengths(call: Call, demand: Demand) -> Floats:
    """Equally likely counts of the tokens that the call still puts out."""
    return likely_lengths(demand) if call.emitted or call.arrived.max_tokens else call.distribution.spread


def _dearer(options: Options, weight: float) -> Floats:
    """Own time, dearer where a stronger instance is occupied: just enough, where nothing else speaks."""
    capability = options.pool.relative_capability
    if options.decode_rows:
        capability = np.concatenate((capability, capability[options.decode_rows]))
    return options.own_s * (1.0 + weight * (capability - 1.0))


def _waits(call: Call, state: ClusterState, options: Options, priced: _Priced, best: int, now_s: float) -> str | None:
    """Why the call had better wait at the gateway; None if it goes."""
    prices, deadline_s = state.config.agentserve, call.deadline_s
    if deadline_s is None or priced.chance is None or priced.rest is None:
        return None
    facts, loss = state.runs.of(call), priced.loss.item(best)
    worth = state.shares.worth(call, now_s)
    if priced.is_lost:
        if loss <= prices.lost_loss:
            return None
        return f"run lost: gives way, others would lose {loss:.3f}" if _may_give_way(call, state, now_s) else None
    if facts.served_calls or call.attempt:
        return None
    left_s, own_s = deadline_s - now_s, max(options.own_s.item(best), 0.1)
    calls = 1.0 + prices.busy_share * expected_rest_s(priced.rest, left_s) / own_s
    cost = prices.life_weight * loss * calls
    chance = priced.chance.item(best)
    if chance * worth >= cost:
        return None
    return f"new run waits: would cost others {cost:.2f} in about {calls:.1f} calls, for a chance of {chance:.2f}"


def _may_give_way(call: Call, state: ClusterState, now_s: float) -> bool:
    """Whether the calls of a lost run have waited less than they may in all.

    A tenant above its share gives way for as long as that costs others: its lost runs would fill every place.
    """
    prices, facts = state.config.agentserve, state.runs.of(call)
    limit_s = prices.lost_wait_s + prices.lost_wait_slos * (facts.slo_s or 0.0)
    return facts.waited_s + now_s - call.arrived_s < limit_s or state.shares.worth(call, now_s) < 1.0


def _rule(priced: _Priced, best: int, total: int) -> str:
    if priced.chance is None:
        return f"no deadline: least delay in sum, of {total}"
    if priced.is_lost:
        return f"run lost: gives way, least harm to others, of {total}"
    chance, loss = priced.chance.item(best), priced.loss.item(best)
    return f"most runs in time: chance {chance:.2f}, others lose {loss:.3f}, of {total}"


def priority(call: Call, state: ClusterState, predicted_s: float, now_s: float) -> int:
    """Engine priority by latest start; a call without deadline has `best_effort_slack_s` of slack."""
    deadline_s = call.deadline_s
    if deadline_s is None:
        deadline_s = call.arrived_s + predicted_s + state.config.agentserve.best_effort_slack_s
    since_s = deadline_s - predicted_s - (state.epoch_s if state.epoch_s is not None else now_s)
    return int(min(max(round(since_s * PRIORITY_PER_S), -(2**31)), LOWEST_PRIORITY - 1))


def _remaining_s(call: Call) -> float:
    return 0.0 if call.seat is None else call.seat.predicted_decode_s


def _verdicts(priced: _Priced, best: list[int]) -> list[str]:
    """Why the first of `best` was chosen and what speaks against each other one."""
    first, price, loss, delay_s = best[0], priced.price.item, priced.loss.item, priced.delay_s.item
    verdicts = ["chosen"]
    for option in best[1:]:
        chance = 0.0 if priced.chance is None else priced.chance.item(option) - priced.chance.item(first)
        more = price(option) - price(first), chance, loss(option) - loss(first), delay_s(option) - delay_s(first)
        verdicts.append(_DEARER % more)
    return verdicts


POLICY = AgentServe
