"""Do the state's sums agree with its calls? Recounts everything; for tests and for the simulator when idle."""

from collections import Counter

import numpy as np

from scheduler.call import Call, CallState
from scheduler.estimate import Pool
from scheduler.state import ClusterState

_COUNTED = ("queued", "queued_tokens", "queued_work_s", "running", "bound", "kv_own", "remaining")


def check_integrity(state: ClusterState) -> None:
    """Raise AssertionError naming the first thing that does not agree."""
    for call in state.calls.values():
        _check_call(state, call)
    held = [name for name, call in state.calls.items() if call.state is CallState.HELD]
    _same("held calls", sorted(held), sorted([*state.held, *state.waiting.names()]))
    tenants = Counter(call.arrived.tenant for call in state.calls.values())
    _same("live calls by tenant", dict(tenants), state.shares.live_calls())
    _same("moving calls", sum(call.state is CallState.MOVING for call in state.calls.values()), state.moving)
    _same("instances", sorted(name for pool in state.pools.values() for name in pool.ids), sorted(state.model_of))
    for pool in state.pools.values():
        _check_pool(state, pool)


def _check_call(state: ClusterState, call: Call) -> None:
    _same(f"{call.request_id}: held has no seat", call.seat is None, call.state is CallState.HELD)
    _same(f"{call.request_id}: moving left a seat", call.left_seat is not None, call.state is CallState.MOVING)
    if call.seat is not None:
        started = call.seat.first_token_s is not None
        _same(f"{call.request_id}: running has a first token", started, call.state is CallState.RUNNING)


def _check_pool(state: ClusterState, pool: Pool) -> None:
    counted = {name: np.zeros(len(pool.ids)) for name in _COUNTED}
    residents: dict[str, set[str]] = {name: set() for name in pool.ids}
    for call in state.calls.values():
        seat = call.seat
        if seat is None or call.arrived.model != pool.model:
            continue
        if seat.is_queued:
            residents[seat.prefill].add(call.request_id)
            row = pool.row[seat.prefill]
            for name, value in (("queued", 1.0), ("queued_tokens", seat.queued_tokens), ("queued_work_s", seat.work_s)):
                counted[name][row] += value
        if seat.is_bound:
            residents[seat.decode].add(call.request_id)
            row = pool.row[seat.decode]
            counted["bound" if seat.first_token_s is None else "running"][row] += 1.0
            counted["kv_own"][row] += seat.kv_tokens
            counted["remaining"][row] += seat.remaining
    _same(f"{pool.model}: residents", residents, {name: set(calls) for name, calls in pool.residents.items()})
    for name, values in counted.items():
        kept = getattr(pool, name)
        if not np.allclose(kept, values, rtol=1e-6, atol=1e-3) or (kept < -1e-6).any():
            raise AssertionError(f"{pool.model}: {name} is {kept.tolist()}, counted {values.tolist()}")
    if (pool.kv_used < 0.0).any() or not pool.prefixes.holds_only_known():
        raise AssertionError(f"{pool.model}: KV use or prefix index")


def _same(what: str, left: object, right: object) -> None:
    if left != right:
        raise AssertionError(f"{what}: {left} against {right}")
