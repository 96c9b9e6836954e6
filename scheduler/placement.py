"""Where does the call prefill and where does it decode? Colocated placements and split pairs, weighed alike.

Price of a placement, in seconds of somebody's delay:

    own · (queue + seat + prefill + transfer + decode)
    + social · (chunk · decoding residents of the prefill instance
                + (d1 + d2·(context + L/2)) · tokens its decode residents put out meanwhile)
    + prefix · p1 · tokens of other prefixes it evicts + kv · (use above 80 %)² / 0.2²

A split pair needs two KV links; its pairs come from the few best prefill and the few best decode instances.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import AgentServeConfig
from scheduler.decisions import Candidate, Explanation, MigrationCause
from scheduler.estimate import Bools, Floats, Pool
from scheduler.latency import Demand, Terms, predict
from scheduler.selection import best_rows

_KV_FREE_SHARE = 0.8
"""KV use from which growth is priced: above it engines begin to preempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A policy's answer: the pair of instances, the engine priority, the terms that were predicted, and why."""

    prefill: str
    decode: str
    priority: int
    cached_tokens: float
    queue_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    reason: Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A policy's answer about a running call: where it is to go on (as a placement there), why, and what it gains."""

    placement: Placement
    cause: MigrationCause
    gain_s: float
    """Predicted finish at the source - predicted finish at the target, cost included."""
    cost_s: float
    """Part of the time at the target that puts out no token: queue, seat, prefill of what was already computed."""


@dataclass(slots=True, kw_only=True)
class Options:
    """All placements of a call that were weighed: rows 0 … n-1 colocated, then the split pairs."""

    pool: Pool
    prefill_rows: list[int]
    """Of the split pairs only."""
    decode_rows: list[int]
    allowed: Bools
    cached: Floats
    queue_s: Floats
    prefill_s: Floats
    transfer_s: Floats
    decode_s: Floats
    step_s: Floats
    own_s: Floats
    harm_s: Floats
    """Weighted delay of others, evicted prefixes and KV pressure."""

    def pair(self, option: int) -> tuple[int, int]:
        """Rows of the prefill and decode instance of an option."""
        colocated = len(self.pool.ids)
        if option < colocated:
            return option, option
        return self.prefill_rows[option - colocated], self.decode_rows[option - colocated]

    def candidate(self, option: int, now_s: float, target_s: float | None, verdict: str) -> Candidate:
        """The figures of one option as decision data."""
        prefill, decode = self.pair(option)
        finish_s = now_s + float(self.own_s[option])
        return Candidate(
            prefill_instance=self.pool.ids[prefill],
            decode_instance=self.pool.ids[decode],
            predicted_queue_s=float(self.queue_s[option]),
            predicted_prefill_s=float(self.prefill_s[option]),
            predicted_transfer_s=float(self.transfer_s[option]),
            predicted_decode_s=float(self.decode_s[option]),
            predicted_finish_s=finish_s,
            slack_s=None if target_s is None else target_s - finish_s,
            cached_tokens=int(self.cached[option]),
            verdict=verdict,
        )

    def placement(self, option: int, priority: int, reason: Explanation) -> Placement:
        """One option as a policy's answer; the priority only where the decode engine takes one."""
        prefill, decode = self.pair(option)
        takes_priority = self.pool.specs[self.pool.ids[decode]].supports_priority
        return Placement(
            prefill=self.pool.ids[prefill],
            decode=self.pool.ids[decode],
            priority=priority if takes_priority else 0,
            cached_tokens=float(self.cached[option]),
            queue_s=float(self.queue_s[option]),
            prefill_s=float(self.prefill_s[option]),
            transfer_s=float(self.transfer_s[option]),
            decode_s=float(self.decode_s[option]),
            reason=reason,
        )


def demand_of(call: Call) -> Demand:
    """What the call still needs, given what it put out so far."""
    return Demand(
        context_tokens=max(call.context_tokens, 1),
        emitted=call.emitted,
        length=call.forecast(),
        prefix_hashes=call.arrived.prefix_hashes,
        prefix_block_tokens=call.arrived.prefix_block_tokens,
    )


def fits(pool: Pool, demand: Demand) -> Bools:
    """Open instances whose KV cache takes the call at its median length, or at least its context and one token."""
    roomy = pool.is_open & (pool.kv_capacity >= demand.context_tokens + demand.output_tokens)
    if roomy.any():
        return roomy
    return pool.is_open & (pool.kv_capacity >= demand.context_tokens + 1)


def colocated(pool: Pool, call: Call, demand: Demand) -> Bools:
    """Instances that may serve both phases: open, mixed, large enough, able to replay; not where it just failed."""
    allowed = fits(pool, demand) & pool.can_prefill & pool.can_decode
    if call.emitted:
        allowed &= pool.can_replay
    if call.failed_on is not None:
        allowed = without(pool, allowed, call.failed_on)
    return allowed


def without(pool: Pool, allowed: Bools, instance_id: str) -> Bools:
    """`allowed` less one instance, unless it is the only one."""
    row = pool.row.get(instance_id)
    if row is None or not allowed[row] or np.count_nonzero(allowed) == 1:
        return allowed
    others = allowed.copy()
    others[row] = False
    return others


def weigh(pool: Pool, call: Call, demand: Demand, prices: AgentServeConfig, now_s: float) -> Options:
    """Weigh every colocated placement and the most promising split pairs of a call."""
    terms = predict(pool, demand, now_s)
    allowed = colocated(pool, call, demand)
    prefill_harm, decode_harm = harms(pool, terms, demand, prices)
    options = Options(
        pool=pool,
        prefill_rows=[],
        decode_rows=[],
        allowed=allowed,
        cached=terms.cached,
        queue_s=terms.queue_s + terms.seat_s,
        prefill_s=terms.prefill_s,
        transfer_s=np.zeros(len(pool.ids)),
        decode_s=terms.decode_s,
        step_s=terms.step_s,
        own_s=terms.queue_s + terms.seat_s + terms.prefill_s + terms.decode_s,
        harm_s=prefill_harm + decode_harm,
    )
    if pool.has_links and not (call.emitted and allowed.any()):
        _add_pairs(options, call, demand, terms, prefill_harm, decode_harm, prices)
    return options


def harms(pool: Pool, terms: Terms, demand: Demand, prices: AgentServeConfig) -> tuple[Floats, Floats]:
    """Weighted harm done to others by the prefill and by the decode of a call, per instance."""
    output, context = demand.output_tokens, float(demand.context_tokens)
    batch = pool.running + pool.bound
    evicted = np.maximum(pool.cache_tokens + terms.fresh - pool.kv_capacity, 0.0)
    prefill = prices.social_weight * terms.chunk_s * pool.running + prices.prefix_weight * pool.p1 * evicted
    meanwhile = np.minimum(pool.remaining, batch * output)
    slower = pool.d1 + pool.d2 * (context + 0.5 * output)
    pressure = np.maximum((terms.kv_used + context + output) / pool.kv_capacity - _KV_FREE_SHARE, 0.0)
    pressure *= pressure * (prices.kv_weight / (1.0 - _KV_FREE_SHARE) ** 2) * (1.0 + pool.preempted)
    return prefill, prices.social_weight * slower * meanwhile + pressure


def _add_pairs(
    options: Options,
    call: Call,
    demand: Demand,
    terms: Terms,
    prefill_harm: Floats,
    decode_harm: Floats,
    prices: AgentServeConfig,
) -> None:
    """Append the split pairs of the best few prefill and decode instances to `options`."""
    pool = options.pool
    linked = fits(pool, demand) & (pool.link > 0.0)
    if call.emitted:
        linked &= pool.can_replay
    prefills, decodes = linked & pool.can_prefill, linked & pool.can_decode
    if call.failed_on is not None:
        prefills, decodes = without(pool, prefills, call.failed_on), without(pool, decodes, call.failed_on)
    count = prices.split_candidates
    best_p = best_rows(terms.queue_s + terms.prefill_s + prefill_harm, prefills, count)
    best_d = best_rows(terms.seat_s + terms.decode_s + decode_harm, decodes, count)
    pairs = [(p, d) for p in best_p for d in best_d if p != d]
    if not pairs:
        return
    options.prefill_rows, options.decode_rows = [p for p, _ in pairs], [d for _, d in pairs]
    p, d = np.array(options.prefill_rows), np.array(options.decode_rows)
    moved = np.maximum(demand.context_tokens - terms.cached[d], 0.0)
    transfer_s = moved * pool.kv_bytes[p] / np.minimum(pool.link[p], pool.link[d])
    queue_s, prefill_s, decode_s = terms.queue_s[p] + terms.seat_s[d], terms.prefill_s[p], terms.decode_s[d]
    own_s = queue_s + prefill_s + transfer_s + decode_s
    margin_s = prices.split_gain_share * own_s if options.allowed.any() else 0.0 * own_s
    for name, extra in (
        ("allowed", np.ones(len(pairs), dtype=bool)),
        ("cached", terms.cached[p]),
        ("queue_s", queue_s),
        ("prefill_s", prefill_s),
        ("transfer_s", transfer_s),
        ("decode_s", decode_s),
        ("step_s", terms.step_s[d]),
        ("own_s", own_s),
        ("harm_s", prefill_harm[p] + decode_harm[d] + margin_s),
    ):
        setattr(options, name, np.concatenate((getattr(options, name), extra)))
