"""What does each mode forbid and allow, and what is told of a policy that only looks on?"""

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.config import MigrationConfig
from scheduler.decisions import Dispatch, Hold, MigrationCause, Shadow
from scheduler.errors import InvalidConfig, UnknownPolicy
from scheduler.events import InstanceDraining, InstanceJoined, Mode, ModeChanged, RequestFailed, Role
from tests.unit.scheduler_builders import Cluster, call, config, kinds, loaded_profile, only_move, spec

EAGER = MigrationConfig(min_gain_s=0.0, min_gain_share=0.0, min_chance_gain=0.0, drain_patience_s=0.1)
MOVING, STAYING = (Mode.MIGRATE, Mode.SPLIT), (Mode.OBSERVE, Mode.ROUTE)


def switch(cluster: Cluster, mode: Mode, now_s: float = 0.0, observed: str = "least_requests") -> Sequence[Any]:
    """Change the mode; what was decided at once."""
    return cluster.at(now_s, ModeChanged(event_id=f"mode-{mode}-{now_s}", mode=mode, observed=observed))


def in_mode(mode: Mode, *specs: Any, policy: str = "agentserve", **given: Any) -> Cluster:
    """A cluster that was switched before its first call."""
    cluster = Cluster(policy, *specs, **{"config": config(migration=EAGER), **given})
    assert switch(cluster, mode) == []
    return cluster


def late_call(mode: Mode) -> Cluster:
    """A call that runs on `a` and is late there, while the faster `b` has just joined."""
    cluster = in_mode(mode, spec("a"))
    deadlines = {"run_deadline_s": 3.0, "target_deadline_s": 3.0, "latest_deadline_s": 3.0}
    cluster.run(0.0, call("r", max_tokens=400, **deadlines), tokens=10)
    cluster.at(0.5, InstanceJoined(event_id="joined-b", instance=spec("b", "huge")))
    return cluster


# What is allowed


def test_a_scheduler_that_was_told_no_mode_may_do_everything() -> None:
    assert Cluster("agentserve", spec("a")).scheduler.snapshot()["mode"] == "split"


@pytest.mark.parametrize("mode", MOVING)
def test_a_late_call_moves(mode: Mode) -> None:
    assert only_move(late_call(mode).wake(1.1)).cause is MigrationCause.LATE


@pytest.mark.parametrize("mode", STAYING)
def test_a_late_call_stays(mode: Mode) -> None:
    assert late_call(mode).wake(1.1) == []


def test_a_late_call_moves_once_the_mode_allows_it() -> None:
    cluster = late_call(Mode.ROUTE)
    assert cluster.wake(1.1) == []
    assert switch(cluster, Mode.MIGRATE, 1.2) == []
    assert only_move(cluster.wake(2.2)).target == "b"


@pytest.mark.parametrize(("mode", "moves"), [(mode, mode in MOVING) for mode in Mode])
def test_a_draining_instance_is_emptied_only_where_calls_may_move(mode: Mode, moves: bool) -> None:
    cluster = in_mode(mode, spec("a"), spec("b"))
    placed = cluster.run(0.0, call("r", max_tokens=2000), tokens=10)
    drained = InstanceDraining(event_id="drain", instance_id=placed.decode_instance)
    assert kinds(cluster.at(1.0, drained)) == (["Migrate"] if moves else [])


@pytest.mark.parametrize("mode", list(Mode))
def test_a_call_whose_instance_broke_goes_on_elsewhere(mode: Mode) -> None:
    cluster = in_mode(mode, spec("a"), spec("b"))
    placed = cluster.run(0.0, call("r"), tokens=5)
    broke = RequestFailed(
        event_id="broke",
        request_id="r",
        instance_id=placed.decode_instance,
        output_tokens=5,
        error="reset",
        retryable=True,
    )
    (again,) = cluster.at(0.1, broke)
    assert isinstance(again, Dispatch)
    assert again.decode_instance != placed.decode_instance


def split_pool(mode: Mode) -> Cluster:
    """`a` prefills four times as fast but its batch is full for long; `b` is slow and free: a split is best."""
    linked = {"kv_link_bytes_per_s": 1e12}
    cluster = Cluster("agentserve", spec("a", "huge", max_num_seqs=1, **linked), config=config(5000.0))
    cluster.run(0.0, call("resident", max_tokens=5000))
    cluster.at(0.0, InstanceJoined(event_id="joined-b", instance=spec("b", **linked)))
    switch(cluster, mode)
    return cluster


@pytest.mark.parametrize(("mode", "splits"), [(mode, mode is Mode.SPLIT) for mode in Mode])
def test_a_call_is_split_only_where_that_is_allowed(mode: Mode, splits: bool) -> None:
    assert split_pool(mode).place(1.0, call("r", prompt_tokens=4000)).is_split is splits


@pytest.mark.parametrize("mode", list(Mode))
def test_a_call_that_only_a_split_can_serve_gets_it(mode: Mode) -> None:
    linked = {"kv_link_bytes_per_s": 1e12}
    cluster = in_mode(mode, spec("a", role=Role.PREFILL, **linked), spec("b", role=Role.DECODE, **linked))
    assert cluster.place(0.0, call("r")).is_split


def test_an_instance_that_joins_later_is_not_split_with_either() -> None:
    linked = {"kv_link_bytes_per_s": 1e12}
    cluster = in_mode(Mode.ROUTE, config=config(5000.0))
    cluster.at(0.0, InstanceJoined(event_id="a", instance=spec("a", "huge", max_num_seqs=1, **linked)))
    cluster.run(0.0, call("resident", max_tokens=5000))
    cluster.at(0.0, InstanceJoined(event_id="b", instance=spec("b", **linked)))
    assert not cluster.place(1.0, call("r", prompt_tokens=4000)).is_split
    switch(cluster, Mode.SPLIT, 1.0)
    assert cluster.place(1.0, call("s", prompt_tokens=4000)).is_split


def test_calls_that_our_policy_let_wait_go_when_another_one_places_them() -> None:
    cluster = Cluster("autellix", spec("a"), config=config(), batch_cap=1)
    cluster.place(0.0, call("first"))
    waiting = [cluster.at(0.0, call(name)) for name in ("second", "third")]
    assert all(isinstance(decisions[0], Hold) for decisions in waiting)
    gone = switch(cluster, Mode.OBSERVE, 1.0)
    assert [decision.request_id for decision in gone if isinstance(decision, Dispatch)] == ["second", "third"]


# What is refused


@pytest.mark.parametrize("name", ["agentserve", "goodserve", "llumnix"])
def test_a_policy_that_moves_calls_is_no_balancer_to_observe(name: str) -> None:
    cluster = Cluster("agentserve", spec("a"))
    with pytest.raises(InvalidConfig, match=f"policy {name} moves running calls"):
        switch(cluster, Mode.OBSERVE, observed=name)
    assert cluster.scheduler.mode is Mode.SPLIT


def test_an_unknown_policy_changes_nothing() -> None:
    cluster = Cluster("agentserve", spec("a"))
    with pytest.raises(UnknownPolicy, match="unknown policy 'nginx'"):
        switch(cluster, Mode.OBSERVE, observed="nginx")
    assert cluster.scheduler.snapshot()["policy"] == "agentserve"


# The one that looks on


def test_the_observed_policy_places_and_explains() -> None:
    cluster = in_mode(Mode.OBSERVE, spec("a"), spec("b", "huge"))
    placed = cluster.place(0.0, call("r"))
    assert (placed.decode_instance, placed.reason.policy) == ("a", "least_requests")
    assert cluster.scheduler.snapshot()["policy"] == "least_requests"


def test_the_shadow_tells_our_choice_and_both_predictions() -> None:
    """100 prompt tokens, 10 output: 0.1 s and 10 ms a token on `a`, four times as fast on `b`."""
    cluster = in_mode(Mode.OBSERVE, spec("a"), spec("b", "huge"), profiles=loaded_profile)
    shadow = cluster.place(0.0, call("r")).shadow
    assert shadow is not None
    assert (shadow.policy, shadow.prefill_instance, shadow.decode_instance) == ("agentserve", "b", "b")
    assert shadow.taken_ready_s == pytest.approx(0.1)
    assert shadow.taken_token_s == pytest.approx(0.011)
    assert shadow.ready_s == pytest.approx(0.1 / 4)
    assert shadow.token_s == pytest.approx(0.011 / 4)


def test_the_shadow_splits_nothing_as_the_next_mode_would_not() -> None:
    shadow = split_pool(Mode.OBSERVE).place(1.0, call("r", prompt_tokens=4000)).shadow
    assert shadow is not None
    assert shadow.prefill_instance == shadow.decode_instance == "b"


def test_a_shadow_that_would_have_kept_the_call_says_why() -> None:
    cluster = Cluster("autellix", spec("a"), config=config(), batch_cap=1)
    switch(cluster, Mode.OBSERVE)
    cluster.place(0.0, call("first"))
    shadow = cluster.place(0.0, call("second")).shadow
    assert isinstance(shadow, Shadow)
    assert (shadow.decode_instance, shadow.ready_s) == (None, None)
    assert shadow.rule
    assert shadow.taken_token_s > 0.0


def test_only_the_first_attempt_has_a_shadow() -> None:
    cluster = in_mode(Mode.OBSERVE, spec("a"), spec("b"))
    placed = cluster.place(0.0, call("r"))
    assert placed.shadow is not None
    broke = RequestFailed(
        event_id="broke",
        request_id="r",
        instance_id=placed.decode_instance,
        output_tokens=0,
        error="reset",
        retryable=True,
    )
    (again,) = cluster.at(0.1, broke)
    assert isinstance(again, Dispatch)
    assert again.shadow is None


@pytest.mark.parametrize("mode", [Mode.ROUTE, Mode.MIGRATE, Mode.SPLIT])
def test_there_is_no_shadow_where_our_policy_places(mode: Mode) -> None:
    assert in_mode(mode, spec("a")).place(0.0, call("r")).shadow is None


def test_a_shadow_that_draws_lots_leaves_those_of_the_observed_policy_alone() -> None:
    instances = [spec(name) for name in "abcdef"]
    alone = Cluster("random", *instances, config=config(), seed=3)
    watched = Cluster("power_of_two", *instances, config=config(), seed=3)
    switch(watched, Mode.OBSERVE, observed="random")
    chosen = [[each.place(float(i), call(f"r{i}")).decode_instance for i in range(30)] for each in (alone, watched)]
    assert chosen[0] == chosen[1]
