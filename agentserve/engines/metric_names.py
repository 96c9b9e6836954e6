"""Under which exact names does each kind of engine publish its state? Field of a reading → metric.

Several names share prefixes, so they are matched whole. Not listed are vLLM's sums of queue and prefill time: they go
wrong (negative) on decode instances. A field that an engine does not publish with the same meaning is left out.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

VLLM_METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_usage": "vllm:kv_cache_usage_perc",
        "preemptions": "vllm:num_preemptions_total",
        "prefix_queries": "vllm:prefix_cache_queries_total",
        "prefix_hits": "vllm:prefix_cache_hits_total",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generation_tokens": "vllm:generation_tokens_total",
    }
)

SGLANG_METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
        "kv_usage": "sglang:token_usage",
        "preemptions": "sglang:num_retracted_requests_total",
        "prefix_queries": "sglang:prompt_tokens_total",
        "prefix_hits": "sglang:cached_tokens_total",
        "prompt_tokens": "sglang:prompt_tokens_total",
        "generation_tokens": "sglang:generation_tokens_total",
    }
)
"""On `/metrics` with `--enable-metrics`. Counted when a request has ended; hits are a line per source, to be summed."""

TRTLLM_METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "running": "trtllm_num_requests_running",
        "waiting": "trtllm_num_requests_waiting",
        "kv_usage": "trtllm_kv_cache_utilization",
        "prefix_queries": "trtllm_prompt_tokens_total",
        "prefix_hits": "trtllm_prompt_cached_tokens_total",
        "prompt_tokens": "trtllm_prompt_tokens_total",
        "generation_tokens": "trtllm_generation_tokens_total",
    }
)
"""On `/prometheus/metrics` with `return_perf_metrics`, gauges with `enable_iter_perf_stats` as well.

Gauges are refreshed when a request ends. `/metrics` is JSON, and reading it empties it.
"""

LLAMACPP_METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "computed_tokens": "llamacpp:prompt_tokens_total",
        "generation_tokens": "llamacpp:tokens_predicted_total",
    }
)
"""On `/metrics` with `--metrics`. Its prompt tokens are those it had to compute, without the cached ones."""
