"""What is read from an engine's metrics text, and what is made of two readings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentserve.engines.metric_names import LLAMACPP_METRICS, SGLANG_METRICS, TRTLLM_METRICS, VLLM_METRICS
from agentserve.workers.scrape import (
    NIXL_LEASES,
    CacheConfig,
    Change,
    Reading,
    cache_config,
    change,
    parse,
    present,
    read,
    restarted,
)

RECORDED = (Path(__file__).parent / "recorded" / "vllm_0_32_metrics.txt").read_bytes()
"""A whole page of a real vLLM 0.32 with a NIXL connector after one call, less most buckets."""

# A real vLLM 0.32 server's /metrics, cut to the lines around those that matter.
VLLM = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 10912.0
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79473012345e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 7.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 90.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 91.0
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.4375
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 52000.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7947301300e+09
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 32000.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 5.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7947301300e+09
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 50000.0
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 17000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 31000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="external_kv_transfer"} 2000.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 1.23456e+06
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="27500",user="a \\"b\\" } c"} 1.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 12.5
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} -44.0
"""


def counters(at_s: float, **values: Any) -> Reading:
    usual = {"preemptions": 1.0, "prefix_queries": 100.0, "prefix_hits": 40.0, "prompt_tokens": 100.0,
             "computed_tokens": 60.0, "generation_tokens": 500.0, "process_start_s": 1e9}  # fmt: skip
    return Reading(at_s=at_s, **{**usual, **values})


def test_a_vllm_servers_text_is_read_whole() -> None:
    assert read(VLLM, at_s=5.0) == Reading(
        at_s=5.0,
        running=7,
        waiting=2,
        kv_usage=0.4375,
        preemptions=3.0,
        prefix_queries=52_000.0,
        prefix_hits=32_000.0,
        prompt_tokens=50_000.0,
        computed_tokens=17_000.0,
        generation_tokens=1_234_560.0,
        process_start_s=1_794_730_123.45,
    )


def test_the_cache_size_is_in_the_labels_of_an_info_metric() -> None:
    assert cache_config(VLLM) == CacheConfig(440_000, 16, "auto")
    assert cache_config(b"") is None
    unknown = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    assert cache_config(unknown) == CacheConfig(None, 16, None)


def test_what_is_missing_is_unknown_and_not_zero() -> None:
    assert read(b"", at_s=0.0) == Reading(at_s=0.0)
    assert read(b"<html>not metrics</html>\n\xff\xfe{} 1\n", at_s=0.0) == Reading(at_s=0.0)


@pytest.mark.parametrize(
    "name", ["process_start_time_seconds", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"]
)
@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-Inf", b"seven", b""])
def test_a_value_that_is_no_number_is_unknown(name: str, value: bytes) -> None:
    reading = read(name.encode() + b"{} " + value + b"\n", at_s=0.0)
    assert reading == Reading(at_s=0.0)


def test_cached_tokens_are_subtracted_where_the_engine_does_not_name_their_source() -> None:
    text = b"\n".join(line for line in VLLM.splitlines() if b"by_source" not in line)
    assert read(text, at_s=0.0).computed_tokens == 50_000.0 - 32_000.0


def test_ranks_of_a_data_parallel_engine_are_added_up() -> None:
    text = b"""\
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
vllm:kv_cache_usage_perc{engine="0"} 0.2
vllm:kv_cache_usage_perc{engine="1"} 0.6
vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="32",engine="1",num_gpu_blocks="100"} 1.0
"""
    reading = read(text, at_s=0.0)
    assert (reading.running, reading.kv_usage) == (7, pytest.approx(0.4))
    assert cache_config(text) == CacheConfig(6400, 32, None)


@pytest.mark.parametrize(("given", "understood"), [(b"1.0000001", 1.0), (b"0", 0.0), (b"-0.1", None)])
def test_a_usage_share_stays_within_its_range(given: bytes, understood: float | None) -> None:
    assert read(b"vllm:kv_cache_usage_perc " + given + b"\n", at_s=0.0).kv_usage == understood


def test_a_timestamp_behind_the_value_and_windows_line_ends_do_no_harm() -> None:
    assert read(b"vllm:num_requests_running{} 3.0 1794730123000\r\n", at_s=0.0).running == 3


def test_only_wanted_lines_are_kept() -> None:
    assert set(parse(VLLM)) == {
        "process_start_time_seconds", "vllm:num_requests_running", "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:prompt_tokens_by_source_total",
        "vllm:generation_tokens_total", "vllm:cache_config_info",
    }  # fmt: skip


def test_rates_come_from_differences() -> None:
    after = counters(0.5, preemptions=3.0, prefix_queries=180.0, prefix_hits=100.0, computed_tokens=80.0,
                     generation_tokens=750.0)  # fmt: skip
    assert change(counters(0.0), after) == Change(
        prefix_hit_rate=0.75, prefill_tokens_per_s=40.0, decode_tokens_per_s=500.0, preemptions=2
    )


def test_an_idle_engine_has_rates_of_zero_and_no_hit_rate() -> None:
    assert change(counters(0.0), counters(1.0)) == Change(
        prefix_hit_rate=None, prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0, preemptions=0
    )


def test_the_first_reading_tells_no_rates() -> None:
    assert change(None, counters(1.0)) == Change()


def test_a_counter_that_appears_later_tells_no_rate_yet() -> None:
    assert change(counters(0.0, generation_tokens=None), counters(1.0)).decode_tokens_per_s is None


def test_hits_counted_before_their_prompts_do_not_make_a_negative_speed() -> None:
    assert change(counters(0.0), counters(1.0, computed_tokens=55.0)).prefill_tokens_per_s == 0.0


@pytest.mark.parametrize(
    "after", [{"generation_tokens": 2.0}, {"prompt_tokens": 0.0}, {"preemptions": 0.0}, {"process_start_s": 1e9 + 5}]
)
def test_a_restart_is_noticed_and_its_differences_are_not_used(after: dict[str, float]) -> None:
    before, now = counters(0.0), counters(1.0, **after)
    assert restarted(before, now)
    assert change(before, now) == Change()


def test_growth_and_unknown_counters_are_no_restart() -> None:
    before = counters(0.0)
    assert not restarted(before, counters(1.0, generation_tokens=501.0))
    assert not restarted(before, replace(before, generation_tokens=None, process_start_s=None))


def test_a_real_vllm_publishes_every_metric_that_is_read() -> None:
    assert present(RECORDED, VLLM_METRICS) == dict(VLLM_METRICS)
    assert present(RECORDED, {"leases": NIXL_LEASES}) == {"leases": NIXL_LEASES}
    assert cache_config(RECORDED) == CacheConfig(8192, 32, "auto")
    assert read(RECORDED, at_s=1.0) == Reading(
        at_s=1.0,
        running=0,
        waiting=0,
        kv_usage=0.0,
        preemptions=0.0,
        prefix_queries=15.0,
        prefix_hits=0.0,
        prompt_tokens=15.0,
        computed_tokens=15.0,
        generation_tokens=1.0,
        process_start_s=1_795_498_812.41,
    )


def test_the_cache_size_that_vllm_names_wins_over_blocks_times_their_size() -> None:
    text = b'vllm:cache_config_info{block_size="32",kv_cache_size_tokens="9000",num_gpu_blocks="256"} 1.0\n'
    assert cache_config(text) == CacheConfig(9000, 32, None)


OTHER = {"running": "other:running", "waiting": "other:waiting", "kv_usage": "other:usage",
         "prompt_tokens": "other:prompt", "prefix_queries": "other:prompt", "prefix_hits": "other:cached",
         "generation_tokens": "other:made"}  # fmt: skip
OTHER_TEXT = b"""\
other:running{rank="0"} 2
other:running_reqs{rank="0"} 99
other:usage 0.5
other:prompt{model="m"} 100
other:cached{source="device"} 30
other:cached{source="host"} 10
other:made 7
vllm:num_requests_running 55
"""


def test_another_kind_of_engine_is_another_mapping() -> None:
    assert read(OTHER_TEXT, 1.0, OTHER) == Reading(
        at_s=1.0,
        running=2,
        kv_usage=0.5,
        prefix_queries=100.0,
        prefix_hits=40.0,
        prompt_tokens=100.0,
        computed_tokens=60.0,
        generation_tokens=7.0,
    )


def test_tokens_that_an_engine_names_as_computed_are_taken_as_they_are() -> None:
    names = {"computed_tokens": "other:prompt", "generation_tokens": "other:made"}
    reading = read(OTHER_TEXT, 1.0, names)
    assert (reading.computed_tokens, reading.prompt_tokens) == (100.0, None)


def test_an_engine_without_a_start_time_shows_its_restart_by_its_counters() -> None:
    before = read(OTHER_TEXT, 1.0, OTHER)
    after = read(OTHER_TEXT.replace(b"made 7", b"made 1"), 2.0, OTHER)
    assert restarted(before, after)
    assert not restarted(before, replace(before, at_s=2.0))


KINDS = {"vllm": VLLM_METRICS, "sglang": SGLANG_METRICS, "trtllm": TRTLLM_METRICS, "llamacpp": LLAMACPP_METRICS}


def page(names: Mapping[str, str], value: float) -> bytes:
    """A page on which every metric of a kind has this value, and each has neighbours that begin alike."""
    lines = [f'{name}{{model_name="m"}} {value}\n{name}_created 1e9\n{name}_sum 1e9' for name in names.values()]
    return "\n".join(dict.fromkeys(lines)).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_of_a_kind_fills_its_field_and_nothing_else_does(kind: str) -> None:
    names = KINDS[kind]
    reading = read(page(names, 0.5), 1.0, names)
    assert {field for field in names if getattr(reading, field) is None} == set()
    assert read(page({"x": "other"}, 0.5), 1.0, names) == Reading(at_s=1.0)
    for field, name in names.items():
        rest = {other: metric for other, metric in names.items() if metric != name}
        assert getattr(read(page(rest, 0.5), 1.0, names), field) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_restart_of_each_kind_is_noticed(kind: str) -> None:
    names = KINDS[kind]
    before, after = read(page(names, 9.0), 1.0, names), read(page(names, 1.0), 2.0, names)
    assert restarted(before, after)
    assert change(before, after) == Change()
    assert change(after, replace(after, at_s=4.0, generation_tokens=21.0)).decode_tokens_per_s == 10.0
