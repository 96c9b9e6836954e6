"""How does a policy that only counts calls turn a ranking of instances into a placement?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from scheduler.call import Call
from scheduler.decisions import Explanation
from scheduler.estimate import Pool
from scheduler.placement import Placement, add_pairs, demand_of, weigh
from scheduler.state import ClusterState


def place_at(
    policy: str,
    rule: str,
    call: Call,
    state: ClusterState,
    now_s: float,
    *,
    rank: Callable[[Pool, int], Any],
    verdict: Callable[[Pool, int], str],
) -> Placement | None:
    """Take the allowed instance with the smallest rank; predictions are shown, not used.

    Pools without instances for both phases get the split pair whose decode instance ranks first.
    """
    pool, demand = state.pool_of(call), demand_of(call)
    options = weigh(pool, call, demand, state.config.agentserve, now_s)
    if not options.allowed.any():
        add_pairs(options, call, demand, state.config.agentserve, float("inf"))
    whole = np.flatnonzero(options.allowed).tolist()
    if not whole:
        return None
    ranked = sorted(whole, key=lambda option: (rank(pool, options.pair(option)[1]), option))
    told = ranked[: state.config.explained_candidates + 1]
    verdicts = ["chosen", *(verdict(pool, options.pair(option)[1]) for option in told[1:])]
    reason = Explanation(
        policy=policy,
        rule=f"{rule}, of {len(whole)}",
        candidates=options.candidates(told, verdicts, now_s, call.target_deadline_s),
        candidates_total=len(whole),
        length=demand.length,
        target_deadline_s=call.target_deadline_s,
        latest_deadline_s=call.latest_deadline_s,
    )
    return options.placement(ranked[0], 0, reason)
