"""Preble, llm-d's scorer, PolyServe and Llumnix: on cases small enough to work out by hand."""

from typing import Any

import pytest

from scheduler.decisions import Migrate, MigrationCause, MoveBy
from scheduler.events import InstanceDraining, InstanceJoined, Role
from tests.unit.scheduler_builders import Cluster, call, config, loaded_profile, only_move, spec

POOL = (spec("a", "slow"), spec("b", "fast"), spec("c", "huge"))
PAIRS = (
    spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
    spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    spec("e", role=Role.DECODE, kv_link_bytes_per_s=1e9),
)
BLOCK = 100
SURE = {"explore": 0.0, "gate_skip": 0.0}


def turn(name: str, session: int, blocks: int, **changes: Any) -> Any:
    """A call with `blocks` blocks of prompt that only its session shares."""
    hashes = tuple(range(1000 * session, 1000 * session + blocks))
    given = {"prompt_tokens": BLOCK * blocks, "prefix_hashes": hashes, "prefix_block_tokens": BLOCK}
    return call(name, **{**given, **changes})


# Preble. A block takes 0.1 s to prefill on slow, an answer 0.1 s.


def test_preble_exploits_a_match_that_is_longer_than_the_rest() -> None:
    cluster = Cluster("preble", spec("a"), spec("b"))
    cold = cluster.place(0.0, turn("r0", session=0, blocks=5))
    assert (cold.decode_instance, cold.reason.rule.split(":")[0]) == ("a", "explore")
    warm = cluster.place(1.0, turn("r1", session=0, blocks=9))
    assert warm.decode_instance == "a"
    assert warm.reason.rule == "exploit: least load of those that hold 500 of 900 tokens, of 2"


def test_preble_explores_when_more_is_new_than_matched() -> None:
    cluster = Cluster("preble", spec("a"), spec("b"))
    cluster.place(0.0, turn("r0", session=0, blocks=5))
    # a: 0.6 s of load and 0.6 s of prefill; b: 1.1 s of prefill.
    placed = cluster.place(1.0, turn("r1", session=0, blocks=11))
    assert placed.decode_instance == "b"
    assert placed.reason.rule == "explore: least load, prefill and eviction, 500 of 1100 tokens known, of 2"
    assert placed.reason.candidates[1].verdict == "500 tokens known, cost 1.300 s, 0.600 s of it load"


def test_preble_sends_a_call_off_its_prefix_to_the_lightest_when_load_is_uneven() -> None:
    for slack_s, chosen in ((0.0, "b"), (5.0, "a")):
        cluster = Cluster("preble", spec("a"), spec("b"), slack_s=slack_s)
        cluster.place(0.0, turn("r0", session=0, blocks=5))
        placed = cluster.place(1.0, turn("r1", session=0, blocks=5))
        assert placed.decode_instance == chosen
    # b holds the prefix now too, and both have about as much load.
    cluster = Cluster("preble", spec("a"), spec("b"), slack_s=0.0)
    for i in range(2):
        cluster.place(float(i), turn(f"r{i}", session=0, blocks=5))
    assert cluster.place(2.0, turn("r2", session=0, blocks=5)).reason.rule.startswith("exploit")


def test_preble_forgets_load_after_three_minutes() -> None:
    cluster = Cluster("preble", spec("a"), spec("b"), config=config())
    cluster.run(0.0, turn("r0", session=0, blocks=50))
    cluster.finish(6.0, "r0")
    assert cluster.place(100.0, turn("r1", session=1, blocks=1)).decode_instance == "b"
    assert cluster.place(300.0, turn("r2", session=2, blocks=1)).decode_instance == "a"


@pytest.mark.parametrize(("weight", "chosen"), [(1.0, "b"), (0.0, "a")])
def test_preble_prices_the_prefixes_it_would_evict(weight: float, chosen: str) -> None:
    small = {"kv_capacity_tokens": 1600}
    cluster = Cluster("preble", spec("a", **small), spec("b", **small), config=config(), eviction_weight=weight)
    cluster.run(0.0, turn("r0", session=0, blocks=15))
    cluster.finish(1.0, "r0")
    # a holds 1500 of 1600 tokens: 300 new ones push out 200, 0.2 s of prefill.
    assert cluster.place(300.0, turn("r1", session=1, blocks=3)).decode_instance == chosen


# llm-d. 100 prompt and 10 output tokens take 0.2 s on slow, half on fast, a quarter on huge.


@pytest.mark.parametrize(
    ("left_s", "chosen", "rule"),
    [
        (0.25, "a", "the least headroom of 3 that have some, of 3"),
        (0.15, "b", "the least headroom of 2 that have some, of 3"),
        (0.01, "c", "no headroom anywhere: the least violation, an idle one first, of 3"),
        (None, "c", "no deadline: least predicted latency, of 3"),
    ],
)
def test_llmd_takes_the_least_headroom(left_s: float | None, chosen: str, rule: str) -> None:
    placed = Cluster("llmd_least", *POOL, **SURE).place(1.0, call("r", target_deadline_s=left_s and 1.0 + left_s))
    assert (placed.decode_instance, placed.reason.rule) == (chosen, rule)


def test_llmd_without_headroom_takes_an_idle_instance_first() -> None:
    cluster = Cluster("llmd_least", *POOL, **SURE)
    assert cluster.run(1.0, call("r0")).decode_instance == "c"
    assert cluster.place(1.0, call("r1", target_deadline_s=1.01)).decode_instance == "b"


def test_llmd_explores_one_without_headroom() -> None:
    placed = Cluster("llmd_least", *POOL, explore=1.0).place(1.0, call("r", target_deadline_s=1.15))
    assert (placed.decode_instance, placed.reason.rule) == (
        "a",
        "exploring one without headroom, an idle one first, of 3",
    )


def test_llmd_keeps_to_an_instance_that_holds_the_prompt() -> None:
    cluster = Cluster("llmd_least", *POOL, **SURE)
    assert cluster.run(1.0, turn("r0", session=0, blocks=5)).decode_instance == "c"
    assert cluster.place(2.0, turn("r1", session=0, blocks=5, target_deadline_s=9.0)).decode_instance == "c"
    # 5 of 6 blocks are not nearly the whole, but enough within the tier; 5 of 9 are not.
    assert cluster.place(2.0, turn("r2", session=0, blocks=6, target_deadline_s=9.0)).decode_instance == "c"
    assert cluster.place(2.0, turn("r3", session=1, blocks=6, target_deadline_s=9.0)).decode_instance == "a"


@pytest.mark.parametrize(("penalty_s", "chosen"), [(0.5, "a"), (5.0, "c")])
def test_llmd_leaves_the_prompt_where_waiting_for_it_costs_too_much(penalty_s: float, chosen: str) -> None:
    cluster = Cluster("llmd_least", *POOL, config=config(), gate_penalty_s=penalty_s, **SURE)
    cluster.run(1.0, turn("r0", session=0, blocks=5))
    cluster.place(2.0, turn("r1", session=2, blocks=40))
    # c holds the prompt, behind 1 s of prefill; without it a takes 0.6 s and b 0.3 s.
    assert cluster.place(2.0, turn("r2", session=0, blocks=5, target_deadline_s=2.8)).decode_instance == chosen


def test_llmd_may_divide_the_time_left_into_two_objectives() -> None:
    # Half of 0.18 s for the first token: 0.1 s on a is too late. 9 ms per token suit b and c.
    given = {"ttft_share": 0.5, **SURE}
    placed = Cluster("llmd_least", *POOL, **given).place(1.0, call("r", target_deadline_s=1.18))
    assert (placed.decode_instance, placed.reason.rule) == ("b", "the least headroom of 2 that have some, of 3")


# PolyServe.


@pytest.mark.parametrize(("highest", "chosen"), [(True, ["a", "a", "a"]), (False, ["a", "b", "a"])])
def test_polyserve_climbs_or_descends_the_gradient_of_load(highest: bool, chosen: list[str]) -> None:
    cluster = Cluster("polyserve", spec("a"), spec("b"), highest=highest)
    placed = [cluster.place(1.0, call(f"r{i}", target_deadline_s=20.0)).decode_instance for i in range(3)]
    assert placed == chosen


def test_polyserve_leaves_the_loaded_instance_once_the_call_would_be_late_there() -> None:
    cluster = Cluster("polyserve", spec("a"), spec("b"))
    # Each prefill takes 0.1 s, each answer 0.1 s: the third call would wait 0.2 s on a.
    placed = [cluster.place(1.0, call(f"r{i}", target_deadline_s=1.35)) for i in range(3)]
    assert [p.decode_instance for p in placed] == ["a", "a", "b"]
    assert placed[2].reason.rule == "most loaded of 1 that meet the deadline, of 2"


@pytest.mark.parametrize(("protects", "chosen"), [(True, "b"), (False, "a")])
def test_polyserve_spares_residents_that_would_be_late(protects: bool, chosen: str) -> None:
    cluster = Cluster("polyserve", spec("a"), spec("b"), config=config(), profiles=loaded_profile, protects=protects)
    # 99 tokens of 11 ms are left, 1.09 s of 1.15; with one more they take 12 ms, 1.19 s.
    resident = call("r0", prompt_tokens=1, max_tokens=100, target_deadline_s=2.15)
    assert cluster.run(1.0, resident).decode_instance == "a"
    assert cluster.place(1.0, call("r1", target_deadline_s=9.0)).decode_instance == chosen


def test_polyserve_takes_the_earliest_finish_where_nothing_meets_the_deadline() -> None:
    for deadline_s in (1.01, None):
        placed = Cluster("polyserve", *POOL).place(1.0, call("r", target_deadline_s=deadline_s))
        assert placed.decode_instance == "c"
        assert "earliest finish, of 3" in placed.reason.rule


# Llumnix.


def test_llumnix_dispatches_to_the_freest() -> None:
    cluster = Cluster("llumnix", spec("a", kv_capacity_tokens=10_000), spec("b", kv_capacity_tokens=4_000))
    placed = [cluster.place(1.0, call(f"r{i}")) for i in range(4)]
    # Freeness of a before each: 10000, 9900, 9800/2, 9700/3 = 3233 against 4000 on b.
    assert [p.decode_instance for p in placed] == ["a", "a", "a", "b"]
    assert placed[3].reason.candidates[1].verdict == "freeness 3233"


def crowded(link: float | None = None, **params: Any) -> Cluster:
    """Two calls of 300 and 500 tokens on a, where 1000 fit, and b, which joined after them."""
    cluster = Cluster(
        "llumnix", spec("a", kv_capacity_tokens=1000, kv_link_bytes_per_s=link), config=config(), **params
    )
    for name, tokens in (("long", 500), ("short", 300)):
        cluster.run(0.0, call(name, prompt_tokens=tokens, max_tokens=150))
    cluster.at(0.5, InstanceJoined(event_id="j", instance=spec("b", kv_link_bytes_per_s=link)))
    return cluster


def test_llumnix_moves_the_shortest_call_from_a_crowded_to_a_free_instance() -> None:
    cluster = crowded(low_freeness=150.0, high_freeness=500.0)
    move = only_move(cluster.wake(1.0))
    assert (move.request_id, move.source, move.target, move.cause) == ("short", "a", "b", MigrationCause.BALANCE)
    assert (move.by, move.reason.rule) == (MoveBy.REPLAY, "balance: freeness 99 here, 10000 there; by replay: "
                                           "0.301 s as KV cannot pass")  # fmt: skip
    # (1000 - 501)/1 is above the threshold.
    assert cluster.wake(2.0) == []


def test_llumnix_moves_the_kv_where_a_link_allows_it() -> None:
    move = only_move(crowded(1e9, low_freeness=150.0, high_freeness=500.0).wake(1.0))
    assert (move.request_id, move.by) == ("short", MoveBy.KV)


@pytest.mark.parametrize(
    "params",
    [
        {"low_freeness": 50.0, "high_freeness": 500.0},
        {"low_freeness": 150.0, "high_freeness": 20_000.0},
        {"low_freeness": 150.0, "high_freeness": 500.0, "migration": False},
        {"low_freeness": 150.0, "high_freeness": 500.0, "max_moves": 0},
    ],
)
def test_llumnix_lets_calls_stay_within_its_thresholds_and_caps(params: dict[str, Any]) -> None:
    assert crowded(**params).wake(1.0) == []


def test_llumnix_does_not_move_a_call_to_where_it_would_be_no_better() -> None:
    cluster = Cluster("llumnix", spec("a", kv_capacity_tokens=1000), low_freeness=1e6, high_freeness=0.0)
    cluster.run(0.0, call("r", prompt_tokens=300))
    cluster.at(0.5, InstanceJoined(event_id="j", instance=spec("b", kv_capacity_tokens=900)))
    # 699 steps here; 900 there, but 599 once it came.
    assert cluster.wake(1.0) == []


def test_llumnix_empties_a_draining_instance() -> None:
    cluster = Cluster("llumnix", spec("a"), spec("b"))
    cluster.run(0.0, call("r", max_tokens=900))
    (move,) = cluster.at(1.0, InstanceDraining(event_id="d", instance_id="a"))
    assert isinstance(move, Migrate)
    assert (move.target, move.cause) == ("b", MigrationCause.DRAIN)


@pytest.mark.parametrize("policy", ["preble", "llmd_least", "polyserve", "llumnix", "kairos", "autellix"])
def test_pools_of_separate_prefill_and_decode_instances_are_served(policy: str) -> None:
    cluster = Cluster(policy, *PAIRS)
    placed = [cluster.place(1.0, call(f"r{i}", target_deadline_s=9.0, latest_deadline_s=9.0)) for i in range(4)]
    assert {p.prefill_instance for p in placed} == {"p"}
    assert {p.decode_instance for p in placed} <= {"d", "e"}
