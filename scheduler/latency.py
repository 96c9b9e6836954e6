"""How long would this call take on each instance? Queue, prefill, KV transfer and decode, for all instances at once.

For n new tokens after H cached ones, L more output tokens, batch B with contexts summing to C (all per instance):

    queue    = max(free_at - now, 0.25·queued work) + work that others queued
    seat     = max(B + 1 - max_seqs, 0)/B, or KV tokens short/KV used, whichever is more, x mean remaining time
    prefill  = p1·n + p2·(n² + 2·H·n) + chunks·(p0, or a decode step while others decode)
    transfer = tokens not at the decode instance x bytes per token / slower of the two links
    decode   = L·(d0 + d1·(B + 1) + d2·(C + context + (B + 1)·L/2))

`p*`, `d*` are the GPU profile's constants, corrected by observation (see estimate.py). Departures from the batch are
taken to be made up by arrivals, so each of its contexts grows by L/2 on average while the call decodes.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.decisions import LengthForecast
from scheduler.estimate import Floats, Pool

_OVERDUE_SHARE = 0.25
"""Prefills that should have ended but did not are taken to need this share of their work still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a call still needs: prefill of its context (prompt and what it put out), then `output` more tokens."""

    context_tokens: int
    emitted: int
    length: LengthForecast
    """Of the whole output, `emitted` tokens included."""
    prefix_hashes: tuple[int, ...]
    prefix_block_tokens: int

    @property
    def output_tokens(self) -> float:
        """Median of the output tokens still to come."""
        return max(self.length.p50_tokens - self.emitted, 1.0)


@dataclass(slots=True, kw_only=True)
class Terms:
    """Predicted seconds and tokens per instance of a pool, in its row order."""

    cached: Floats
    fresh: Floats
    queue_s: Floats
    seat_s: Floats
    chunk_s: Floats
    """Prefill without the cost of a step: what each decoding resident is delayed by."""
    prefill_s: Floats
    step_s: Floats
    """One decode step with this call in the batch."""
    decode_s: Floats
    kv_used: Floats


def cached_tokens(pool: Pool, demand: Demand) -> Floats:
    """Tokens of the prompt each instance is expected to hold; at least one token is always computed."""
    if not demand.prefix_hashes:
        return np.zeros(len(pool.ids))
    depths = pool.prefixes.depths(demand.prefix_hashes)[pool.bits]
    tokens: Floats = np.minimum(depths * float(demand.prefix_block_tokens), demand.context_tokens - 1.0) * pool.trust
    return tokens


def predict(pool: Pool, demand: Demand, now_s: float) -> Terms:
    """Predict every term of serving `demand` on every instance of the pool."""
    context, output = float(demand.context_tokens), demand.output_tokens
    cached = cached_tokens(pool, demand)
    fresh = context - cached
    fresh_report = (now_s - pool.reported_at_s) <= pool.config.stale_after_s
    foreign = pool.foreign * fresh_report
    kv_used = np.maximum(pool.kv_own + pool.kv_offset * fresh_report, 0.0)
    batch = pool.running + pool.bound + foreign
    seats = np.minimum(batch + 1.0, pool.max_seqs)

    chunk_s = pool.p1 * fresh + pool.p2 * (fresh * (fresh + 2.0 * cached))
    now_step_s = pool.d0 + pool.d1 * batch + pool.d2 * pool.kv_own
    per_chunk_s = np.where(pool.running + foreign > 0.0, now_step_s, pool.p0)
    prefill_s = chunk_s + np.ceil(fresh / pool.max_batched) * per_chunk_s
    step_s = pool.d0 + pool.d1 * seats + pool.d2 * (pool.kv_own + context + (0.5 * output) * seats)

    queue_s = np.maximum(pool.free_at_s - now_s, _OVERDUE_SHARE * pool.queued_work_s)
    queue_s += pool.foreign_wait_s * fresh_report
    over_seats = (batch + 1.0 - pool.max_seqs) / np.maximum(batch, 1.0)
    over_kv = (kv_used + context + 1.0 - pool.kv_capacity) / np.maximum(kv_used, 1.0)
    short = np.maximum(np.maximum(over_seats, over_kv), 0.0)
    seat_s = short * (pool.remaining / np.maximum(batch, 1.0)) * now_step_s
    return Terms(
        cached=cached,
        fresh=fresh,
        queue_s=queue_s,
        seat_s=seat_s,
        chunk_s=chunk_s,
        prefill_s=prefill_s,
        step_s=step_s,
        decode_s=output * step_s,
        kv_used=kv_used,
    )


def chance_to_fit(fit_tokens: Floats, demand: Demand, speed_sigma: float) -> Floats:
    """P(output still to come ≤ fit_tokens): log-normal through the forecast's quantiles, widened by model error.

    The normal distribution is taken as the logistic 1/(1 + exp(-1.702 z)), off by at most 0.01.
    """
    low = max(demand.length.p10_tokens - demand.emitted, 1.0)
    high = max(demand.length.p90_tokens - demand.emitted, 1.0)
    spread = np.log(high / low) / 2.563  # ln(p90/p10) of a log-normal is 2 x 1.2816 sigma
    sigma = max(float(np.hypot(spread, speed_sigma)), 1e-3)
    z = np.log(np.maximum(fit_tokens, 1e-9) / demand.output_tokens) * (1.702 / sigma)
    chance: Floats = 1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))
    return chance
