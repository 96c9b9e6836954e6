"""How long would this call take on each instance? Queue, prefill, KV transfer and decode, for all instances at once.

For n new tokens after H cached ones, L more output tokens, batch B with contexts summing to C (all per instance):

    queue    = max(free_at - now, 0.25·queued work) + work that others queued
    seat     = max(B + 1 - max_seqs, 0)/B, or KV tokens short/KV used, whichever is more, x mean remaining time
    prefill  = p1·n + p2·(n² + 2·H·n) + n/max_batched·(p0, or a decode step while others decode), at least one of them
    transfer = tokens not at the decode instance x bytes per token / slower of the two links
    decode   = L·(d0 + d1·(B + 1) + d2·(C + context + (B + 1)·L/2))
             = L·(d0 + d1·B + d2·C + B·d2·L/2 + marginal), marginal = d1 + d2·(context + L/2)

`p*`, `d*` are the GPU profile's constants, corrected by observation (see estimate.py). Departures from the batch are
taken to be made up by arrivals, so each of its contexts grows by L/2 on average while the call decodes.
"""

from dataclasses import dataclass, field

import numpy as np

from scheduler.decisions import LengthForecast
from scheduler.estimate import Floats, Pool

_ONE = np.array(1.0)
"""NumPy takes a Python float 0.3 µs slower than such an array, and `maximum` twice as slowly (0.9 against 2.0 µs)."""


@dataclass(slots=True, kw_only=True)
class Demand:
    """What a call still needs: prefill of its context (prompt and what it put out), then `output` more tokens."""

    context_tokens: int
    emitted: int
    length: LengthForecast
    """Of the whole output, `emitted` tokens included."""
    prefix_hashes: tuple[int, ...]
    prefix_block_tokens: int
    output_tokens: float = field(init=False)
    """Median of the output tokens still to come."""

    def __post_init__(self) -> None:
        self.output_tokens = max(self.length.p50_tokens - self.emitted, 1.0)


@dataclass(slots=True)
class Terms:
    """Predicted seconds and tokens per instance of a pool, in its row order."""

    output: Floats
    """The demand's output tokens, one number for all."""
    cached: Floats
    fresh: Floats
    wait_s: Floats
    """Queue and seat."""
    seat_s: Floats
    """Wait for a sequence slot or for KV room to decode in."""
    chunk_s: Floats
    """Prefill without the cost of a step: what each decoding resident is delayed by."""
    prefill_s: Floats
    marginal_s: Floats
    """What this call adds to a decode step: what each resident's steps slow by."""
    step_s: Floats
    """One decode step with this call in the batch."""
    decode_s: Floats

    @property
    def queue_s(self) -> Floats:
        """Prefills that were sent before."""
        return self.wait_s - self.seat_s


def cached_tokens(pool: Pool, demand: Demand) -> Floats:
    """Tokens of the prompt each instance is expected to hold; at least one token is always computed."""
    if not demand.prefix_hashes:
        return np.zeros(len(pool.ids))
    most = demand.context_tokens - 1.0
    tokens = pool.prefixes.depths(demand.prefix_hashes, demand.prefix_block_tokens, most).take(pool.bits)
    tokens *= pool.trust
    return tokens


def predict(pool: Pool, demand: Demand, now_s: float) -> Terms:
    """Predict every term of serving `demand` on every instance; the pool's derived quantities must be fresh."""
    context, output = np.array(float(demand.context_tokens)), np.array(demand.output_tokens)
    cached = cached_tokens(pool, demand)
    fresh = context - cached
    # p1·n + p2·(n² + 2·H·n) with n = context - H, gathered so that it takes the fewest array operations.
    chunk_s = context + cached
    chunk_s *= pool.p2
    chunk_s += pool.p1
    chunk_s *= fresh
    marginal_s = pool.d2 * np.array(demand.context_tokens + 0.5 * demand.output_tokens)
    marginal_s += pool.d1
    step_s = pool.step_growth_s * output
    step_s += pool.step_base_s
    step_s += marginal_s
    wait_s, seat_s = _wait_s(pool, demand.context_tokens, now_s)
    prefill_s = _prefill_s(pool, demand, fresh, chunk_s)
    return Terms(output, cached, fresh, wait_s, seat_s, chunk_s, prefill_s, marginal_s, step_s, step_s * output)


def _prefill_s(pool: Pool, demand: Demand, fresh: Floats, chunk_s: Floats) -> Floats:
    if demand.context_tokens <= pool.least_batched:  # one chunk anywhere: three array operations less
        return chunk_s + pool.chunk_base_s
    chunks: Floats = np.maximum(fresh / pool.max_batched, _ONE)
    chunks *= pool.chunk_base_s
    chunks += chunk_s
    return chunks


def _wait_s(pool: Pool, context: float, now_s: float) -> tuple[Floats, Floats]:
    """Queue and seat in sum, and the seat alone."""
    wait_s: Floats = np.maximum(pool.free_from_s - np.array(now_s), pool.least_wait_s)
    if context <= pool.least_kv_slack:  # nowhere near a full KV cache: only sequence slots can be short
        return wait_s, pool.seat_wait_s
    short = np.maximum(pool.kv_used + (context + 1.0) - pool.kv_capacity, 0.0) / np.maximum(pool.kv_used, 1.0)
    seat_s = np.maximum(pool.seat_wait_s, short * pool.mean_remaining_s)
    return wait_s + (seat_s - pool.seat_wait_s), seat_s
