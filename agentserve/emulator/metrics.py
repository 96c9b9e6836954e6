"""What does `/metrics` say? vLLM's names in Prometheus' text format, and a few of the emulator's own."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from agentserve.emulator.engine import Engine

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)


class Histogram:
    """Cumulative buckets of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, value_s: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(_SECONDS, value_s)] += 1
        self.total += value_s

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The histogram in Prometheus' text format."""
        running = 0
        yield f"# TYPE {name} histogram"
        for bound, count in zip((*_SECONDS, "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {running}'
        yield f"{name}_count{{{labels}}} {running}"
        yield f"{name}_sum{{{labels}}} {self.total}"


@dataclass(frozen=True, slots=True)
class Histograms:
    """Wall seconds as this server's clients see them."""

    first_token: Histogram = field(default_factory=Histogram)
    inter_token: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)


def render(engine: Engine, histograms: Histograms, model: str, lag_s: float, lost_s: float) -> str:
    """The page: gauges and counters from the engine, histograms from the driver."""
    labels = f'engine="0",model_name="{_escape(model)}"'
    state, counters = engine.state, engine.counters
    gauges = {
        "vllm:num_requests_running": state.running,
        "vllm:num_requests_waiting": state.waiting,
        "vllm:kv_cache_usage_perc": state.kv_usage,
        "emulator:lag_seconds": lag_s,
    }
    totals = {
        "vllm:num_preemptions_total": counters.preemptions,
        "vllm:prefix_cache_queries_total": counters.prefix_queries,
        "vllm:prefix_cache_hits_total": counters.prefix_hits,
        "vllm:prompt_tokens_total": counters.prompt_tokens,
        "vllm:generation_tokens_total": counters.generation_tokens,
        "vllm:nixl_num_kv_expired_reqs_total": counters.expired_leases,
        "emulator:iterations_total": counters.iterations,
        "emulator:busy_engine_seconds_total": counters.busy_s,
        "emulator:transferred_tokens_total": counters.transferred_tokens,
        "emulator:expired_kv_leases_total": counters.expired_leases,
        "emulator:lost_seconds_total": lost_s,
    }
    lines: list[str] = []
    for kind, values in (("gauge", gauges), ("counter", totals)):
        for name, value in values.items():
            lines += (f"# TYPE {name} {kind}", f"{name}{{{labels}}} {value}")
    received = min(counters.transferred_tokens, counters.prompt_tokens)
    cached = min(counters.prefix_hits, counters.prompt_tokens - received)
    sources = {
        "external_kv_transfer": received,
        "local_cache_hit": cached,
        "local_compute": counters.prompt_tokens - received - cached,
    }
    lines.append("# TYPE vllm:prompt_tokens_by_source_total counter")
    lines += (
        f'vllm:prompt_tokens_by_source_total{{{labels},source="{name}"}} {value}' for name, value in sources.items()
    )
    lines += ("# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{_cache_labels(engine)}}} 1.0")
    lines += histograms.first_token.lines("vllm:time_to_first_token_seconds", labels)
    lines += histograms.inter_token.lines("vllm:inter_token_latency_seconds", labels)
    lines += histograms.whole.lines("vllm:e2e_request_latency_seconds", labels)
    lines += histograms.queue.lines("vllm:request_queue_time_seconds", labels)
    return "\n".join(lines) + "\n"


def _cache_labels(engine: Engine) -> str:
    """Of vLLM's labels those that tell the cache's size and layout."""
    blocks, block = engine.pool.total, engine.block_tokens
    return (
        f'block_size="{block}",cache_dtype="auto",engine="0",kv_cache_size_tokens="{blocks * block}",'
        f'num_gpu_blocks="{blocks}"'
    )


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
