"""Who may hand KV to whom, which pairs are shunned after a failure, and when a running call moves by its KV."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.config import AgentServeConfig, EstimateConfig, LengthConfig, MigrationConfig, SchedulerConfig
from scheduler.decisions import Decision, Dispatch, MigrationCause, MoveBy
from scheduler.errors import InvalidConfig
from scheduler.events import (
    FirstToken,
    InstanceDraining,
    InstanceJoined,
    InstanceLost,
    MigrationRefused,
    PrefillFinished,
    RequestArrived,
    RequestFailed,
    Role,
)
from tests.unit.scheduler_builders import Cluster, call, config, kinds, only_move, spec


def linked(name: str, gpu: str = "slow", **changes: Any) -> Any:
    return spec(name, gpu, **{"kv_link_bytes_per_s": 1e12, **changes})


def prefill_ended(name: str) -> PrefillFinished:
    return PrefillFinished(event_id=f"prefilled-{name}", request_id=name)


def first(name: str, **changes: Any) -> FirstToken:
    return FirstToken(event_id=f"first-{name}", request_id=name, **changes)


def broke(name: str, instance: str, output_tokens: int = 0, *, retryable: bool = True) -> RequestFailed:
    return RequestFailed(
        event_id=f"broke-{name}",
        request_id=name,
        instance_id=instance,
        output_tokens=output_tokens,
        error="no KV came",
        retryable=retryable,
    )


def pair(decision: Decision) -> tuple[str, str]:
    assert isinstance(decision, Dispatch), decision
    return decision.prefill_instance, decision.decode_instance


# Groups


def split_pool(**groups: str | None) -> Cluster:
    """`a` prefills four times as fast but its batch is full for long; the others are slow and free."""
    cluster = Cluster("agentserve", linked("a", "huge", max_num_seqs=1, kv_group=groups["a"]), config=config(5000.0))
    cluster.run(0.0, call("resident", max_tokens=5000))
    for name in sorted(set(groups) - {"a"}):
        instance = linked(name, kv_group=groups[name])
        cluster.at(0.0, InstanceJoined(event_id=f"joined-{name}", instance=instance))
    return cluster


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"a": None, "b": None}, ("a", "b")),
        ({"a": "nixl-1", "b": "nixl-1"}, ("a", "b")),
        ({"a": "nixl-1", "b": "nixl-2"}, ("b", "b")),
        ({"a": "nixl-1", "b": None}, ("b", "b")),
        ({"a": "nixl-1", "b": "nixl-2", "c": "nixl-1"}, ("a", "c")),
    ],
)
def test_a_split_stays_within_a_group(groups: dict[str, str | None], expected: tuple[str, str]) -> None:
    assert pair(split_pool(**groups).place(1.0, call("r", prompt_tokens=4000))) == expected


def test_the_best_few_of_one_group_do_not_hide_the_pairs_of_another() -> None:
    pool = [linked(f"p{i}", "fast", role=Role.PREFILL, kv_group="x") for i in range(5)]
    pool += [linked(f"d{i}", "fast", role=Role.DECODE, kv_group="y") for i in range(5)]
    pool += [linked("q", role=Role.PREFILL, kv_group="z"), linked("e", role=Role.DECODE, kv_group="z")]
    assert pair(Cluster("agentserve", *pool).place(0.0, call("r"))) == ("q", "e")


def test_a_pool_whose_linked_instances_are_all_of_different_groups_holds_a_call_that_needs_two() -> None:
    pool = [linked("p", role=Role.PREFILL, kv_group="x"), linked("d", role=Role.DECODE, kv_group="y")]
    assert kinds(Cluster("agentserve", *pool).at(0.0, call("r"))) == ["Hold"]


# Pairs that failed


def disaggregated(**estimate: float) -> Cluster:
    """`p` prefills for `d` and, twice as slow, for `e`."""
    settings = config(
        estimate=EstimateConfig(min_correction=1.0, max_correction=1.0, **estimate),
        agentserve=AgentServeConfig(capability_weight=0.0),
    )
    pool = [linked("p", role=Role.PREFILL), linked("d", "fast", role=Role.DECODE), linked("e", role=Role.DECODE)]
    return Cluster("agentserve", *pool, config=settings)


def fail_pair(cluster: Cluster, now_s: float, name: str = "r", decode: str = "d") -> tuple[str, str]:
    """A call's KV does not pass from `p` to `decode`; where it is sent again."""
    assert pair(cluster.place(now_s, call(name))) == ("p", decode)
    cluster.at(now_s, prefill_ended(name))
    (again,) = cluster.at(now_s, broke(name, decode))
    return pair(again)


def test_a_pair_between_which_kv_did_not_pass_is_shunned_for_a_while() -> None:
    cluster = disaggregated()
    assert fail_pair(cluster, 1.0) == ("p", "e")
    assert pair(cluster.place(60.9, call("before"))) == ("p", "e")
    assert pair(cluster.place(61.0, call("after"))) == ("p", "d")


def test_how_long_a_pair_is_shunned_is_configured_within_a_range() -> None:
    cluster = disaggregated(pair_retry_s=5.0)
    assert fail_pair(cluster, 1.0) == ("p", "e")
    assert pair(cluster.place(6.0, call("after"))) == ("p", "d")
    with pytest.raises(InvalidConfig, match=r"EstimateConfig.pair_retry_s is -1.0"):
        EstimateConfig(pair_retry_s=-1.0)


def test_a_first_token_over_a_pair_clears_it() -> None:
    cluster = disaggregated()
    assert pair(cluster.place(1.0, call("early"))) == ("p", "d")
    assert fail_pair(cluster, 1.0) == ("p", "e")
    assert pair(cluster.place(1.1, call("shuns"))) == ("p", "e")
    cluster.at(1.2, prefill_ended("early"))
    cluster.at(1.2, first("early"))
    assert pair(cluster.place(1.3, call("trusts"))) == ("p", "d")


@pytest.mark.parametrize("happens", ["in prefill", "on the prefill side", "after its first token", "not retryable"])
def test_other_failures_say_nothing_of_the_pair(happens: str) -> None:
    cluster = disaggregated()
    cluster.place(1.0, call("r"))
    if happens != "in prefill":
        cluster.at(1.0, prefill_ended("r"))
    if happens == "after its first token":
        cluster.at(1.0, first("r"))
    where = "p" if happens == "on the prefill side" else "d"
    cluster.at(1.0, broke("r", where, retryable=happens != "not retryable"))
    assert pair(cluster.place(1.1, call("next"))) == ("p", "d")


@pytest.mark.parametrize("leaves", ["p", "d"])
def test_a_pair_is_forgotten_when_one_of_it_leaves(leaves: str) -> None:
    cluster = disaggregated()
    fail_pair(cluster, 1.0)
    instance = cluster.scheduler._state.pools["m"].specs[leaves]
    cluster.at(1.1, InstanceLost(event_id="l", instance_id=leaves, reason="restarted"))
    cluster.at(1.2, InstanceJoined(event_id="j", instance=instance))
    assert pair(cluster.place(1.3, call("next"))) == ("p", "d")


def test_a_pair_one_of_which_has_left_meanwhile_is_not_noted() -> None:
    cluster = disaggregated()
    cluster.place(1.0, call("r"))
    cluster.at(1.0, prefill_ended("r"))
    cluster.at(1.1, InstanceLost(event_id="l", instance_id="d", reason="will"))
    (again,) = cluster.at(1.2, broke("r", "d"))
    assert pair(again) == ("p", "e")
    assert not cluster.scheduler._state.pools["m"].broken


def test_the_call_itself_falls_back_to_one_instance() -> None:
    cluster = split_pool(a=None, b=None)
    assert pair(cluster.place(1.0, call("r", prompt_tokens=4000))) == ("a", "b")
    cluster.at(2.0, prefill_ended("r"))
    (again,) = cluster.at(2.1, broke("r", "b"))
    assert isinstance(again, Dispatch)
    assert not again.is_split
    assert pair(cluster.place(2.2, call("next", prompt_tokens=4000))) == ("b", "b")


def test_a_call_that_nothing_else_can_serve_gets_the_pair_that_failed() -> None:
    cluster = Cluster("agentserve", linked("p", role=Role.PREFILL), linked("d", role=Role.DECODE))
    assert fail_pair(cluster, 1.0) == ("p", "d")


def test_of_pairs_that_all_failed_the_one_that_just_did_is_the_last() -> None:
    cluster = disaggregated()
    assert fail_pair(cluster, 1.0, "r1") == ("p", "e")
    cluster.at(1.1, prefill_ended("r1"))
    (again,) = cluster.at(1.1, broke("r1", "e"))
    assert pair(again) == ("p", "d")
    cluster.at(1.2, prefill_ended("r1"))
    (again,) = cluster.at(1.2, broke("r1", "d"))
    assert pair(again) == ("p", "e")


def test_an_instance_that_failed_is_taken_again_if_only_its_group_has_a_whole_pair() -> None:
    pool = [linked(name, role=Role.PREFILL, kv_group=group) for name, group in (("p", "x"), ("q", "y"))]
    cluster = Cluster("agentserve", *pool, linked("d", role=Role.DECODE, kv_group="x"))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=linked("e", role=Role.DECODE, kv_group="z")))
    cluster.at(0.0, InstanceJoined(event_id="k", instance=linked("r", role=Role.PREFILL, kv_group="y")))
    assert pair(cluster.place(1.0, call("c"))) == ("p", "d")
    (again,) = cluster.at(1.1, broke("c", "p"))
    assert pair(again) == ("p", "d")


# Moves by KV


def draining(
    *others: Any,
    source: dict[str, Any] | None = None,
    also: RequestArrived | None = None,
    before: Callable[[Cluster], object] | None = None,
    **asked: Any,
) -> tuple[Cluster, list[Decision]]:
    """A call of 4000 prompt tokens on `a` has put out 51 of 800 when `a` drains; what is decided."""
    limits = MigrationConfig(kv_moves=asked.pop("kv_moves", True))
    settings = config(800.0, migration=limits, learns_speed=asked.pop("learns_speed", False))
    first_spec = spec("a", **{"kv_link_bytes_per_s": 1e8, **(source or {})})
    cluster = Cluster("agentserve", first_spec, config=settings)
    cluster.run(0.0, call("r", **{"prompt_tokens": 4000, "max_tokens": 800, **asked}))
    if also is not None:
        assert cluster.place(0.0, also).decode_instance == "a"
    for other in others or (linked("b"),):
        cluster.at(0.0, InstanceJoined(event_id=f"joined-{other.instance_id}", instance=other))
    cluster.progress(0.5, "r", 51)
    if before is not None:
        before(cluster)
    return cluster, cluster.at(0.5, InstanceDraining(event_id="drain", instance_id="a"))


def test_a_call_moves_by_its_kv_where_that_costs_less() -> None:
    _, decisions = draining()
    move = only_move(decisions)
    assert (move.source, move.target, move.by, move.cause) == ("a", "b", MoveBy.KV, MigrationCause.DRAIN)
    # 4051 tokens: 253 blocks of 16 are cached at a, 3 tokens and one step of 10 ms are not; 4.051 MB at 100 MB/s.
    step_s, transfer_s = 3e-3 + 1e-2, 4051e3 / 1e8
    assert move.predicted_cost_s == pytest.approx(step_s + transfer_s)
    assert move.predicted_gain_s == pytest.approx(-step_s - transfer_s)  # b is no faster
    chosen, staying = move.reason.candidates
    assert (chosen.prefill_instance, chosen.decode_instance, chosen.cached_tokens) == ("a", "b", 4048)
    assert (chosen.predicted_queue_s, chosen.predicted_prefill_s) == (0.0, pytest.approx(step_s))
    assert chosen.predicted_transfer_s == pytest.approx(transfer_s)
    assert chosen.predicted_finish_s == pytest.approx(staying.predicted_finish_s + step_s + transfer_s)
    assert (chosen.verdict, staying.verdict) == ("chosen", "staying: 742 tokens left at 10.0 ms each")
    assert move.reason.rule.endswith("s tolerated; by KV: 0.054 s against 4.051 s by replay")


def test_kv_does_not_move_unless_asked_for() -> None:
    _, decisions = draining(kv_moves=False)
    move = only_move(decisions)
    assert (move.by, move.predicted_cost_s) == (MoveBy.REPLAY, pytest.approx(4.051))
    assert move.reason.candidates[0].prefill_instance == "b"
    assert move.reason.rule.endswith("s tolerated")


def test_prefills_queued_at_the_source_come_first() -> None:
    # 1000 tokens and a step were sent at 0.0: at 0.5 they will be done in 0.51 s.
    _, decisions = draining(also=call("waiting", prompt_tokens=1000))
    move = only_move(decisions)
    assert (move.request_id, move.by) == ("r", MoveBy.KV)
    assert move.reason.candidates[0].predicted_queue_s == pytest.approx(0.51)


def test_what_the_target_holds_already_is_not_transferred() -> None:
    prefix = tuple(range(8))

    def warm(cluster: Cluster) -> None:
        cluster.scheduler._state.pools["m"].hold_prefix("b", prefix, 256)

    _, decisions = draining(before=warm, prefix_hashes=prefix)
    move = only_move(decisions)
    assert move.reason.candidates[0].predicted_transfer_s == pytest.approx((4051 - 2048) * 1e3 / 1e8)
    assert move.reason.rule.endswith("by KV: 0.033 s against 2.003 s by replay")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ({"kv_link_bytes_per_s": None}, {}),
        ({}, {"kv_link_bytes_per_s": None}),
        ({"kv_group": "x"}, {"kv_group": "y"}),
        ({"supports_replay": False}, {}),
    ],
)
def test_kv_moves_only_where_it_can_pass(source: dict[str, Any], target: dict[str, Any]) -> None:
    _, decisions = draining(linked("b", **target), source=source)
    move = only_move(decisions)
    assert (move.by, move.reason.candidates[0].prefill_instance) == (MoveBy.REPLAY, "b")
    assert move.reason.rule.endswith("; by replay: 4.051 s as KV cannot pass")


def test_a_decode_only_source_hands_nothing_over() -> None:
    pool = [linked("p", role=Role.PREFILL), linked("d", role=Role.DECODE)]
    cluster = Cluster("agentserve", *pool, config=config(800.0, migration=MigrationConfig(kv_moves=True)))
    cluster.run(0.0, call("r", max_tokens=800))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=linked("e", role=Role.DECODE)))
    move = only_move(cluster.at(0.5, InstanceDraining(event_id="drain", instance_id="d")))
    assert (move.source, move.target, move.by) == ("d", "e", MoveBy.REPLAY)


def test_each_target_is_weighed_by_its_own_cheaper_way() -> None:
    # To b by KV: 13 ms, 40.5 ms of transfer and 7.422 s of decode; to the fast c by replay 2.0255 s and 3.711 s.
    _, decisions = draining(linked("b"), spec("c", "fast"))
    move = only_move(decisions)
    assert (move.target, move.by) == ("c", MoveBy.REPLAY)
    chosen, _, other = move.reason.candidates
    assert (chosen.prefill_instance, other.prefill_instance, other.decode_instance) == ("c", "a", "b")
    assert other.verdict == "ends +1.739 s; by KV: 0.054 s against 4.051 s by replay"


def test_a_slow_link_is_worse_than_replay() -> None:
    _, decisions = draining(source={"kv_link_bytes_per_s": 1e6})
    move = only_move(decisions)
    assert (move.by, move.predicted_cost_s) == (MoveBy.REPLAY, pytest.approx(4.051))
    assert move.reason.rule.endswith("; by replay: 4.051 s against 4.064 s by KV")


def test_a_source_that_was_found_to_cache_nothing_would_prefill_it_all_again() -> None:
    def learn(cluster: Cluster) -> None:
        cluster.scheduler._state.pools["m"].trust[0] = 0.0

    _, decisions = draining(before=learn)
    move = only_move(decisions)
    # 4051 tokens in two chunks beside a step of 10 ms each (4051/2048 of them), and the transfer.
    assert move.by is MoveBy.REPLAY
    assert move.reason.rule.endswith("; by replay: 4.051 s against 4.111 s by KV")


def test_a_late_call_is_rescued_by_its_kv() -> None:
    limits = MigrationConfig(kv_moves=True)
    lengths = LengthConfig(prior_median_tokens=400.0, prior_sigma=0.05)
    settings = SchedulerConfig(length=lengths, migration=limits)
    cluster = Cluster("agentserve", linked("a"), config=settings)
    cluster.place(0.0, call("r", prompt_tokens=4000, max_tokens=400, target_deadline_s=9.0, latest_deadline_s=9.5))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=linked("b", "fast")))
    cluster.at(4.0, first("r"))
    move = only_move(cluster.progress(6.4, "r", 40))
    # 360 tokens at 5 ms end at 8.2 s after a step at a; replay at b alone would take 2 s more.
    assert (move.target, move.by, move.cause) == ("b", MoveBy.KV, MigrationCause.LATE)
    assert move.reason.rule.startswith("late: moving raises the chance of the deadline from 0.0")
    assert "; by KV: 0.0" in move.reason.rule


def test_a_kv_move_is_charged_as_a_split_and_teaches_no_prefill_speed() -> None:
    cluster, _ = draining(learns_speed=True)
    before = cluster.instance("a")["prefill_correction"]
    assert (cluster.instance("a")["queued"], cluster.instance("a")["running"], cluster.instance("b")["bound"]) == (
        1,
        0,
        1,
    )
    cluster.at(0.9, prefill_ended("r"))
    assert (cluster.instance("a")["queued"], cluster.instance("b")["bound"]) == (0, 1)
    cluster.at(1.0, first("r", cached_tokens=0))
    assert (cluster.instance("b")["bound"], cluster.instance("b")["running"]) == (0, 1)
    assert cluster.instance("a")["prefill_correction"] == before
    assert cluster.scheduler._state.pools["m"].trust.tolist() == [1.0, 1.0]


def test_a_first_token_without_word_of_the_step_before_frees_the_source() -> None:
    cluster, _ = draining()
    boxes = cluster.scheduler._state.pools["m"].box_p.tolist()
    cluster.at(1.0, first("r"))
    assert (cluster.instance("a")["queued"], cluster.instance("b")["running"]) == (0, 1)
    assert cluster.scheduler._state.pools["m"].box_p.tolist() == boxes


@pytest.mark.parametrize("is_prefilled", [False, True])
def test_a_refused_kv_move_puts_the_call_back(is_prefilled: bool) -> None:
    cluster, _ = draining()
    if is_prefilled:
        cluster.at(0.6, prefill_ended("r"))
    cluster.at(0.7, MigrationRefused(event_id="m", request_id="r", reason="busy"))
    a, b = cluster.instance("a"), cluster.instance("b")
    assert (a["queued"], a["running"], b["bound"]) == (0, 1, 0)
    assert cluster.finish(3.0, "r", 100) == []


@pytest.mark.parametrize(("where", "goes_to"), [("a", "b"), ("b", "c")])
def test_a_call_that_fails_on_a_kv_move_is_replayed_where_it_can(where: str, goes_to: str) -> None:
    # `a` drains and takes nothing new; the step before the move may fail there, or the pull at `b`.
    cluster, decisions = draining(linked("b"), linked("c", max_num_seqs=63))
    assert only_move(decisions).target == "b"
    if where == "b":
        cluster.at(0.6, prefill_ended("r"))
    (again,) = cluster.at(0.7, broke("r", where, 51))
    assert isinstance(again, Dispatch)
    assert (pair(again), again.attempt) == ((goes_to, goes_to), 3)
    assert (("a", "b") in cluster.scheduler._state.pools["m"].broken) is (where == "b")


def test_kv_does_not_move_over_a_pair_that_failed() -> None:
    _, decisions = draining(
        linked("b"), before=lambda cluster: cluster.scheduler._state.pools["m"].broken.note("a", "b", 60.0)
    )
    assert only_move(decisions).by is MoveBy.REPLAY


@pytest.mark.parametrize("lost", ["a", "b"])
def test_either_side_of_a_kv_move_may_be_lost(lost: str) -> None:
    cluster, _ = draining(linked("b"), linked("c", max_num_seqs=63))
    cluster.at(0.6, InstanceLost(event_id="l", instance_id=lost, reason="will"))
    (again,) = cluster.at(0.7, broke("r", lost, 51))
    assert pair(again) == (("b", "b") if lost == "a" else ("c", "c"))
