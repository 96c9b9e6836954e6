"""Where does a call go so that the most runs meet their SLO? Our policy: the price of a placement to everyone.

Price = the call's own time + the delay it causes to resident calls + evicted prefixes + KV pressure (placement.py).
Where deadlines are easily met by most placements, just enough: among the safe ones, a call's own time is weighed by
the capability of what it occupies, so that strong instances stay free. A run whose latest deadline can hardly be met
gives way: its own time counts little and its priority is the lowest, but it is served. Priority orders engine queues by
latest start (deadline - predicted time), an order that holds as time passes.
"""

import numpy as np

from scheduler.call import Call
from scheduler.config import AgentServeConfig
from scheduler.decisions import Explanation
from scheduler.estimate import Bools, Floats
from scheduler.latency import Demand, chance_to_fit
from scheduler.migration import evacuate, rescue
from scheduler.placement import Move, Options, Placement, demand_of, weigh
from scheduler.selection import best_rows
from scheduler.state import ClusterState

PRIORITY_PER_S = 100.0
"""Priorities are hundredths of a second since the first event: ±248 days in 32 bits."""
LOWEST_PRIORITY = 2**31 - 1
_SAFE_SHARE = 0.5
"""Just enough rules when at least this share of the placements is safe."""


class AgentServe:
    """Run-level slack, length quantiles, prefix reuse and the delay of others, in one price."""

    name = "agentserve"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The placement with the smallest price."""
        prices = state.config.agentserve
        demand = demand_of(call)
        options = weigh(state.pool_of(call), call, demand, prices, now_s)
        total = int(np.count_nonzero(options.allowed))
        if total == 0:
            return None
        price, rule, is_lost = self._price(call, state, demand, options, total, now_s)
        best = best_rows(price, options.allowed, state.config.explained_candidates + 1)
        reason = Explanation(
            policy=self.name,
            rule=rule,
            candidates=tuple(
                options.candidate(option, now_s, call.target_deadline_s, _verdict(options, price, best[0], option))
                for option in best
            ),
            candidates_total=total,
            length=demand.length,
            target_deadline_s=call.target_deadline_s,
            latest_deadline_s=call.latest_deadline_s,
        )
        urgency = LOWEST_PRIORITY if is_lost else priority(call, state, float(options.own_s[best[0]]), now_s)
        return options.placement(best[0], urgency, reason)

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a late call only where the gain in time and in chance exceeds what the move costs."""
        return rescue(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Move a call that would stay long on a draining instance."""
        return evacuate(call, state, self.name, priority(call, state, _remaining_s(call), now_s), now_s)

    def _price(
        self, call: Call, state: ClusterState, demand: Demand, options: Options, total: int, now_s: float
    ) -> tuple[Floats, str, bool]:
        """Price per option, the rule it follows, and whether the call's run counts as lost."""
        prices, sigma = state.config.agentserve, state.config.speed_sigma
        price = options.own_s + options.harm_s
        target_s, latest_s = call.target_deadline_s, call.latest_deadline_s
        if latest_s is not None and _best_chance(options, demand, latest_s - now_s, sigma) < prices.lost_chance:
            given_way = prices.lost_own_weight * options.own_s + options.harm_s
            return given_way, f"run lost: gives way, least delay of others, of {total}", True
        if target_s is not None:
            safe = _chance(options, demand, target_s - now_s, sigma) >= prices.safe_chance
            safe &= options.allowed
            count = int(np.count_nonzero(safe))
            if count >= max(_SAFE_SHARE * total, 1):
                return _just_enough(options, safe, price), _just_enough_rule(count, prices), False
        return price, f"least delay in sum: own time and delay of others, of {total}", False


def priority(call: Call, state: ClusterState, predicted_s: float, now_s: float) -> int:
    """Engine priority by latest start; a call without deadline has `best_effort_slack_s` of slack."""
    deadline_s = call.target_deadline_s
    if deadline_s is None:
        deadline_s = call.arrived_s + predicted_s + state.config.agentserve.best_effort_slack_s
    since_s = deadline_s - predicted_s - (state.epoch_s if state.epoch_s is not None else now_s)
    return int(min(max(round(since_s * PRIORITY_PER_S), -(2**31)), LOWEST_PRIORITY - 1))


def _remaining_s(call: Call) -> float:
    return 0.0 if call.seat is None else call.seat.predicted_decode_s


def _chance(options: Options, demand: Demand, left_s: float, sigma: float) -> Floats:
    """P(the call ends within `left_s`) for each option."""
    before_decode_s = options.own_s - options.decode_s
    return chance_to_fit((left_s - before_decode_s) / options.step_s, demand, sigma)


def _best_chance(options: Options, demand: Demand, left_s: float, sigma: float) -> float:
    return float(np.where(options.allowed, _chance(options, demand, left_s, sigma), 0.0).max())


def _just_enough(options: Options, safe: Bools, price: Floats) -> Floats:
    """Price with the own time weighed by what it occupies, for safe options; the others come after all of them."""
    capability = options.pool.capability
    pairs = len(options.prefill_rows)
    if pairs:
        capability = np.concatenate((capability, capability[options.decode_rows]))
    relative = capability / capability[options.allowed].min()
    occupied = options.own_s * relative + options.harm_s
    worst = float(occupied[safe].max())
    return np.where(safe, occupied, worst + price)


def _just_enough_rule(count: int, prices: AgentServeConfig) -> str:
    return f"just enough: least capability occupied, of {count} that meet the target with chance {prices.safe_chance}"


def _verdict(options: Options, price: Floats, chosen: int, option: int) -> str:
    if option == chosen:
        return "chosen"
    more_own_s = float(options.own_s[option] - options.own_s[chosen])
    more_harm_s = float(options.harm_s[option] - options.harm_s[chosen])
    return f"price {float(price[option] - price[chosen]):+.3f} s: own {more_own_s:+.3f}, others {more_harm_s:+.3f}"
