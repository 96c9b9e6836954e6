"""Where does the call prefill and where does it decode? Colocated placements and split pairs, weighed alike.

Price of a placement, in seconds of somebody's delay:

    own · (queue + seat + prefill + transfer + decode)
    + social · (chunk · decoding residents of the prefill instance
                + (d1 + d2·(context + L/2)) · tokens its decode residents put out meanwhile)
    + prefix · p1 · tokens of other prefixes it evicts + kv · (use above 80 %)² / 0.2²

A split pair needs two KV links and one KV group, and no recent failure to pass KV. Pairs are formed of the few best
prefill and the few best decode instances of each group, and only if the best of both, with free transfer, would beat
the best colocated placement. A call that nothing else can serve gets a pair that failed rather than none, and one
even where the mode allows no splits.
"""

from dataclasses import dataclass, field

import numpy as np

from scheduler.call import Call
from scheduler.config import AgentServeConfig
from scheduler.decisions import Candidate, Explanation, MigrationCause, MoveBy
from scheduler.estimate import Bools, Floats, Pool
from scheduler.frozen import builder
from scheduler.latency import Demand, Terms, predict
from scheduler.quantities import KV_FREE_SHARE
from scheduler.selection import best_rows

_ZERO = np.array(0.0)
"""Faster than 0.0, see latency.py."""


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
    """A policy's answer about a running call: where it is to go on, why, and what it gains.

    The placement's decode instance is the target; its prefill instance is the target too, or the source by KV move.
    """

    placement: Placement
    cause: MigrationCause
    gain_s: float
    """Predicted finish at the source - predicted finish at the target, cost included."""
    cost_s: float
    """Time that puts out no token: queue, seat, and replay at the target, or one step at the source and transfer."""

    @property
    def by(self) -> MoveBy:
        """A move whose placement is split hands the source's KV over."""
        return MoveBy.REPLAY if self.placement.prefill == self.placement.decode else MoveBy.KV


_new_candidate = builder(Candidate)
_new_placement = builder(Placement)


@dataclass(slots=True)
class Options:
    """All placements of a call that were weighed: rows 0 … n-1 colocated, then the split pairs."""

    pool: Pool
    terms: Terms
    prefill_harm_s: Floats
    decode_harm_s: Floats
    allowed: Bools
    cached: Floats
    queue_s: Floats
    prefill_s: Floats
    transfer_s: Floats | None
    """None: there are no split pairs, nothing is transferred."""
    decode_s: Floats
    step_s: Floats
    ready_s: Floats
    """Queue, seat, prefill and transfer: what passes before the first token."""
    own_s: Floats
    harm_s: Floats
    """Weighted delay of others, evicted prefixes and KV pressure."""
    prefill_rows: list[int] = field(default_factory=list)
    """Of the split pairs only."""
    decode_rows: list[int] = field(default_factory=list)

    def count(self) -> int:
        """How many placements are allowed."""
        if self.allowed is self.pool.mixed:
            return self.pool.mixed_count
        return int(np.count_nonzero(self.allowed))

    def pair(self, option: int) -> tuple[int, int]:
        """Rows of the prefill and decode instance of an option."""
        colocated = len(self.pool.ids)
        if option < colocated:
            return option, option
        return self.prefill_rows[option - colocated], self.decode_rows[option - colocated]

    def candidates(
        self, options: list[int], verdicts: list[str], now_s: float, target_s: float | None
    ) -> tuple[Candidate, ...]:
        """The figures of a few options as decision data."""
        ids, told = self.pool.ids, []
        queue_s, prefill_s, decode_s = self.queue_s.item, self.prefill_s.item, self.decode_s.item
        own_s, cached = self.own_s.item, self.cached.item
        for option, verdict in zip(options, verdicts, strict=True):
            prefill, decode = self.pair(option)
            transfer_s = 0.0 if self.transfer_s is None else self.transfer_s.item(option)
            finish_s = now_s + own_s(option)
            slack_s = None if target_s is None else target_s - finish_s
            told.append(
                _new_candidate(
                    ids[prefill],
                    ids[decode],
                    queue_s(option),
                    prefill_s(option),
                    transfer_s,
                    decode_s(option),
                    finish_s,
                    slack_s,
                    int(cached(option)),
                    verdict,
                )
            )
        return tuple(told)

    def placement(self, option: int, priority: int, reason: Explanation) -> Placement:
        """One option as a policy's answer."""
        prefill, decode = self.pair(option)
        return _new_placement(
            prefill=self.pool.ids[prefill],
            decode=self.pool.ids[decode],
            priority=priority,
            cached_tokens=self.cached.item(option),
            queue_s=self.queue_s.item(option),
            prefill_s=self.prefill_s.item(option),
            transfer_s=0.0 if self.transfer_s is None else self.transfer_s.item(option),
            decode_s=self.decode_s.item(option),
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
    need = demand.context_tokens + demand.output_tokens
    if need <= pool.least_capacity:
        return pool.is_open
    roomy = pool.is_open & (pool.kv_capacity >= need)
    if roomy.any():
        return roomy
    return pool.is_open & (pool.kv_capacity >= demand.context_tokens + 1)


def colocated(pool: Pool, call: Call, demand: Demand) -> Bools:
    """Instances that may serve both phases: open, mixed, large enough, able to replay; not where it just failed."""
    allowed = pool.mixed
    if demand.context_tokens + demand.output_tokens > pool.least_capacity:
        allowed = allowed & fits(pool, demand)
    if call.emitted:
        allowed = allowed & pool.can_replay
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
    """Weigh every colocated placement of a call."""
    terms = predict(pool, demand, now_s)
    prefill_harm_s, decode_harm_s = harms(pool, terms, demand, prices)
    ready_s = terms.wait_s + terms.prefill_s
    return Options(
        pool,
        terms,
        prefill_harm_s,
        decode_harm_s,
        colocated(pool, call, demand),
        terms.cached,
        terms.wait_s,
        terms.prefill_s,
        None,
        terms.decode_s,
        terms.step_s,
        ready_s,
        ready_s + terms.decode_s,
        prefill_harm_s + decode_harm_s,
    )


def harms(pool: Pool, terms: Terms, demand: Demand, prices: AgentServeConfig) -> tuple[Floats, Floats]:
    """Weighted harm done to others by the prefill and by the decode of a call, per instance."""
    output, context = demand.output_tokens, float(demand.context_tokens)
    prefill = terms.chunk_s * pool.running
    slower = np.minimum(pool.batch * terms.output, pool.remaining)
    slower *= terms.marginal_s
    if prices.social_weight != 1.0:  # two array operations less at the default weight
        prefill *= prices.social_weight
        slower *= prices.social_weight
    if pool.most_cache_excess + context > 0.0:  # else no instance's prefixes could outgrow its cache
        evicted = np.maximum(pool.cache_excess + terms.fresh, _ZERO)
        evicted *= pool.p1
        evicted *= prices.prefix_weight
        prefill += evicted
    if context + output > pool.least_kv_slack:
        over = np.maximum(context + output - pool.kv_slack, 0.0) / pool.kv_capacity
        slower += over * over * (1.0 + pool.preempted) * (prices.kv_weight / (1.0 - KV_FREE_SHARE) ** 2)
    return prefill, slower


def add_pairs(options: Options, call: Call, demand: Demand, prices: AgentServeConfig, below_s: float) -> None:
    """Append the split pairs of the best few instances, unless even ideal ones would cost `below_s` or more."""
    pool, terms = options.pool, options.terms
    if not pool.kv_groups:
        return
    is_served = options.count() > 0
    if is_served and (call.emitted or not pool.may_split):
        return
    first = options.ready_s - terms.seat_s + options.prefill_harm_s
    second = terms.seat_s + terms.decode_s + options.decode_harm_s
    margin = prices.split_gain_share if is_served else 0.0
    below_s, count = below_s / (1.0 + margin), prices.split_candidates
    if first.item(first.argmin()) + second.item(second.argmin()) >= below_s:
        return  # no pair of any two instances would do
    able = fits(pool, demand) & (pool.link > 0.0)
    if call.emitted:
        able &= pool.can_replay
    last_resorts = () if is_served else ((call.failed_on, False), (None, False))
    for avoid, shuns_broken in ((call.failed_on, True), *last_resorts):
        rows = _pairs(pool, able, avoid, first, second, below_s, count)
        if shuns_broken and pool.broken:
            rows = [(p, d) for p, d in rows if (pool.ids[p], pool.ids[d]) not in pool.broken]
        if rows:
            _append(options, demand, [p for p, _ in rows], [d for _, d in rows], margin, prices.prefix_weight)
            return


def _pairs(
    pool: Pool, able: Bools, avoid: str | None, first: Floats, second: Floats, below_s: float, count: int
) -> list[tuple[int, int]]:
    """Rows of the best few prefill and decode instances of each KV group, if the best of both cost less than that."""
    prefills, decodes = able & pool.can_prefill, able & pool.can_decode
    if avoid is not None:
        prefills, decodes = without(pool, prefills, avoid), without(pool, decodes, avoid)
    pairs: list[tuple[int, int]] = []
    for members in pool.kv_groups:
        rows, others = best_rows(first, prefills & members, count), best_rows(second, decodes & members, count)
        if rows and others and first.item(rows[0]) + second.item(others[0]) < below_s:
            pairs += [(row, other) for row in rows for other in others if row != other]
    return pairs


def _append(
    options: Options, demand: Demand, prefills: list[int], decodes: list[int], margin: float, prefix_weight: float
) -> None:
    pool, terms = options.pool, options.terms
    options.prefill_rows, options.decode_rows = prefills, decodes
    p, d = np.array(prefills), np.array(decodes)
    cached, cached_there = terms.cached.take(p), terms.cached.take(d)  # take: half the time of an index
    seat_s, prefill_s, decode_s = terms.seat_s.take(d), terms.prefill_s.take(p), terms.decode_s.take(d)
    moved = np.maximum(demand.context_tokens - cached_there, _ZERO)
    transfer_s = moved * pool.kv_bytes.take(p) / np.minimum(pool.link.take(p), pool.link.take(d))
    queue_s = terms.wait_s.take(p) - terms.seat_s.take(p) + seat_s
    ready_s = queue_s + prefill_s + transfer_s
    own_s = ready_s + decode_s
    evicted_s = np.maximum(pool.cache_excess.take(d) + moved, _ZERO) * pool.p1.take(d) * prefix_weight
    options.transfer_s = np.concatenate((np.zeros(len(pool.ids)), transfer_s))
    for name, extra in (
        ("allowed", np.ones(len(prefills), dtype=bool)),
        ("cached", cached),
        ("queue_s", queue_s),
        ("prefill_s", prefill_s),
        ("decode_s", decode_s),
        ("step_s", terms.step_s.take(d)),
        ("ready_s", ready_s),
        ("own_s", own_s),
        ("harm_s", options.prefill_harm_s.take(p) + options.decode_harm_s.take(d) + evicted_s + margin * own_s),
    ):
        setattr(options, name, np.concatenate((getattr(options, name), extra)))
