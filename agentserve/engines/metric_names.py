"""Under which exact names does each kind of engine publish its state? Field of a reading → metric.

Several names share prefixes, so they are matched whole. Not listed are vLLM's sums of queue and prefill time: they go
wrong (negative) on decode instances.
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
