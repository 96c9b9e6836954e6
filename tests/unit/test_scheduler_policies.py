"""Each policy on cases small enough to work out by hand."""

import pytest

from scheduler.config import AgentServeConfig, GoodServeConfig, SchedulerConfig
from scheduler.decisions import Dispatch, Hold
from scheduler.errors import UnknownPolicy
from scheduler.events import InstanceDraining, InstanceJoined, InstanceReported, RequestArrived, Role, Woke
from scheduler.policies import make_policy, policy_names
from scheduler.policies.agentserve import LOWEST_PRIORITY
from tests.unit.scheduler_builders import Cluster, call, loaded_profile, only_move, spec

POOL = (spec("a", "slow"), spec("b", "fast"), spec("c", "huge"))


@pytest.mark.parametrize(
    ("left_s", "chosen", "rule"),
    [
        # 100 prompt and 10 output tokens take 0.1 + 0.1 s on slow, half on fast, a quarter on huge.
        (0.25, "a", "just enough: weakest of 3 that meet the deadline"),
        (0.15, "b", "just enough: weakest of 2 that meet the deadline"),
        (0.06, "c", "just enough: weakest of 1 that meet the deadline"),
        (0.01, "c", "none meets the deadline: most capable"),
        (None, "c", "no deadline: smallest T"),
    ],
)
def test_goodserve_takes_the_weakest_that_meets_the_deadline(left_s: float | None, chosen: str, rule: str) -> None:
    placed = Cluster("goodserve", *POOL).place(1.0, call("r", target_deadline_s=left_s and 1.0 + left_s))
    assert (placed.decode_instance, placed.reason.rule, placed.priority) == (chosen, rule, 0)


@pytest.mark.parametrize(
    ("left_s", "chosen", "rule"),
    [
        # 10 tokens after 100 of prompt take 0.2 s on slow, 0.1 s on fast, 0.05 s on huge.
        (9.0, "a", "most runs in time: chance 1.00, others lose 0.000, of 3"),
        (0.15, "b", "most runs in time: chance 1.00, others lose 0.000, of 3"),
        (0.06, "c", "most runs in time: chance 1.00, others lose 0.000, of 3"),
        (0.04, "a", "run lost: gives way, least harm to others, of 3"),
        (None, "c", "no deadline: least delay in sum, of 3"),
    ],
)
def test_an_idle_cluster_gives_the_instance_that_is_just_enough(left_s: float | None, chosen: str, rule: str) -> None:
    placed = Cluster("agentserve", *POOL).place(1.0, call("r", latest_deadline_s=left_s and 1.0 + left_s))
    assert (placed.decode_instance, placed.reason.rule) == (chosen, rule)


def tight(name: str, now_s: float) -> RequestArrived:
    """A call that is in time on `huge` alone."""
    return call(name, latest_deadline_s=now_s + 0.06)


def test_a_loose_call_leaves_the_instance_that_tight_ones_need() -> None:
    config = SchedulerConfig(agentserve=AgentServeConfig(capability_weight=0.0))
    cluster = Cluster("agentserve", *POOL, config=config, profiles=loaded_profile)
    for i in range(20):
        cluster.run(0.1 * i, tight(f"tight-{i}", 0.1 * i))
        cluster.finish(0.1 * i + 0.05, f"tight-{i}")
    loose = cluster.place(2.0, call("loose", latest_deadline_s=100.0))
    assert loose.decode_instance == "b"
    dearer = next(c for c in loose.reason.candidates if c.decode_instance == "c")
    assert "others lose +0.0" in dearer.verdict
    assert cluster.place(2.0, tight("next", 2.0)).decode_instance == "c"


def test_a_call_goes_where_its_delay_costs_residents_least() -> None:
    cluster = Cluster("agentserve", spec("a"), spec("b"), profiles=loaded_profile)
    cluster.at(0.0, InstanceDraining(event_id="d", instance_id="a"))
    # With the chance gone if it is slowed, in 10 tokens of 12 ms each.
    cluster.run(0.0, call("resident", latest_deadline_s=0.13, max_tokens=10))
    cluster.at(0.0, InstanceJoined(event_id="j", instance=spec("a")))
    assert cluster.place(0.0, call("r", latest_deadline_s=50.0)).decode_instance == "a"


def test_a_decision_names_every_candidate_with_its_figures() -> None:
    placed = Cluster("agentserve", *POOL).place(1.0, call("r", target_deadline_s=1.15))
    chosen, *others = placed.reason.candidates
    assert (chosen.decode_instance, chosen.verdict, placed.reason.candidates_total) == ("b", "chosen", 3)
    assert (chosen.predicted_prefill_s, chosen.predicted_decode_s) == pytest.approx((0.05, 0.05))
    assert chosen.slack_s == pytest.approx(0.05)
    assert [other.decode_instance for other in others] == ["c", "a"]
    # A second is four times as dear on huge as on slow, twice as dear on fast: 0.05 s against 0.1 s come to the same.
    assert others[0].verdict == "price +0.00000: chance +0.000, others lose +0.0000, delay +0.000 s"
    assert others[1].verdict == "price +1.00000: chance -1.000, others lose +0.0000, delay +0.000 s"
    assert placed.reason.length is not None
    assert placed.reason.length.p50_tokens == 10.0


def test_a_lost_run_waits_while_it_would_cost_others_and_not_for_ever() -> None:
    config = SchedulerConfig(agentserve=AgentServeConfig(lost_wait_s=2.0, lost_wait_slos=0.0))
    cluster = Cluster("agentserve", spec("a"), config=config, profiles=loaded_profile)
    cluster.run(1.0, call("resident", latest_deadline_s=1.13, max_tokens=10))
    (held,) = cluster.at(1.0, call("late", latest_deadline_s=1.001))
    assert isinstance(held, Hold)
    assert held.reason.rule.startswith("run lost: gives way, others would lose 0.")
    assert [type(decision) for decision in cluster.finish(1.1, "resident")] == [Dispatch]


def test_a_lost_run_goes_at_the_end_of_its_wait_though_new_ones_wait_before_it() -> None:
    config = SchedulerConfig(agentserve=AgentServeConfig(lost_wait_s=0.5, lost_wait_slos=0.0, life_weight=1e3))
    cluster = Cluster("agentserve", spec("a"), config=config, profiles=loaded_profile)
    cluster.run(1.0, call("resident", latest_deadline_s=1.13, max_tokens=10))
    for name, deadline_s in (("lost", 1.001), ("new1", 90.0), ("new2", 90.0), ("new3", 90.0)):
        assert [type(one) for one in cluster.at(1.0, call(name, latest_deadline_s=deadline_s))] == [Hold]
    assert not [one for one in cluster.at(1.4, Woke(event_id="w1")) if isinstance(one, Dispatch)]
    gone = [one.request_id for one in cluster.at(1.6, Woke(event_id="w2")) if isinstance(one, Dispatch)]
    assert gone == ["lost"]


def test_a_new_run_waits_while_it_would_cost_more_than_it_may_gain() -> None:
    config = SchedulerConfig(agentserve=AgentServeConfig(life_weight=100.0))
    cluster = Cluster("agentserve", spec("a"), config=config, profiles=loaded_profile)
    cluster.run(1.0, call("resident", latest_deadline_s=1.13, max_tokens=10))
    (held,) = cluster.at(1.0, call("new", latest_deadline_s=9.0))
    assert isinstance(held, Hold)
    assert held.reason.rule.startswith("new run waits: would cost others ")
    (going,) = cluster.finish(1.1, "resident")
    assert isinstance(going, Dispatch)
    assert going.request_id == "new"


def test_goodserve_says_why_the_others_lost() -> None:
    cluster = Cluster("goodserve", *POOL, spec("d", "fast"))
    placed = cluster.place(1.0, call("r", target_deadline_s=1.15))
    assert {c.decode_instance: c.verdict for c in placed.reason.candidates} == {
        "b": "chosen",
        "c": "stronger than needed: 400 against 200",
        "d": "T larger by 0.000 s",
        "a": "late by 0.050 s",
    }


def test_a_known_prefix_draws_the_call() -> None:
    cluster = Cluster("agentserve", spec("a"), spec("b"))
    hashes = tuple(range(4))
    first = call("r1", prompt_tokens=1024, prefix_hashes=hashes)
    cluster.at(0.0, InstanceDraining(event_id="d", instance_id="a"))
    assert cluster.run(1.0, first).decode_instance == "b"
    cluster.at(2.0, InstanceJoined(event_id="j", instance=spec("a")))
    placed = cluster.place(3.0, call("r2", prompt_tokens=1100, prefix_hashes=(*hashes, 9)))
    assert (placed.decode_instance, placed.reason.candidates[0].cached_tokens) == ("b", 1024)


def test_a_newcomer_avoids_delaying_many_residents() -> None:
    config = SchedulerConfig(agentserve=AgentServeConfig(social_weight=2.0))
    cluster = Cluster("agentserve", spec("a"), spec("b"), config=config, profiles=loaded_profile)
    cluster.at(0.0, InstanceDraining(event_id="d", instance_id="b"))
    for i in range(8):
        cluster.run(0.0, call(f"resident{i}", max_tokens=500))
    cluster.at(1.0, InstanceJoined(event_id="j", instance=spec("b")))
    assert cluster.place(9.0, call("r")).decode_instance == "b"


def test_a_tighter_call_gets_the_smaller_priority_and_a_lost_run_the_lowest() -> None:
    cluster = Cluster("agentserve", spec("a"))
    soon = cluster.place(1.0, call("tight", target_deadline_s=5.0, latest_deadline_s=9.0))
    loose = cluster.place(1.0, call("loose", target_deadline_s=50.0, latest_deadline_s=90.0))
    free = cluster.place(1.0, call("free"))
    lost = cluster.place(1.0, call("lost", target_deadline_s=0.5, latest_deadline_s=0.9))
    assert soon.priority == round((9.0 - 0.2) * 100)
    assert soon.priority < loose.priority < free.priority < lost.priority == LOWEST_PRIORITY
    assert lost.reason.rule == "run lost: gives way, least harm to others, of 1"


def test_a_decision_says_the_priority_for_an_engine_that_takes_none_too() -> None:
    takes, orders_at_the_gateway = (
        Cluster("agentserve", spec("a", supports_priority=supports)).place(1.0, call("r", target_deadline_s=5.0))
        for supports in (True, False)
    )
    # 0.1 s of prefill and 10 tokens of 10 ms: to be started by 4.8 s.
    assert takes.priority == orders_at_the_gateway.priority == 480


def test_round_robin_takes_turns_by_id_and_passes_over_closed_ones() -> None:
    cluster = Cluster("round_robin", *POOL)
    turns = [cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(4)]
    cluster.at(2.0, InstanceDraining(event_id="d", instance_id="b"))
    assert [*turns, cluster.place(2.0, call("r9")).decode_instance] == ["a", "b", "c", "a", "c"]


def test_least_requests_counts_our_calls_and_those_of_others() -> None:
    cluster = Cluster("least_requests", *POOL)
    assert [cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(3)] == ["a", "b", "c"]
    report = InstanceReported(event_id="x", instance_id="a", measured_at_s=2.0, running=5, waiting=1)
    cluster.at(2.0, report)
    placed = cluster.place(2.0, call("r4"))
    assert placed.decode_instance == "b"
    assert {c.decode_instance: c.verdict for c in placed.reason.candidates}["a"] == "6 outstanding calls"


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_counting_policies_never_move_a_call(policy: str) -> None:
    cluster = Cluster(policy, *POOL)
    cluster.run(1.0, call("r", max_tokens=900, target_deadline_s=1.1, latest_deadline_s=1.2))
    assert cluster.progress(5.0, "r", 20) == []
    assert cluster.at(6.0, InstanceDraining(event_id="d", instance_id="a")) == []


def test_goodserve_moves_a_late_call_to_the_weakest_stronger_instance_that_is_just_enough() -> None:
    cluster = Cluster("goodserve", *POOL)
    # 0.9 s on slow; 40 tokens after 1.2 s instead of 0.4 s: 50 tokens are left, 1.5 s at 30 ms, deadline in 0.4 s.
    assert cluster.run(0.0, call("r", prompt_tokens=10, max_tokens=90, target_deadline_s=1.6)).decode_instance == "a"
    move = only_move(cluster.progress(1.2, "r", 40))
    assert (move.source, move.target, move.attempt, move.cause) == ("a", "b", 2, "late")
    assert move.reason.rule == "late: weakest of 2 stronger instances that meet the deadline"
    assert [c.verdict.split(":")[0] for c in move.reason.candidates] == ["chosen", "staying"]


def test_goodserve_stays_where_nothing_stronger_is_just_enough() -> None:
    cluster = Cluster("goodserve", *POOL)
    cluster.run(0.0, call("r", prompt_tokens=10, max_tokens=90, target_deadline_s=1.2))
    assert cluster.progress(1.25, "r", 40) == []
    free = Cluster("goodserve", spec("a"))
    free.run(0.0, call("r", max_tokens=90, target_deadline_s=3.0))
    assert free.progress(2.9, "r", 40) == []


def test_goodserve_can_be_given_a_cost_and_a_cap() -> None:
    config = SchedulerConfig(goodserve=GoodServeConfig(charge_replay=True, max_moves=0))
    cluster = Cluster("goodserve", *POOL, config=config)
    cluster.run(0.0, call("r", prompt_tokens=10, max_tokens=90, target_deadline_s=1.6))
    assert cluster.progress(1.2, "r", 40) == []


def test_goodserve_serves_a_pool_of_separate_prefill_and_decode_instances() -> None:
    pool = [
        spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
        spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
        spec("e", "fast", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    ]
    # 0.1 s of prefill, then 0.1 s of decode on d and 0.05 s on e.
    placed = Cluster("goodserve", *pool).place(1.0, call("r", target_deadline_s=9.0))
    assert (placed.prefill_instance, placed.decode_instance) == ("p", "d")
    assert placed.reason.rule == "just enough: weakest decode instance of 2 pairs that meet the deadline"
    assert placed.reason.candidates[1].verdict == "T 0.150 s, capability 200"
    assert placed.reason.candidates[0].predicted_transfer_s == pytest.approx(100 * 1000 / 1e9)
    for left_s, decode in ((0.19, "e"), (0.1, "e")):
        assert (
            Cluster("goodserve", *pool).place(1.0, call("r", target_deadline_s=1.0 + left_s)).decode_instance == decode
        )


def test_goodserve_moves_late_calls_between_decode_instances() -> None:
    pool = [
        spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
        spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
        spec("e", "fast", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    ]
    cluster = Cluster("goodserve", *pool)
    placed = cluster.run(0.0, call("r", prompt_tokens=10, max_tokens=90, target_deadline_s=1.8))
    assert placed.decode_instance == "d"
    assert only_move(cluster.progress(1.2, "r", 40)).target == "e"


def test_goodserve_without_migration_lets_late_calls_stay() -> None:
    cluster = Cluster("goodserve", *POOL, config=SchedulerConfig(goodserve=GoodServeConfig(migration=False)))
    cluster.run(0.0, call("r", prompt_tokens=10, max_tokens=90, target_deadline_s=1.6))
    assert cluster.progress(1.2, "r", 40) == []


def test_goodserve_without_predictor_takes_every_answer_for_the_mean_of_all() -> None:
    config = SchedulerConfig(goodserve=GoodServeConfig(predictor=False))
    cluster = Cluster("goodserve", *POOL, config=config)
    for name, tokens in (("short", 10), ("long", 50)):
        cluster.run(0.0, call(name, node=name, max_tokens=None))
        cluster.finish(0.5, name, tokens)
    placed = cluster.place(1.0, call("r", node="short", max_tokens=None, target_deadline_s=9.0))
    assert placed.reason.length is not None
    assert (placed.reason.length.p50_tokens, placed.reason.length.source) == (30.0, "mean of all answers")


@pytest.mark.parametrize("policy", policy_names())
def test_without_a_decode_instance_a_call_is_held(policy: str) -> None:
    (decision,) = Cluster(policy, spec("p", role=Role.PREFILL)).at(1.0, call("r"))
    assert isinstance(decision, Hold)


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownPolicy, match="'best'; known are agentserve, autellix, goodserve, hexagent, hexgen_flow"):
        make_policy("best")
