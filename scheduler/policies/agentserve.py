"""Where does a call go so that the most runs meet their SLO? Our policy: the price of a placement to everyone.

Price = the call's own time + the delay it causes to resident calls + evicted prefixes + KV pressure (placement.py).
Where deadlines are easily met by most placements, just enough: among the safe ones, a call's own time is weighed by
the capability of what it occupies, so that strong instances stay free. A run whose latest deadline can hardly be met
gives way: its own time counts little and its priority is the lowest, but it is served. Priority orders engine queues by
latest start (deadline - predicted time), an order that holds as time passes.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.decisions import Explanation
from scheduler.estimate import Bools, Floats
from scheduler.frozen import builder
from scheduler.latency import Demand, tokens_for_chance
from scheduler.migration import evacuate, rescue
from scheduler.placement import Move, Options, Placement, add_pairs, demand_of, weigh
from scheduler.selection import argmin, best_rows
from scheduler.state import ClusterState

PRIORITY_PER_S = 100.0
"""Priorities are hundredths of a second since the first event: ±248 days in 32 bits."""
LOWEST_PRIORITY = 2**31 - 1
_SAFE_SHARE = 0.5
"""Just enough rules when at least this share of the placements is safe."""
_UNSAFE_S = 1e6
_DEARER = "price %+.3f s: own %+.3f s, others %+.3f s"  # % formats floats in two thirds of an f-string's time
_UNSAFE = "may miss the target deadline: own %+.3f s, others %+.3f s"


_new_explanation = builder(Explanation)


@dataclass(slots=True)
class _Priced:
    price: Floats
    rule: str
    total: int
    is_lost: bool


class AgentServe:
    """Run-level slack, length quantiles, prefix reuse and the delay of others, in one price."""

    name = "agentserve"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The placement with the smallest price."""
        demand = demand_of(call)
        options = weigh(state.pool_of(call), call, demand, state.config.agentserve, now_s)
        priced = _price(call, state, demand, options, now_s)
        mask = None if priced.total == len(priced.price) else options.allowed
        best = best_rows(priced.price, mask, state.config.explained_candidates + 1)
        if not best:
            return None
        target_s = call.target_deadline_s
        verdicts = _verdicts(options, priced.price, best)
        reason = _new_explanation(
            policy=self.name,
            rule=priced.rule,
            candidates=options.candidates(best, verdicts, now_s, target_s),
            candidates_total=priced.total,
            length=demand.length,
            target_deadline_s=target_s,
            latest_deadline_s=call.latest_deadline_s,
        )
        urgency = LOWEST_PRIORITY if priced.is_lost else priority(call, state, options.own_s.item(best[0]), now_s)
        return options.placement(best[0], urgency, reason)

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a late call only where the gain in time and in chance exceeds what the move costs."""
        return rescue(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a call that would stay long on a draining instance."""
        return evacuate(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)


def _price(call: Call, state: ClusterState, demand: Demand, options: Options, now_s: float) -> _Priced:
    """Price every option by the rule that the call's deadlines ask for; split pairs join where they can win."""
    prices, sigma = state.config.agentserve, state.config.speed_sigma
    target_s, latest_s = call.target_deadline_s, call.latest_deadline_s
    total = options.count()
    if target_s is not None and total:
        safe = _in_time(options, target_s - now_s, tokens_for_chance(demand, prices.safe_chance, sigma))
        count = int(np.count_nonzero(safe))
        if count >= max(_SAFE_SHARE * total, 1):
            rule = f"just enough: least capability occupied, of {count} that meet the target deadline"
            return _Priced(_just_enough(options, safe, is_everywhere=count == len(safe)), rule, total, False)
    price = options.own_s + options.harm_s
    best = argmin(price, options.allowed)
    add_pairs(options, call, demand, prices, float("inf") if best is None else float(price[best]))
    if options.prefill_rows:
        price = options.own_s + options.harm_s
        total = options.count()
    if latest_s is not None:
        fit_tokens = tokens_for_chance(demand, prices.lost_chance, sigma)
        if not _in_time(options, latest_s - now_s, fit_tokens).any():
            price = prices.lost_own_weight * options.own_s + options.harm_s
            return _Priced(price, f"run lost: gives way, least delay of others, of {total}", total, True)
    return _Priced(price, f"least delay in sum: own time and delay of others, of {total}", total, False)


def _in_time(options: Options, left_s: float, fit_tokens: float) -> Bools:
    """Options on which `fit_tokens` can be put out within `left_s`."""
    needed_s = options.step_s * np.array(fit_tokens)
    needed_s += options.ready_s
    in_time: Bools = needed_s <= np.array(left_s)
    in_time &= options.allowed
    return in_time


def _just_enough(options: Options, safe: Bools, *, is_everywhere: bool) -> Floats:
    """Harm plus own time weighed by the capability it occupies; options that are not safe come after all others."""
    price = options.own_s * options.pool.relative_capability
    price += options.harm_s
    if not is_everywhere:
        price += ~safe * _UNSAFE_S
    return price


def priority(call: Call, state: ClusterState, predicted_s: float, now_s: float) -> int:
    """Engine priority by latest start; a call without deadline has `best_effort_slack_s` of slack."""
    deadline_s = call.target_deadline_s
    if deadline_s is None:
        deadline_s = call.arrived_s + predicted_s + state.config.agentserve.best_effort_slack_s
    since_s = deadline_s - predicted_s - (state.epoch_s if state.epoch_s is not None else now_s)
    return int(min(max(round(since_s * PRIORITY_PER_S), -(2**31)), LOWEST_PRIORITY - 1))


def _remaining_s(call: Call) -> float:
    return 0.0 if call.seat is None else call.seat.predicted_decode_s


def _verdicts(options: Options, price: Floats, best: list[int]) -> list[str]:
    """Why the first of `best` was chosen and what speaks against each other one."""
    price_s, own_s, harm_s = price.item, options.own_s.item, options.harm_s.item
    first = best[0]
    first_price_s, first_own_s, first_harm_s = price_s(first), own_s(first), harm_s(first)
    verdicts = ["chosen"]
    for option in best[1:]:
        more = price_s(option) - first_price_s, own_s(option) - first_own_s, harm_s(option) - first_harm_s
        verdicts.append(_UNSAFE % more[1:] if more[0] > _UNSAFE_S / 2 else _DEARER % more)
    return verdicts


POLICY = AgentServe
