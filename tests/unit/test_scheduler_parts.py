"""Lengths, prefixes, estimates and latencies, each by itself."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from scheduler.config import EstimateConfig, LengthConfig, SchedulerConfig
from scheduler.decisions import Candidate, Explanation, LengthForecast
from scheduler.events import FirstToken, InstanceReported, RequestArrived, Woke
from scheduler.frozen import builder
from scheduler.latency import Demand, predict
from scheduler.length import BUCKETS, LengthModel
from scheduler.prefix import PrefixIndex
from scheduler.selection import argmin, best_rows, just_enough, most_capable
from tests.unit.scheduler_builders import Cluster, call, config, loaded_profile, spec


def learned(**samples: int) -> LengthModel:
    model = LengthModel(LengthConfig())
    for node, tokens in samples.items():
        for _ in range(200):
            model.observe("w", node, "m", 100, tokens)
    return model


def test_a_cold_start_says_so_and_uses_the_prior() -> None:
    forecast = LengthModel(LengthConfig(prior_median_tokens=300.0)).distribution("w", "n", "m", 10).forecast(None)
    assert forecast.source == "cold start"
    assert forecast.p50_tokens == pytest.approx(300.0, rel=0.05)
    assert forecast.p10_tokens < 100.0 < 1000.0 < forecast.p90_tokens


def test_a_node_learns_its_own_lengths() -> None:
    model = learned(plan=50, write=2000)
    plan = model.distribution("w", "plan", "m", 100).forecast(None)
    write = model.distribution("w", "write", "m", 100).forecast(None)
    assert plan.p50_tokens == pytest.approx(50, rel=0.2)
    assert write.p50_tokens == pytest.approx(2000, rel=0.2)
    assert write.source.startswith("workflow node, ")


def test_a_new_node_and_a_new_size_back_off_to_what_is_known() -> None:
    model = learned(plan=50)
    bigger = model.distribution("w", "plan", "m", 100_000).forecast(None)
    other = model.distribution("w", "unseen", "m", 100).forecast(None)
    assert (bigger.source.split(",")[0], other.source.split(",")[0]) == ("node", "model")
    assert bigger.p50_tokens == pytest.approx(50, rel=0.2)
    assert other.p50_tokens == pytest.approx(50, rel=0.2)


def test_max_tokens_caps_a_forecast() -> None:
    forecast = learned(n=500).distribution("w", "n", "m", 100).forecast(64)
    assert (forecast.p10_tokens, forecast.p50_tokens, forecast.p90_tokens) == (64, 64, 64)


def test_a_stream_that_outlives_the_usual_length_is_expected_to_go_on() -> None:
    distribution = learned(n=100).distribution("w", "n", "m", 100)
    usual = distribution.forecast(None)
    late = distribution.forecast(None, emitted=150)
    assert late.p50_tokens > 150.0
    assert late.p90_tokens - 150.0 > usual.p90_tokens - 100.0
    beyond = distribution.forecast(None, emitted=2**18)
    assert 2**18 < beyond.p10_tokens < beyond.p50_tokens < beyond.p90_tokens


def test_old_lengths_fade() -> None:
    model = learned(n=1000)
    for _ in range(800):
        model.observe("w", "n", "m", 100, 20)
    assert model.distribution("w", "n", "m", 100).forecast(None).p90_tokens < 200.0


def test_histograms_are_bounded() -> None:
    model = LengthModel(LengthConfig(max_keys=8))
    for i in range(50):
        model.observe("w", f"n{i}", "m", 100, 10**9)
    assert len(model._lengths._histograms) == 8
    assert len(model.distribution("w", "n49", "m", 100).cdf) == BUCKETS + 1


def test_the_longest_prefix_of_each_instance_is_found() -> None:
    index = PrefixIndex()
    bits = [index.add_instance(name, 10_000.0) for name in ("a", "b", "c")]
    index.insert("a", [1, 2, 3, 4], 10)
    index.insert("b", [1, 2, 9], 10)
    assert index.depths([1, 2, 3, 7])[bits].tolist() == [3, 2, 0]
    assert index.depths([1, 2, 9])[bits].tolist() == [2, 3, 0]
    assert index.depths([5])[bits].tolist() == [0, 0, 0]
    assert index.depths([])[bits].tolist() == [0, 0, 0]


def test_prefixes_of_many_instances_are_found_at_once() -> None:
    index = PrefixIndex()
    bits = [index.add_instance(f"g{i:03d}", 1e6) for i in range(100)]
    for i in range(99):
        index.insert(f"g{i:03d}", [1, 2, *([3] if i % 2 else [])], 10)
    expected = [3 if i % 2 else 2 for i in range(99)] + [0]
    assert index.depths([1, 2, 3])[bits].tolist() == expected
    index.insert("g099", [1, 2, 3], 10)
    assert index.depths([1])[bits].tolist() == [1] * 100


def test_the_least_recently_used_blocks_go_first_deepest_first() -> None:
    index = PrefixIndex()
    bit = index.add_instance("a", 100.0)
    index.insert("a", [1, 2, 3, 4, 5], 10)
    index.insert("a", [11, 12, 13, 14, 15], 10)
    index.insert("a", [1, 2], 10)
    index.insert("a", [21], 10)
    # 11 blocks do not fit 10: the oldest three go, from the deep end of the chain that was used longest ago.
    assert index.blocks() == 8
    assert index.depths([1, 2, 3, 4, 5])[bit] == 2
    assert index.depths([11, 12, 13, 14, 15])[bit] == 5
    assert index.holds_only_known()


def test_a_dropped_instance_leaves_nothing_behind_and_its_place_is_reused() -> None:
    index = PrefixIndex()
    bits = [index.add_instance(name, 1000.0) for name in ("a", "b")]
    index.insert("a", [1, 2], 10)
    index.insert("b", [1], 10)
    index.drop_instance("a")
    assert (index.blocks(), index.holds_only_known()) == (1, True)
    assert index.add_instance("c", 1000.0) == bits[0]
    assert index.depths([1, 2])[bits].tolist() == [0, 1]


def test_fewer_cached_tokens_than_expected_shrink_the_assumed_cache() -> None:
    index = PrefixIndex()
    index.add_instance("a", 100.0)
    index.insert("a", list(range(10)), 10)
    for _ in range(20):
        index.correct("a", 100.0, 0.0)
    index.insert("a", [77], 10)
    assert index.blocks() == 0  # not even one block is believed to stay
    for _ in range(150):
        index.correct("a", 100.0, 100.0)
    index.correct("a", 0.0, 0.0)
    index.insert("a", list(range(10)), 10)
    assert index.blocks() == 10


def test_an_engine_without_prefix_cache_is_soon_not_trusted() -> None:
    cluster = Cluster("agentserve", spec("a"))
    for i in range(12):
        arrived = call(f"r{i}", prompt_tokens=1024, prefix_hashes=(1, 2, 3, 4))
        placed = cluster.place(float(i), arrived)
        cluster.at(i + 0.5, FirstToken(event_id="f", request_id=f"r{i}", cached_tokens=0))
        cluster.finish(i + 0.6, f"r{i}")
    assert placed.reason.candidates[0].cached_tokens < 0.15 * 1024


def demand(context: int = 100, output: float = 10.0, **changes: Any) -> Demand:
    given: dict[str, Any] = {
        "context_tokens": context,
        "emitted": 0,
        "length": LengthForecast(output / 2, output, output * 2, "test"),
        "prefix_hashes": (),
        "prefix_block_tokens": 256,
        **changes,
    }
    return Demand(**given)


def pool_of(cluster: Cluster, now_s: float) -> Any:
    pool = cluster.scheduler._state.pools["m"]
    pool.refresh(now_s)
    return pool


def test_queue_prefill_and_decode_add_up_from_the_profile() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b", "fast"), profiles=loaded_profile)
    cluster.place(0.0, call("r", prompt_tokens=500))
    pool = pool_of(cluster, 0.1)
    terms = predict(pool, demand(), 0.1)
    assert terms.queue_s.tolist() == pytest.approx([0.4, 0.0])
    assert terms.prefill_s.tolist() == pytest.approx([0.1, 0.05])
    assert terms.step_s.tolist() == pytest.approx([0.012, 0.0055])  # a: 10 ms and 1 ms for each of two calls
    assert terms.decode_s.tolist() == pytest.approx([0.12, 0.055])


def test_an_overdue_prefill_still_counts_a_quarter() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.place(0.0, call("r", prompt_tokens=500))
    assert predict(pool_of(cluster, 9.0), demand(), 9.0).queue_s.tolist() == pytest.approx([0.125])


def test_a_chunk_beside_decodes_costs_a_step() -> None:
    cluster = Cluster("round_robin", spec("a", max_batched_tokens=50), config=config())
    cluster.run(0.0, call("r"))
    assert predict(pool_of(cluster, 1.0), demand(), 1.0).prefill_s.tolist() == pytest.approx([0.1 + 2 * 0.01])


def test_a_full_batch_and_a_full_cache_make_a_call_wait() -> None:
    seats = Cluster("round_robin", spec("a", max_num_seqs=1))
    seats.run(0.0, call("r", max_tokens=101))
    assert predict(pool_of(seats, 1.0), demand(), 1.0).seat_s.tolist() == pytest.approx([100 * 0.01])
    cache = Cluster("round_robin", spec("a", kv_capacity_tokens=200))
    cache.run(0.0, call("r", max_tokens=101))
    # 101 tokens are in use and 102 wanted of 200: 2 short, released at the rate at which residents end.
    waiting = predict(pool_of(cache, 1.0), demand(101), 1.0).seat_s.tolist()
    assert waiting == pytest.approx([(101 + 102 - 200) / 101 * 100 * 0.01])


def test_a_straggler_is_found_out_by_its_speed_and_others_of_its_type_share_a_little() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"), spec("c", "fast"))
    for i in range(60):
        name = f"r{i}"
        placed = cluster.place(float(i), call(name, prompt_tokens=100, max_tokens=100))
        slow = 3.0 if placed.decode_instance == "a" else 1.0
        prefill_s, step_s = (0.05, 0.005) if placed.decode_instance == "c" else (0.1, 0.01)
        cluster.at(i + 0.005 + slow * prefill_s, FirstToken(event_id="f", request_id=name))
        cluster.progress(i + 0.005 + slow * (prefill_s + 32 * step_s), name, 32)
        cluster.finish(i + 0.005 + slow * (prefill_s + 40 * step_s), name, 40)
    a, b, c = (cluster.instance(name) for name in "abc")
    assert a["decode_correction"] == pytest.approx(3.0, rel=0.2)
    assert a["prefill_correction"] == pytest.approx(3.0, rel=0.2)
    assert 0.9 < b["decode_correction"] < 1.5
    assert c["decode_correction"] == pytest.approx(1.0, rel=0.05)
    assert a["predicted_step_s"] > 2 * b["predicted_step_s"]


def test_corrections_stay_in_bounds() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.place(0.0, call("r", max_tokens=2))
    cluster.at(1e6, FirstToken(event_id="f", request_id="r"))
    assert cluster.instance("a")["prefill_correction"] <= EstimateConfig().max_correction


def report(now_s: float, **figures: Any) -> InstanceReported:
    return InstanceReported(event_id=f"report-{now_s}", instance_id="a", measured_at_s=now_s, **figures)


def test_a_report_adds_the_load_of_others_until_it_is_stale() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.run(0.0, call("r"))
    cluster.at(1.0, report(1.0, running=3, waiting=2, kv_usage=0.5, preemptions=1))
    fresh = predict(pool_of(cluster, 1.0), demand(), 1.0)
    seen = cluster.instance("a")
    assert (seen["foreign"], seen["kv_used_tokens"], seen["kv_usage"]) == (4.0, 5000.0, 0.5)
    assert seen["reported"]["running"] == 3
    assert fresh.queue_s[0] > 0.0
    cluster.at(5.0, Woke(event_id="w"))
    assert predict(pool_of(cluster, 5.0), demand(), 5.0).queue_s[0] == 0.0
    assert (cluster.instance("a")["foreign"], cluster.instance("a")["kv_used_tokens"]) == (0.0, 101.0)


def test_a_report_without_figures_changes_nothing() -> None:
    cluster = Cluster("round_robin", spec("a"), spec("b"))
    cluster.at(1.0, report(1.0, running=2, waiting=0))
    cluster.at(2.0, report(2.0))
    assert cluster.instance("a")["foreign"] == 2.0
    cluster.at(2.5, InstanceReported(event_id="x", instance_id="b", measured_at_s=2.5, running=1))
    pool_of(cluster, 5.2)
    assert (cluster.instance("a")["foreign"], cluster.instance("b")["foreign"]) == (0.0, 1.0)


def test_calls_sent_after_the_measurement_are_not_taken_for_those_of_others() -> None:
    cluster = Cluster("round_robin", spec("a"))
    cluster.run(0.0, call("before"))
    cluster.run(2.0, call("after"))
    cluster.at(2.1, report(1.0, running=1, waiting=0))
    assert cluster.instance("a")["foreign"] == 0.0


def test_kv_use_follows_each_call_and_returns_to_zero() -> None:
    cluster = Cluster("least_requests", spec("a"))
    cluster.run(0.0, call("r", max_tokens=50), tokens=5)
    assert (cluster.instance("a")["kv_used_tokens"], cluster.instance("a")["predicted_remaining_tokens"]) == (105, 45)
    cluster.progress(1.0, "r", 60)
    assert cluster.instance("a")["predicted_remaining_tokens"] == 1.0
    cluster.finish(2.0, "r", 70)
    assert (cluster.instance("a")["kv_used_tokens"], cluster.instance("a")["running"]) == (0.0, 0)


def test_many_changes_are_derived_as_one_by_one() -> None:
    names = [f"g{i:02d}" for i in range(12)]
    cluster = Cluster("round_robin", *(spec(name) for name in names))
    for i in range(24):
        cluster.run(float(i), call(f"r{i}", max_tokens=40 + i))
    pool = cluster.scheduler._state.pools["m"]
    pool.refresh(30.0)
    at_once = pool._floats.copy()
    for row in range(12):
        pool._dirty = {row}
        pool.refresh(30.0)
    assert np.array_equal(at_once, pool._floats)


def test_selection_breaks_ties_by_order_and_admits_none() -> None:
    values, allowed = np.array([2.0, 1.0, 1.0, 3.0]), np.array([True, True, True, False])
    assert best_rows(values, allowed, 9) == [1, 2, 0]
    assert argmin(values, allowed) == 1
    none = np.zeros(4, dtype=bool)
    assert (argmin(values, none), just_enough(none, values, values), most_capable(none, values, values)) == (None,) * 3


def test_config_reaches_the_parts() -> None:
    settings = SchedulerConfig(length=LengthConfig(prior_median_tokens=50.0), explained_candidates=1)
    placed = Cluster("agentserve", spec("a"), spec("b"), spec("c"), config=settings).place(0.0, long_call())
    assert placed.reason.length is not None
    assert placed.reason.length.p50_tokens == pytest.approx(50.0, rel=0.05)
    assert (len(placed.reason.candidates), placed.reason.candidates_total) == (2, 3)


def long_call() -> RequestArrived:
    return call("r", max_tokens=None)


def test_a_value_built_cheaply_is_the_frozen_one() -> None:
    figures: Any = ("a", "b", 0.1, 0.2, 0.0, 0.3, 9.0, None, 7, "chosen")
    built = builder(Candidate)(*figures)
    assert type(built) is Candidate
    assert (built, hash(built), repr(built)) == (
        Candidate(*figures),
        hash(Candidate(*figures)),
        repr(Candidate(*figures)),
    )
    with pytest.raises(FrozenInstanceError):
        built.verdict = "x"  # type: ignore[misc]  # that it cannot be set is what is tested
    assert builder(Explanation)(policy="p", rule="r") == Explanation("p", "r")
