"""What would Llumnix do? Dispatch to the instance with the most freeness, and migrate from the least to the most free.

    F = (M - ΣV) / B        M: KV capacity; V: a call's virtual usage; B: calls there; F: steps until the cache is full

A running call's virtual usage is its KV, a queued one's its demand. At every wake-up the instances with F below
`low_freeness` are paired with those above `high_freeness`, least with most free, and each pair moves the call with the
least KV, if the target is freer than the source even afterwards (Sun et al., OSDI 2024).
S: F, the pairing, threshold 3 and shortest call first (defaults of its public code). I: the upper threshold, caps and
cooldown per call; no call has the priority for which the paper reserves headroom, which stays a parameter; `by_speed`
scales F for mixed pools, where the paper has equal GPUs. A call moves its KV where a link allows it and that is cheaper
than replay. An instance that drains is emptied by moves too, as in the paper.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from scheduler.call import Call, CallState
from scheduler.config import SchedulerConfig, check_bounds
from scheduler.decisions import MigrationCause
from scheduler.estimate import Floats, Pool
from scheduler.handover import ways
from scheduler.latency import predict
from scheduler.migration import evacuate, may_move, move_to, targets
from scheduler.placement import Move, Placement, demand_of
from scheduler.ranking import at_decode, offers, take
from scheduler.risk import outlook
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Llumnix:
    """Load balancing by freeness, with live migration."""

    name = "llumnix"

    migration: bool = True
    low_freeness: float = 3.0
    """Steps below which an instance gives calls away."""
    high_freeness: float = 3.0
    """Steps above which an instance takes them."""
    headroom_tokens: float = 0.0
    """Virtual usage beyond the KV in use, per call."""
    by_speed: bool = False
    """Multiply freeness by the instance's capability."""
    max_moves: int = 8
    """Moves per call."""
    cooldown_s: float = 1.0
    """Least time between two moves of a call."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            low_freeness=(-1e9, 1e9),
            high_freeness=(-1e9, 1e9),
            headroom_tokens=(0.0, 1e6),
            max_moves=(0, 1_000_000),
            cooldown_s=(0.0, 3600.0),
        )

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The freest instance; the first id of equals."""
        demand, options = offers(call, state, now_s)
        freeness = at_decode(options, self._freeness(options.pool))
        return take(
            self.name,
            f"the freest instance, of {options.count()}",
            call,
            state,
            demand,
            options,
            -freeness,
            now_s,
            verdict=lambda option: f"freeness {freeness.item(option):.0f}",
        )

    def rebalance(self, state: ClusterState, now_s: float) -> Iterable[tuple[Call, Move]]:
        """One call per pair of a crowded and a free instance."""
        if not self.migration:
            return []
        return [pair for _, pool in sorted(state.pools.items()) for pair in self._moves(pool, state, now_s)]

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Off a draining instance, if it would stay there long."""
        return evacuate(call, state, self.name, 0, now_s) if self.migration else None

    def _freeness(self, pool: Pool) -> Floats:
        calls = np.maximum(pool.batch, 1.0)
        freeness: Floats = (pool.kv_capacity - pool.kv_used) / calls - self.headroom_tokens
        return freeness * pool.relative_capability if self.by_speed else freeness

    def _moves(self, pool: Pool, state: ClusterState, now_s: float) -> Iterator[tuple[Call, Move]]:
        freeness = self._freeness(pool)
        open_rows = np.flatnonzero(pool.is_open & pool.can_decode).tolist()
        rows = sorted(open_rows, key=lambda row: (freeness.item(row), pool.ids[row]))
        givers = [row for row in rows if freeness[row] < self.low_freeness]
        takers = [row for row in reversed(rows) if freeness[row] > self.high_freeness]
        for giver, taker in zip(givers, takers, strict=False):
            if freeness[giver] >= freeness[taker]:
                return
            call = self._shortest(pool, giver, state)
            move = None if call is None else self._move(call, pool, giver, taker, freeness, state, now_s)
            if call is not None and move is not None:
                yield call, move

    def _shortest(self, pool: Pool, giver: int, state: ClusterState) -> Call | None:
        """The running call with the least KV on an instance that may move."""
        running = (state.calls[name] for name in pool.residents[pool.ids[giver]])
        movable = [
            call
            for call in running
            if call.state is CallState.RUNNING
            and may_move(
                call, state, max_moves=self.max_moves, cooldown_s=self.cooldown_s, max_concurrent=len(state.calls) + 1
            )
        ]
        return min(movable, key=lambda call: (call.context_tokens, call.request_id), default=None)

    def _move(
        self, call: Call, pool: Pool, giver: int, taker: int, freeness: Floats, state: ClusterState, now_s: float
    ) -> Move | None:
        demand, seen = demand_of(call), outlook(call, pool, now_s)
        allowed = targets(pool, call, demand)
        after = (pool.kv_capacity[taker] - pool.kv_used[taker] - call.context_tokens) / (pool.batch[taker] + 1.0)
        after = after * (pool.relative_capability[taker] if self.by_speed else 1.0) - self.headroom_tokens
        if seen is None or not allowed[taker] or after <= freeness[giver]:
            return None
        terms = predict(pool, demand, now_s)
        going = ways(call, pool, demand, terms, _with_kv_moves(state.config))
        only = np.zeros(len(pool.ids), dtype=bool)
        only[taker] = True
        rule = f"balance: freeness {freeness.item(giver):.0f} here, {freeness.item(taker):.0f} there"
        return move_to(call, state, self.name, 0, MigrationCause.BALANCE, rule, taker, terms, going, only, seen, now_s)


@lru_cache(maxsize=8)
def _with_kv_moves(config: SchedulerConfig) -> SchedulerConfig:
    return replace(config, migration=replace(config.migration, kv_moves=True))


POLICY = Llumnix
