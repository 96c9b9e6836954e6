"""How long does a prefill or a decode step take on a GPU? The formulas."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """Step-time model of one model on one GPU type (with its tensor parallelism).

    prefill_s  = c·(p0 + p1·m + p2·(m² + 2·P·m))         m new tokens after P cached ones
    decode_s   = c·(d0 + d1·B + d2·Σctx) + s·B           B running sequences, Σctx their context tokens
    A mixed step (chunked prefill beside decodes) takes the decode time plus the chunks' prefill time without its p0.
    c is the calibration factor, s the cost per sequence that kernel sums leave out. All constants in seconds.
    """

    gpu: str
    model: str
    tensor_parallel: int
    prefill_base_s: float
    prefill_per_token_s: float
    prefill_per_token2_s: float
    decode_base_s: float
    decode_per_sequence_s: float
    decode_per_context_token_s: float
    calibration: float
    overhead_per_sequence_s: float
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    kv_link_bytes_per_s: float
    capability: float
    """Decode tokens/s at batch 32 and 2,048 tokens of context each: what 'weaker' and 'stronger' compare."""

    def prefill_s(self, new_tokens: float, cached_tokens: float = 0.0) -> float:
        """Seconds to prefill `new_tokens` after `cached_tokens` that are already in the KV cache, alone."""
        per_token = self.prefill_per_token_s * new_tokens
        quadratic = self.prefill_per_token2_s * (new_tokens * new_tokens + 2.0 * cached_tokens * new_tokens)
        return self.calibration * (self.prefill_base_s + per_token + quadratic)

    def decode_step_s(self, batch: float, context_tokens: float) -> float:
        """Seconds of one decode iteration of `batch` sequences with `context_tokens` of context in sum."""
        kernel = (
            self.decode_base_s + self.decode_per_sequence_s * batch + self.decode_per_context_token_s * context_tokens
        )
        return self.calibration * kernel + self.overhead_per_sequence_s * batch
