"""How does a policy turn one figure per placement into its answer? What is open to a call, what has room, what is told.

`offers` lists the placements open to a call: colocated ones or, of pools without instances for both phases, every split
pair. `take` answers with the one of the smallest price; predictions are shown in its reason, and used only by policies
that read them. Ties go to the smaller id of the decode instance, then to the prefill instance that is ready
first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scheduler.call import Call
from scheduler.config import AgentServeConfig
from scheduler.decisions import Explanation
from scheduler.estimate import Bools, Floats, Pool
from scheduler.frozen import builder
from scheduler.latency import Demand, cached_tokens, predict
from scheduler.placement import Options, Placement, add_pairs, colocated, demand_of
from scheduler.selection import best_rows
from scheduler.state import ClusterState

_ALL_PAIRS = AgentServeConfig(split_candidates=64)
"""Prices by which pairs are formed: no policy but ours reads a price, and each is to see all pairs."""
_MOST_URGENT, _LEAST_URGENT = -(2**31), 2**31 - 1
_new_explanation = builder(Explanation)


def offers(
    call: Call,
    state: ClusterState,
    now_s: float,
    *,
    demand: Demand | None = None,
    splits_mixed: bool = False,
    knows_prefix: bool = True,
) -> tuple[Demand, Options]:
    """What the call needs and the placements open to it; `splits_mixed` adds split pairs to colocated placements.

    Without `knows_prefix`, times are predicted as if nothing were cached; what is cached is told all the same.
    """
    pool = state.pool_of(call)
    whole = demand = demand_of(call) if demand is None else demand
    if not knows_prefix:
        demand = replace(demand, prefix_hashes=())
    terms = predict(pool, demand, now_s)
    nothing = np.zeros(len(pool.ids))  # nobody here reads the delay of others
    ready_s = terms.wait_s + terms.prefill_s
    options = Options(
        pool,
        terms,
        nothing,
        nothing,
        colocated(pool, call, demand),
        terms.cached,
        terms.wait_s,
        terms.prefill_s,
        None,
        terms.decode_s,
        terms.step_s,
        ready_s,
        ready_s + terms.decode_s,
        nothing,
    )
    if pool.kv_groups and (splits_mixed or not options.allowed.any()):
        add_pairs(options, call, demand, _ALL_PAIRS, float("inf"))
    if not knows_prefix:  # else the state would learn from prefills that are faster than they should be
        options.cached = at_prefill(options, cached_tokens(pool, whole))
    return demand, options


def at_decode(options: Options, values: Floats) -> Floats:
    """A quantity per instance as one per placement: that of its decode instance."""
    return np.concatenate((values, values[options.decode_rows])) if options.decode_rows else values


def at_prefill(options: Options, values: Floats) -> Floats:
    """A quantity per instance as one per placement: that of its prefill instance."""
    return np.concatenate((values, values[options.prefill_rows])) if options.prefill_rows else values


def decode_rows(options: Options) -> list[int]:
    """Rows of the instances on which the call may decode, in id order."""
    allowed = np.flatnonzero(options.allowed).tolist()
    return allowed if not options.decode_rows else sorted({options.pair(option)[1] for option in allowed})


def decoding_at(options: Options, rows: Sequence[int]) -> Bools:
    """The allowed placements that decode on one of these rows."""
    chosen = np.zeros(len(options.pool.ids), dtype=bool)
    chosen[list(rows)] = True
    if options.decode_rows:
        chosen = np.concatenate((chosen, chosen[options.decode_rows]))
    return chosen & options.allowed


def with_room(options: Options, batch_cap: int, prefill_cap: int = 0) -> Bools:
    """Allowed placements below both caps on our own calls, per decode and per prefill instance; 0: no cap.

    Only our own calls count: each of them will end, and then waiting calls are asked about again.
    """
    pool, room = options.pool, options.allowed
    if batch_cap:
        room = room & (at_decode(options, pool.running + pool.bound) < batch_cap)
    if prefill_cap:
        room = room & (at_prefill(options, pool.queued) < prefill_cap)
    return room


def take(
    policy: str,
    rule: str,
    call: Call,
    state: ClusterState,
    demand: Demand,
    options: Options,
    price: Floats,
    now_s: float,
    *,
    verdict: Callable[[int], str],
    among: Bools | None = None,
    priority: int = 0,
) -> Placement | None:
    """The placement with the smallest price `among` some, or of all that are allowed; None if there is none."""
    count = state.config.explained_candidates + 1
    best = _best(options, price, options.allowed if among is None else among, count)
    if not best:
        return None
    if among is not None and len(best) < count:
        best += _best(options, price, options.allowed & ~among, count - len(best))
    reason = _new_explanation(
        policy=policy,
        rule=rule,
        candidates=options.candidates(
            best, ["chosen", *(verdict(option) for option in best[1:])], now_s, call.target_deadline_s
        ),
        candidates_total=options.count(),
        length=demand.length,
        target_deadline_s=call.target_deadline_s,
        latest_deadline_s=call.latest_deadline_s,
    )
    return options.placement(best[0], priority, reason)


def _best(options: Options, price: Floats, among: Bools, count: int) -> list[int]:
    if not options.decode_rows:
        return best_rows(price, among, count)
    rows = np.flatnonzero(among)
    decode = np.concatenate((np.arange(len(options.pool.ids)), options.decode_rows))
    ordered: list[int] = rows[np.lexsort((decode[rows], price[rows]))[:count]].tolist()
    return ordered


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
    """Take the allowed decode instance with the smallest rank, for ranks that are no single figure."""
    pool = state.pool_of(call)
    demand, options = offers(call, state, now_s)
    place = np.zeros(len(pool.ids))
    for position, row in enumerate(sorted(decode_rows(options), key=lambda row: (rank(pool, row), row))):
        place[row] = position
    return take(
        policy,
        f"{rule}, of {options.count()}",
        call,
        state,
        demand,
        options,
        at_decode(options, place),
        now_s,
        verdict=lambda option: verdict(pool, options.pair(option)[1]),
    )


def as_priority(order: float) -> int:
    """An order (smaller first) as an engine's priority: 32 bits."""
    return int(min(max(round(order), _MOST_URGENT), _LEAST_URGENT))
