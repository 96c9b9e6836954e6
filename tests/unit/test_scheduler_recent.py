"""What policies may know of the past: windows per instance, the service of runs, what a call would take alone."""

import pytest

from scheduler.events import FirstToken, InstanceLost, RequestCancelled, Role
from scheduler.recent import STEPS, Window
from tests.unit.scheduler_builders import Cluster, call, spec


def test_a_window_sums_its_span_and_forgets_what_is_older() -> None:
    window = Window(60.0)
    for second in range(0, 90, 10):
        window.add(1.0, float(second))
    assert window.total(80.0) == 6.0  # those of 30 … 80 s
    assert window.total(85.0) == 6.0
    assert window.total(91.0) == 5.0
    assert window.total(500.0) == 0.0
    window.add(2.0, 500.0)
    assert window.total(500.0) == 2.0


def test_reading_a_window_changes_nothing() -> None:
    window = Window(60.0)
    window.add(3.0, 10.0)
    assert [window.total(at_s) for at_s in (75.0, 10.0)] == [0.0, 3.0]


def test_a_window_does_not_drift() -> None:
    window = Window(float(STEPS))
    for i in range(10_000):
        window.add(0.1, i * 0.01)
    assert window.total(100.0 + STEPS) == 0.0


def test_recent_work_is_that_of_both_instances_of_a_split_call() -> None:
    pair = [
        spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
        spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    ]
    cluster = Cluster("least_requests", *pair)
    cluster.place(1.0, call("r"))
    recent = cluster.scheduler._state.recent
    assert (recent.work_s("p", 1.0), recent.work_s("d", 1.0)) == pytest.approx((0.1, 0.1))
    assert (recent.tokens("p", 1.0), recent.work_s("d", 200.0)) == (100.0, 0.0)
    cluster.at(2.0, InstanceLost(event_id="lost", instance_id="p", reason="will"))
    assert recent.work_s("p", 2.0) == 0.0


def test_a_run_counts_its_service_apart_from_its_waiting() -> None:
    cluster = Cluster("least_requests", spec("a"))
    cluster.place(0.0, call("first", run_id="run"))
    # 0.1 s of prefill is predicted; the first token comes after 1 s, the last after 3 s.
    cluster.run(1.0, call("other"))
    state = cluster.scheduler._state
    cluster.at(1.0, FirstToken(event_id="f", request_id="first"))
    cluster.finish(3.0, "first")
    cluster.place(4.0, call("second", run_id="run"))
    facts = state.runs.of(state.calls["second"])
    assert (facts.busy_s, facts.waited_s, facts.service_s) == pytest.approx((2.1, 0.9, 3.0))
    assert (facts.live_calls, facts.ended_calls, facts.home_instance) == (1, 1, "a")


def test_chains_of_a_run_count_the_longest_of_calls_one_after_the_other() -> None:
    cluster = Cluster("least_requests", spec("a"), spec("b"))
    for name in ("left", "right"):
        cluster.run(0.0, call(name, run_id="run"))
    cluster.finish(1.0, "left")  # 1 s of decode and 0 of prefill, as its token came at once
    cluster.run(1.0, call("after left", run_id="run"))
    cluster.finish(2.0, "right")
    cluster.run(2.0, call("after both", run_id="run"))
    state = cluster.scheduler._state
    before = {name: state.runs.busy_before_s(state.calls[name]) for name in ("after left", "after both")}
    assert before == pytest.approx({"after left": 1.0, "after both": 2.0})
    cluster.finish(5.0, "after left")
    cluster.run(5.0, call("last", run_id="run"))
    assert state.runs.busy_before_s(state.calls["last"]) == pytest.approx(5.0 - 1.0 + 1.0)


def test_what_a_run_takes_alone_grows_as_its_calls_are_revealed() -> None:
    cluster = Cluster("least_requests", spec("a", "slow"), spec("b", "fast"))
    state = cluster.scheduler._state
    # On fast, 100 prompt tokens take 0.05 s and 10 output tokens 0.05 s.
    cluster.run(0.0, call("one", run_id="run"))
    assert state.runs.alone_s(state.calls["one"]) == pytest.approx(0.1)
    cluster.run(0.0, call("two", run_id="run", prompt_tokens=300))
    assert state.runs.alone_s(state.calls["one"]) == pytest.approx(0.2)
    cluster.progress(1.0, "two", 6)
    cluster.finish(1.0, "two", 6)  # shorter than predicted: 0.15 + 0.03
    cluster.run(1.0, call("three", run_id="run"))
    assert state.runs.alone_s(state.calls["one"]) == pytest.approx(0.18 + 0.1)


def test_alone_takes_the_fastest_prefill_and_the_fastest_decode() -> None:
    pair = [
        spec("p", "huge", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
        spec("d", "fast", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    ]
    state = Cluster("least_requests", *pair, spec("m", "slow")).scheduler._state
    assert state.alone.seconds("m", 100, 10) == pytest.approx(0.025 + 0.05)
    assert state.alone.seconds("unknown", 100, 10) == 0.0


def test_a_cancelled_call_leaves_its_run_in_order() -> None:
    cluster = Cluster("least_requests", spec("a"))
    cluster.run(0.0, call("kept", run_id="run"))
    cluster.run(0.0, call("gone", run_id="run", prompt_tokens=900))
    cluster.at(1.0, RequestCancelled(event_id="c", request_id="gone"))
    state = cluster.scheduler._state
    facts = state.runs.of(state.calls["kept"])
    assert (facts.live_calls, facts.ended_calls, list(facts.live)) == (1, 1, ["kept"])
