"""How does a running call best get to each other instance: by replay of its tokens, or by a move of its KV?

    replay = queue + seat + prefill at the target
    kv     = queue + prefill of the last block at the source + transfer + seat at the target

An aborted request hands over nothing. For a KV move the driver stops the stream, then asks the source for one more
token behind prompt and output so far; its prefix cache holds all of that but the last block (less where it was found to
hold less than expected: `trust`), and what the request ends with is kept for transfer. So a call that never moves pays
nothing, and one that moves makes one token more. `transfer` and the rules of who can hand KV to whom are those of a
split (placement.py): it is one.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import SchedulerConfig
from scheduler.estimate import Bools, Floats, Pool
from scheduler.latency import Demand, Terms
from scheduler.placement import harms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The cheaper way to every instance of a pool, in its row order."""

    source: int
    by_kv: Bools
    cached: Floats
    """Tokens that need not be computed where the prefill runs."""
    queue_s: Floats
    """Queue and seat."""
    prefill_s: Floats
    transfer_s: Floats
    harm_s: Floats
    """Weighted delay of others."""
    cost_s: Floats
    """Queue, seat, prefill and transfer: what passes before the next token."""
    go_s: Floats
    """Cost and decode."""
    replay_s: Floats
    kv_s: Floats | None
    """Cost of either way; a KV move costs infinitely much where KV cannot pass. None: KV moves are off."""

    def words(self, row: int) -> str:
        """Which way it goes to an instance and what both would cost; nothing while KV moves are off."""
        if self.kv_s is None:
            return ""
        replay_s, kv_s = self.replay_s.item(row), self.kv_s.item(row)
        if self.by_kv.item(row):
            return f"; by KV: {kv_s:.3f} s against {replay_s:.3f} s by replay"
        return f"; by replay: {replay_s:.3f} s " + (
            "as KV cannot pass" if np.isinf(kv_s) else f"against {kv_s:.3f} s by KV"
        )


def ways(call: Call, pool: Pool, demand: Demand, terms: Terms, config: SchedulerConfig) -> Ways:
    """Weigh both ways to every instance for a call that runs on a live one."""
    assert call.seat is not None  # noqa: S101  # the call runs
    source = pool.row[call.seat.decode]
    prefill_harm_s, decode_harm_s = harms(pool, terms, demand, config.agentserve)
    replay_s = terms.wait_s + terms.prefill_s
    by_replay = Ways(
        source=source,
        by_kv=np.zeros(len(pool.ids), dtype=bool),
        cached=terms.cached,
        queue_s=terms.wait_s,
        prefill_s=terms.prefill_s,
        transfer_s=np.zeros(len(pool.ids)),
        harm_s=prefill_harm_s + decode_harm_s,
        cost_s=replay_s,
        go_s=replay_s + terms.decode_s,
        replay_s=replay_s,
        kv_s=None,
    )
    if not config.migration.kv_moves:
        return by_replay
    return _cheaper(by_replay, pool, demand, terms, decode_harm_s, config.agentserve.social_weight)


def _cheaper(
    replay: Ways, pool: Pool, demand: Demand, terms: Terms, decode_harm_s: Floats, social_weight: float
) -> Ways:
    source, context = replay.source, float(demand.context_tokens)
    fresh, chunk_s = _last_block(pool, source, context)
    step_s = chunk_s + max(fresh / pool.max_batched.item(source), 1.0) * pool.chunk_base_s.item(source)
    queue_s = terms.wait_s.item(source) - terms.seat_s.item(source) + terms.seat_s
    transfer_s = np.full(len(pool.ids), np.inf)
    bytes_ = np.maximum(context - terms.cached, 0.0) * pool.kv_bytes[source]
    np.divide(bytes_, np.minimum(pool.link, pool.link[source]), out=transfer_s, where=_takes_kv(pool, source))
    kv_s = queue_s + step_s + transfer_s
    by_kv: Bools = kv_s < replay.replay_s
    harm_s = decode_harm_s + social_weight * chunk_s * max(pool.running.item(source) - 1.0, 0.0)
    cost_s = np.where(by_kv, kv_s, replay.replay_s)
    return Ways(
        source=source,
        by_kv=by_kv,
        cached=np.where(by_kv, context - fresh, replay.cached),
        queue_s=np.where(by_kv, queue_s, replay.queue_s),
        prefill_s=np.where(by_kv, step_s, replay.prefill_s),
        transfer_s=np.where(by_kv, transfer_s, 0.0),
        harm_s=np.where(by_kv, harm_s, replay.harm_s),
        cost_s=cost_s,
        go_s=cost_s + terms.decode_s,
        replay_s=replay.replay_s,
        kv_s=kv_s,
    )


def _last_block(pool: Pool, source: int, context: float) -> tuple[float, float]:
    """Tokens that the source computes again, at least one, and how long without the cost of a step."""
    last = (context - 1.0) % pool.specs[pool.ids[source]].block_tokens + 1.0
    fresh = context - (context - last) * pool.trust.item(source)
    p1, p2 = pool.p1.item(source), pool.p2.item(source)
    return fresh, p1 * fresh + p2 * fresh * (2.0 * context - fresh)


def _takes_kv(pool: Pool, source: int) -> Bools:
    """Instances to which the source can hand KV."""
    takes: Bools = (pool.link > 0.0) & (pool.kv_code == pool.kv_code[source])
    if not (pool.link[source] > 0.0 and pool.can_prefill[source] and pool.can_replay[source]):
        return np.zeros(len(pool.ids), dtype=bool)
    for row in np.flatnonzero(takes).tolist():
        takes[row] = (pool.ids[source], pool.ids[row]) not in pool.broken
    return takes
