"""Splits, risk and migration: where they pay, and what keeps them from happening."""

from typing import Any

import pytest

from scheduler.config import AgentServeConfig, MigrationConfig, SchedulerConfig
from scheduler.decisions import Dispatch, MigrationCause
from scheduler.events import (
    DeadlinesMoved,
    FirstToken,
    InstanceDraining,
    InstanceJoined,
    InstanceLost,
    MigrationRefused,
    RequestCancelled,
    RequestFailed,
    Role,
    Woke,
)
from tests.unit.scheduler_builders import Cluster, call, config, kinds, only_move, spec

LATE: dict[str, Any] = {"max_tokens": 400, "target_deadline_s": 6.0, "latest_deadline_s": 6.5}


def straggling(
    *others: Any, limits: dict[str, Any] | None = None, settings: SchedulerConfig | None = None, **changes: Any
) -> Cluster:
    """A call on `a` that should take 4 s and has put out 40 of 400 tokens at 40 ms each instead of 10."""
    settings = settings or config(400.0, learns_speed=True, migration=MigrationConfig(**(limits or {})))
    cluster = Cluster("agentserve", spec("a"), config=settings)
    placed = cluster.place(0.0, call("r", **{**LATE, **changes}))
    assert placed.decode_instance == "a"
    for other in others or (spec("b", "fast"),):
        cluster.at(0.1, InstanceJoined(event_id="j", instance=other))
    cluster.at(0.1, FirstToken(event_id="f", request_id="r"))
    return cluster


def test_a_straggling_call_moves_where_its_chance_is_better() -> None:
    cluster = straggling()
    move = only_move(cluster.progress(1.7, "r", 40))
    assert (move.source, move.target, move.attempt, move.cause) == ("a", "b", 2, MigrationCause.LATE)
    # At b: 140 tokens at 0.5 ms, then 360 at 5 ms.
    assert move.predicted_cost_s == pytest.approx(0.07)
    assert move.predicted_gain_s > 3.0
    assert move.reason.rule.startswith("late: moving raises the chance of the deadline from 0.0")
    assert [c.verdict.split(":")[0] for c in move.reason.candidates] == ["chosen", "staying"]
    assert (cluster.instance("a")["running"], cluster.instance("b")["bound"]) == (0, 1)
    cluster.at(1.8, FirstToken(event_id="f2", request_id="r"))
    assert cluster.instance("b")["running"] == 1


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"migration_refused": "guided decoding"}, {}),
        ({}, {"max_moves": 0}),
        ({}, {"max_concurrent": 0}),
        ({}, {"min_gain_s": 100.0}),
        ({}, {"min_gain_share": 1.0}),
        ({"latest_deadline_s": 100.0}, {}),
        ({"latest_deadline_s": 2.0, "target_deadline_s": 1.9}, {}),
        ({"target_deadline_s": None, "latest_deadline_s": None}, {}),
    ],
)
def test_a_move_that_is_refused_or_does_not_pay_is_not_made(changes: dict[str, Any], limits: dict[str, Any]) -> None:
    cluster = straggling(limits=limits, **changes)
    assert cluster.progress(1.7, "r", 40) == []


@pytest.mark.parametrize(("weight", "moves"), [(0.0, True), (1000.0, False)])
def test_a_call_does_not_move_where_runs_of_calls_to_come_would_lose_more(weight: float, moves: bool) -> None:
    prices = AgentServeConfig(coming_weight=weight, queue_weight=weight)
    settings = config(400.0, learns_speed=True, agentserve=prices)
    cluster = straggling(settings=settings)
    tight = {"max_tokens": 60, "target_deadline_s": 0.7, "latest_deadline_s": 0.7}
    for name in map(str, range(20)):
        assert cluster.place(0.2, call(name, **tight)).decode_instance == "b"
        cluster.at(0.2, RequestCancelled(event_id=name, request_id=name))
    assert bool(cluster.progress(1.7, "r", 40)) is moves


def test_a_call_of_a_lost_run_moves_where_it_ends_five_times_as_soon_and_harms_nobody() -> None:
    lost = {"latest_deadline_s": 2.0, "target_deadline_s": 1.9}
    assert only_move(straggling(spec("b", "fast", speed=3.0), **lost).progress(1.7, "r", 40)).target == "b"
    assert straggling(**lost).progress(1.7, "r", 40) == []  # about three times as soon
    assert straggling(spec("b", "slow"), **lost).progress(1.7, "r", 40) == []


@pytest.mark.parametrize(
    "target", [spec("b", "fast", supports_replay=False), spec("b", "fast", kv_capacity_tokens=520), spec("b", "slow")]
)
def test_a_target_must_replay_have_room_and_be_in_time(target: Any) -> None:
    if target.gpu == "slow":
        cluster = straggling(target, target_deadline_s=4.5, latest_deadline_s=4.6)
    else:
        cluster = straggling(target)
    assert cluster.progress(1.7, "r", 40) == []


def test_a_call_that_has_stopped_to_stream_is_found_at_a_wake_up() -> None:
    cluster = straggling()
    assert cluster.at(1.0, Woke(event_id="w1")) == []
    move = only_move(cluster.at(2.0, Woke(event_id="w2")))
    assert move.target == "b"


def test_a_call_rests_between_moves_and_is_capped() -> None:
    cluster = straggling(spec("b", "fast"), spec("c", "huge"), limits={"cooldown_s": 2.0, "max_moves": 1})
    assert only_move(cluster.progress(1.7, "r", 40)).target == "c"
    cluster.at(1.8, FirstToken(event_id="f2", request_id="r"))
    assert cluster.at(5.9, Woke(event_id="w")) == []


def test_a_refused_move_puts_the_call_back_and_is_not_repeated_at_once() -> None:
    cluster = straggling()
    only_move(cluster.progress(1.7, "r", 40))
    assert cluster.at(1.8, MigrationRefused(event_id="m", request_id="r", reason="busy")) == []
    assert (cluster.instance("a")["running"], cluster.instance("b")["bound"]) == (1, 0)
    assert cluster.at(2.9, Woke(event_id="w")) == []
    assert cluster.finish(3.0, "r", 100) == []


def test_a_refused_move_off_an_instance_that_was_lost_leaves_the_call_to_its_failure() -> None:
    cluster = straggling()
    only_move(cluster.progress(1.7, "r", 40))
    cluster.at(1.75, InstanceLost(event_id="l", instance_id="a", reason="will"))
    cluster.at(1.8, MigrationRefused(event_id="m", request_id="r", reason="gone"))
    assert cluster.at(2.9, Woke(event_id="w")) == []
    failed = RequestFailed(
        event_id="x", request_id="r", instance_id="a", output_tokens=40, error="gone", retryable=True
    )
    (again,) = cluster.at(3.0, failed)
    assert isinstance(again, Dispatch)
    assert (again.decode_instance, again.attempt) == ("b", 2)


@pytest.mark.parametrize(("broken", "target"), [("a", "b"), ("b", "a")])
def test_a_call_that_fails_on_the_move_goes_to_the_other(broken: str, target: str) -> None:
    cluster = straggling()
    only_move(cluster.progress(1.7, "r", 40))
    failed = RequestFailed(
        event_id="x", request_id="r", instance_id=broken, output_tokens=40, error="reset", retryable=True
    )
    (again,) = cluster.at(1.8, failed)
    assert isinstance(again, Dispatch)
    assert (again.decode_instance, again.attempt) == (target, 3)


def test_a_call_that_fails_for_good_on_the_move_leaves_room_for_other_moves() -> None:
    cluster = straggling()
    only_move(cluster.progress(1.7, "r", 40))
    failed = RequestFailed(
        event_id="x", request_id="r", instance_id="b", output_tokens=40, error="bad request", retryable=False
    )
    assert kinds(cluster.at(1.8, failed)) == ["Reject"]
    assert cluster.scheduler._state.moving == 0


def test_a_call_may_end_or_be_cancelled_on_the_move() -> None:
    cluster = straggling()
    only_move(cluster.progress(1.7, "r", 40))
    assert cluster.finish(1.8, "r", 41) == []
    assert cluster.scheduler.snapshot()["calls"] == {"held": 0, "dispatched": 0, "running": 0, "moving": 0}


def test_new_deadlines_are_checked_at_the_next_token() -> None:
    cluster = straggling(target_deadline_s=60.0, latest_deadline_s=90.0)
    assert cluster.progress(1.7, "r", 40) == []
    moved = DeadlinesMoved(event_id="d", request_id="r", target_deadline_s=6.0, latest_deadline_s=6.5)
    assert cluster.at(1.75, moved) == []
    assert only_move(cluster.progress(1.8, "r", 41)).target == "b"


def test_a_draining_instance_is_emptied_of_long_calls_only() -> None:
    cluster = Cluster("agentserve", spec("a"), config=config(800.0))
    cluster.run(0.0, call("long", max_tokens=800))
    cluster.run(0.0, call("short", max_tokens=100))
    cluster.place(0.0, call("waiting", max_tokens=800))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=spec("b")))
    cluster.progress(0.5, "long", 51)
    move = only_move(cluster.at(0.5, InstanceDraining(event_id="d", instance_id="a")))
    assert (move.request_id, move.target, move.cause) == ("long", "b", MigrationCause.DRAIN)
    assert move.reason.rule == "drain: 7.42 s left on a draining instance, 3.00 s tolerated"


def test_drains_obey_the_cap_of_concurrent_moves_and_go_on_at_wake_ups() -> None:
    settings = config(800.0, migration=MigrationConfig(max_concurrent=1))
    cluster = Cluster("agentserve", spec("a"), config=settings)
    for name in ("r1", "r2"):
        cluster.run(0.0, call(name, max_tokens=800))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=spec("b")))
    assert only_move(cluster.at(0.5, InstanceDraining(event_id="d", instance_id="a"))).request_id == "r1"
    assert cluster.at(1.0, Woke(event_id="w1")) == []
    cluster.at(1.1, FirstToken(event_id="f", request_id="r1"))
    assert only_move(cluster.at(2.0, Woke(event_id="w2"))).request_id == "r2"


def test_a_drain_without_a_target_lets_calls_finish() -> None:
    cluster = Cluster("agentserve", spec("a"))
    cluster.run(0.0, call("r", max_tokens=800))
    assert cluster.at(0.5, InstanceDraining(event_id="d", instance_id="a")) == []
    assert cluster.finish(9.0, "r") == []


def linked(name: str, gpu: str = "slow", **changes: Any) -> Any:
    return spec(name, gpu, kv_link_bytes_per_s=1e12, **changes)


def busy_pool(settings: SchedulerConfig | None = None, link: float = 1e12) -> Cluster:
    """`a` prefills fast but its batch is full for long; `b` is slow and free."""
    pool = (
        spec("a", "huge", kv_link_bytes_per_s=link, max_num_seqs=1),
        spec("b", kv_link_bytes_per_s=link),
    )
    cluster = Cluster("agentserve", pool[0], config=settings or config(5000.0))
    cluster.run(0.0, call("resident", max_tokens=5000))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=pool[1]))
    return cluster


def test_prefill_and_decode_split_where_that_pays() -> None:
    placed = busy_pool().place(1.0, call("r", prompt_tokens=4000, max_tokens=10))
    assert (placed.prefill_instance, placed.decode_instance) == ("a", "b")
    assert placed.reason.candidates[0].predicted_transfer_s == pytest.approx(4e-6)
    assert placed.reason.candidates[1].decode_instance == "b"


def test_a_slow_link_keeps_them_together() -> None:
    placed = busy_pool(link=1e5).place(1.0, call("r", prompt_tokens=4000, max_tokens=10))
    assert (placed.prefill_instance, placed.decode_instance) == ("b", "b")


def test_a_small_gain_does_not_split() -> None:
    settings = config(5000.0, agentserve=AgentServeConfig(split_gain_share=1.0, social_weight=30.0))
    placed = busy_pool(settings).place(1.0, call("r", prompt_tokens=4000, max_tokens=10))
    assert not placed.is_split


def test_a_call_with_output_is_not_split_while_one_instance_can_serve_it() -> None:
    cluster = busy_pool()
    cluster.run(1.0, call("r", prompt_tokens=4000, max_tokens=10), tokens=2)
    failed = RequestFailed(
        event_id="x", request_id="r", instance_id="b", output_tokens=2, error="reset", retryable=True
    )
    (again,) = cluster.at(1.1, failed)
    assert isinstance(again, Dispatch)
    assert not again.is_split


def test_a_failed_split_avoids_the_instance_that_broke() -> None:
    pool = [linked("p", role=Role.PREFILL), linked("d", role=Role.DECODE), linked("e", role=Role.DECODE)]
    cluster = Cluster("agentserve", *pool)
    placed = cluster.run(0.0, call("r"))
    assert (placed.prefill_instance, placed.decode_instance) == ("p", "d")
    failed = RequestFailed(
        event_id="x", request_id="r", instance_id="d", output_tokens=1, error="reset", retryable=True
    )
    (again,) = cluster.at(1.1, failed)
    assert isinstance(again, Dispatch)
    assert (again.prefill_instance, again.decode_instance) == ("p", "e")


def test_a_crowded_cache_is_priced() -> None:
    cluster = Cluster("agentserve", spec("a", kv_capacity_tokens=1000))
    cluster.run(0.0, call("resident", prompt_tokens=600, max_tokens=300))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=spec("b")))
    placed = cluster.place(1.0, call("r", prompt_tokens=300, max_tokens=50))
    assert placed.decode_instance == "b"
    assert "delay +2.487 s" in placed.reason.candidates[1].verdict


def test_decisions_of_an_idle_cluster_are_none() -> None:
    assert kinds(Cluster("agentserve", spec("a")).every(1.0, Woke(event_id="w"))) == []
