"""What does an engine say about itself on `/metrics`? The few lines that matter, and their differences over time.

A kind of engine is a mapping from the fields of a reading to its exact metrics (`agentserve/engines/metric_names.py`).
Several share prefixes, so they are matched whole. A missing metric is None, never zero. Of engines with data
parallelism, which label each line with their rank, counts are summed and shares averaged.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from agentserve.engines.metric_names import VLLM_METRICS

PROMPT_BY_SOURCE: Final = "vllm:prompt_tokens_by_source_total"
CACHE_CONFIG: Final = "vllm:cache_config_info"
PROCESS_START: Final = "process_start_time_seconds"
RUNNING: Final = VLLM_METRICS["running"]
NIXL_LEASES: Final = "vllm:nixl_num_kv_expired_reqs_total"
"""Only a vLLM with a NIXL connector counts these."""

_SUMS: Final = ("running", "waiting", "preemptions", "prefix_queries", "prefix_hits", "prompt_tokens",
                "computed_tokens", "generation_tokens")  # fmt: skip
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


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache as vLLM's info metric states it; None: not told."""

    capacity_tokens: int | None
    block_tokens: int | None
    dtype: str | None


def parse(text: bytes, names: Mapping[str, str] = VLLM_METRICS) -> Mapping[str, list[Sample]]:
    """The samples of the metrics read here, by name; lines with NaN, infinite or unreadable values are left out."""
    found: dict[str, list[Sample]] = {}
    for name, labels, raw in _lines(tuple(names.values())).findall(text):
        try:
            value = float(raw)
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(name.decode(), []).append(Sample(labels.decode(errors="replace"), value))
    return found


def present(text: bytes, names: Mapping[str, str]) -> dict[str, str]:
    """Of `names`, by field, those that have a value on the page."""
    samples = parse(text, names)
    return {field: name for field, name in names.items() if name in samples}


def read(text: bytes, at_s: float, names: Mapping[str, str] = VLLM_METRICS) -> Reading:
    """A reading of Prometheus text, by the names of its kind of engine; what is missing or unreadable is None."""
    samples = parse(text, names)
    sums = {field: _sum(samples, names.get(field)) for field in _SUMS}
    local = [s.value for s in samples.get(PROMPT_BY_SOURCE, ()) if _LOCAL_COMPUTE in s.labels]
    if sums["computed_tokens"] is None and local:
        sums["computed_tokens"] = sum(local)
    elif sums["computed_tokens"] is None and sums["prompt_tokens"] is not None and sums["prefix_hits"] is not None:
        sums["computed_tokens"] = sums["prompt_tokens"] - sums["prefix_hits"]
    return Reading(
        at_s=at_s,
        running=_count(sums.pop("running")),
        waiting=_count(sums.pop("waiting")),
        kv_usage=_share(samples, names.get("kv_usage")),
        process_start_s=_sum(samples, PROCESS_START),
        **sums,
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


def cache_config(text: bytes) -> CacheConfig | None:
    """What the labels of `vllm:cache_config_info` say, the capacities of all ranks added up; None without it."""
    samples = parse(text).get(CACHE_CONFIG, ())
    capacity, block, dtype = 0, None, None
    for sample in samples:
        labels = dict(_LABEL.findall(sample.labels))
        dtype = labels.get("cache_dtype", dtype)
        block = _number(labels.get("block_size")) or block
        blocks = _number(labels.get("num_gpu_blocks"))
        capacity += _number(labels.get("kv_cache_size_tokens")) or (block or 0) * (blocks or 0)
    return CacheConfig(capacity or None, block, dtype) if samples else None


@cache
def _lines(names: tuple[str, ...]) -> re.Pattern[bytes]:
    wanted = dict.fromkeys((*names, PROMPT_BY_SOURCE, CACHE_CONFIG, PROCESS_START))
    choice = b"|".join(re.escape(name).encode() for name in wanted)
    return re.compile(rb"^(" + choice + rb")(?:\{(.*)\})?[ \t]+(\S+)", re.MULTILINE)


def _sum(samples: Mapping[str, list[Sample]], name: str | None) -> float | None:
    values = samples.get(name) if name is not None else None
    return sum(s.value for s in values) if values else None


def _share(samples: Mapping[str, list[Sample]], name: str | None) -> float | None:
    shares = [s.value for s in samples.get(name, ()) if s.value >= 0] if name is not None else []
    return min(sum(shares) / len(shares), 1.0) if shares else None


def _number(label: str | None) -> int | None:
    return int(label) if label is not None and label.isdecimal() and int(label) > 0 else None


def _count(value: float | None) -> int | None:
    return None if value is None or value < 0 else round(value)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
