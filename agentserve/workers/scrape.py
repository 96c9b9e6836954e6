"""What does an engine say about itself on `/metrics`? The few lines that matter, and their differences over time.

Names are vLLM's. Several share prefixes, so they are matched whole. A missing metric is None, never zero. Of engines
with data parallelism, which label each line with their rank, counts are summed and shares averaged. Sums of queue and
prefill time are not read: they go wrong on decode instances.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
KV_USAGE: Final = "vllm:kv_cache_usage_perc"
PREEMPTIONS: Final = "vllm:num_preemptions_total"
PREFIX_QUERIES: Final = "vllm:prefix_cache_queries_total"
PREFIX_HITS: Final = "vllm:prefix_cache_hits_total"
PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
PROMPT_BY_SOURCE: Final = "vllm:prompt_tokens_by_source_total"
GENERATION_TOKENS: Final = "vllm:generation_tokens_total"
CACHE_CONFIG: Final = "vllm:cache_config_info"
PROCESS_START: Final = "process_start_time_seconds"

_NAMES: Final = (RUNNING, WAITING, KV_USAGE, PREEMPTIONS, PREFIX_QUERIES, PREFIX_HITS, PROMPT_TOKENS, PROMPT_BY_SOURCE,
                 GENERATION_TOKENS, CACHE_CONFIG, PROCESS_START)  # fmt: skip
_LINE: Final = re.compile(
    rb"^(" + b"|".join(re.escape(name).encode() for name in _NAMES) + rb")(?:\{(.*)\})?[ \t]+(\S+)", re.MULTILINE
)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_LOCAL_COMPUTE: Final = 'source="local_compute"'


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: its labels as they stand, and its value, which is finite."""

    labels: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One scrape. Counters run since the engine's start; None: the engine does not give it."""

    at_s: float
    """When it was asked for, on a clock that only runs forward."""
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    prompt_tokens: float | None = None
    computed_tokens: float | None = None
    """Prompt tokens that were prefilled here: neither cached nor received."""
    generation_tokens: float | None = None
    process_start_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happened between two readings of the same engine process."""

    prefix_hit_rate: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    preemptions: int | None = None


def parse(text: bytes) -> Mapping[str, list[Sample]]:
    """The samples of the metrics read here, by name; lines with NaN, infinite or unreadable values are left out."""
    found: dict[str, list[Sample]] = {}
    for name, labels, raw in _LINE.findall(text):
        try:
            value = float(raw)
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(name.decode(), []).append(Sample(labels.decode(errors="replace"), value))
    return found


def read(text: bytes, at_s: float) -> Reading:
    """A reading of Prometheus text as served by `/metrics`; whatever is missing or unreadable is None."""
    samples = parse(text)
    prompt, hits = _sum(samples, PROMPT_TOKENS), _sum(samples, PREFIX_HITS)
    local = [s.value for s in samples.get(PROMPT_BY_SOURCE, ()) if _LOCAL_COMPUTE in s.labels]
    computed = sum(local) if local else None
    if computed is None and prompt is not None and hits is not None:
        computed = prompt - hits
    shares = [s.value for s in samples.get(KV_USAGE, ()) if s.value >= 0]
    return Reading(
        at_s=at_s,
        running=_count(_sum(samples, RUNNING)),
        waiting=_count(_sum(samples, WAITING)),
        kv_usage=min(sum(shares) / len(shares), 1.0) if shares else None,
        preemptions=_sum(samples, PREEMPTIONS),
        prefix_queries=_sum(samples, PREFIX_QUERIES),
        prefix_hits=hits,
        prompt_tokens=prompt,
        computed_tokens=computed,
        generation_tokens=_sum(samples, GENERATION_TOKENS),
        process_start_s=_sum(samples, PROCESS_START),
    )


def restarted(before: Reading, after: Reading) -> bool:
    """Whether the engine process is another one: a counter fell, or it says that it started at another time."""
    if None not in (before.process_start_s, after.process_start_s) and before.process_start_s != after.process_start_s:
        return True
    counters = ("preemptions", "prefix_queries", "prefix_hits", "prompt_tokens", "generation_tokens")
    pairs = ((getattr(before, name), getattr(after, name)) for name in counters)
    return any(old is not None and new is not None and new < old for old, new in pairs)


def change(before: Reading | None, after: Reading) -> Change:
    """Rates and counts since `before`; all None on the first reading and over a restart."""
    if before is None or after.at_s <= before.at_s or restarted(before, after):
        return Change()
    duration_s = after.at_s - before.at_s
    queries = _difference(before.prefix_queries, after.prefix_queries)
    hits = _difference(before.prefix_hits, after.prefix_hits)
    computed = _difference(before.computed_tokens, after.computed_tokens)
    generated = _difference(before.generation_tokens, after.generation_tokens)
    preemptions = _difference(before.preemptions, after.preemptions)
    return Change(
        prefix_hit_rate=min(hits / queries, 1.0) if hits is not None and queries else None,
        prefill_tokens_per_s=None if computed is None else max(computed, 0.0) / duration_s,
        decode_tokens_per_s=None if generated is None else generated / duration_s,
        preemptions=None if preemptions is None else round(preemptions),
    )


def kv_cache_size(text: bytes) -> tuple[int | None, int | None]:
    """KV capacity in tokens and tokens per block, from the labels of `vllm:cache_config_info`."""
    capacity, block = 0, None
    for sample in parse(text).get(CACHE_CONFIG, ()):
        labels = dict(_LABEL.findall(sample.labels))
        if labels.get("block_size", "").isdecimal() and labels.get("num_gpu_blocks", "").isdecimal():
            block = int(labels["block_size"])
            capacity += block * int(labels["num_gpu_blocks"])
    return capacity or None, block or None


def _sum(samples: Mapping[str, list[Sample]], name: str) -> float | None:
    values = samples.get(name)
    return sum(s.value for s in values) if values else None


def _count(value: float | None) -> int | None:
    return None if value is None or value < 0 else round(value)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
