"""Autellix, HexGen-Flow, JITServe, Kairos and HexAGenT: their orders and placements, worked out by hand."""

from math import log
from typing import Any

import pytest

from scheduler.decisions import Decision, Dispatch, Hold
from scheduler.events import FirstToken, PrefillFinished, Role
from tests.unit.scheduler_builders import Cluster, call, config, spec

ORDERED = ["autellix", "hexagent", "hexgen_flow", "jitserve", "kairos"]
LINK = {"kv_link_bytes_per_s": 1e9}


def pairs(**params: Any) -> Cluster:
    """Prefill on p (slow) or q (fast), decode on d (slow) or e (fast)."""
    prefill = (spec("p", "slow", role=Role.PREFILL, **LINK), spec("q", "fast", role=Role.PREFILL, **LINK))
    decode = (spec("d", "slow", role=Role.DECODE, **LINK), spec("e", "fast", role=Role.DECODE, **LINK))
    return Cluster("hexagent", *prefill, *decode, config=config(), **params)


def alone(policy: str, **params: Any) -> Cluster:
    """One slow instance: 100 prompt tokens take 0.1 s, 10 output tokens 0.1 s, however many decode."""
    return Cluster(policy, spec("a"), config=config(), **params)


def names(decisions: list[Decision]) -> list[str]:
    return [d.request_id for d in decisions if isinstance(d, Dispatch)]


def drained(cluster: Cluster, first: str, now_s: float) -> list[str]:
    """The order in which waiting calls go, one after the other, once `first` ends."""
    order, ended = [], first
    while went := names(cluster.finish(now_s, ended)):
        order += went
        (ended,) = went
        now_s += 0.001
    return order


# The gateway's queue.


@pytest.mark.parametrize("policy", ORDERED)
def test_under_a_cap_calls_wait_and_every_one_goes_in_the_end(policy: str) -> None:
    cluster = Cluster(policy, spec("a"), spec("b"), config=config(), batch_cap=1)
    live = [cluster.place(1.0, call(f"r{i}")).request_id for i in range(2)]
    waiting = {f"w{i}" for i in range(5)}
    for name in sorted(waiting):
        (held,) = cluster.at(1.0, call(name))
        assert isinstance(held, Hold), held
    went: list[str] = []
    while live:
        started = names(cluster.finish(2.0, live.pop(0)))
        live += started
        went += started
    assert sorted(went) == sorted(waiting)


@pytest.mark.parametrize("policy", ORDERED)
def test_without_a_cap_nothing_waits(policy: str) -> None:
    cluster = Cluster(policy, spec("a", max_num_seqs=2), config=config())
    assert [cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(9)] == ["a"] * 9


# Autellix.


def served(cluster: Cluster, run: str, name: str, seconds: float, now_s: float = 0.0) -> None:
    """A call of a run that decoded for so long."""
    cluster.run(now_s, call(name, run_id=run))
    cluster.finish(now_s + seconds, name)


@pytest.mark.parametrize(("seconds", "level"), [(0.5, 0), (1.0, 1), (1.9, 1), (2.0, 2), (3.9, 2), (500.0, 4)])
def test_autellix_demotes_a_run_by_the_service_it_had(seconds: float, level: int) -> None:
    cluster = alone("autellix", levels=5)
    served(cluster, "old", "first", seconds)
    placed = cluster.place(500.0, call("second", run_id="old"))
    assert placed.reason.rule == f"the least used instance, of 1; queue level {level}"
    assert placed.priority == level * 10**8 + 50_000  # 500 s since the first event


def test_autellix_serves_the_least_served_run_first() -> None:
    cluster = alone("autellix", batch_cap=1)
    served(cluster, "old", "first", 3.0)
    cluster.place(3.0, call("x"))
    for name, run in (("old 2", "old"), ("new 1", "n"), ("new 2", "m")):
        cluster.at(3.1, call(name, run_id=run))
    assert drained(cluster, "x", 3.2) == ["new 1", "new 2", "old 2"]


def test_autellix_promotes_a_run_that_waited_long_for_what_it_got() -> None:
    cluster = alone("autellix", batch_cap=1, beta=0.5)
    served(cluster, "old", "first", 3.0)
    cluster.place(3.0, call("x"))
    cluster.at(3.1, call("old 2", run_id="old"))
    cluster.at(4.0, call("new"))
    # 1.5 s of waiting against 3 s of service are reached at 4.6 s; before it, a new run comes first.
    assert cluster.wake(4.5) == []
    assert [c.request_id for c in cluster.scheduler._state.waiting.first(2)] == ["new", "old 2"]
    assert cluster.wake(4.7) == []
    assert drained(cluster, "x", 4.8) == ["old 2", "new"]


@pytest.mark.parametrize(("order", "level"), [("plas", 3), ("atlas", 2)])
def test_autellix_counts_all_service_or_the_longest_chain(order: str, level: int) -> None:
    cluster = alone("autellix", order=order)
    for name in ("left", "right"):
        cluster.run(0.0, call(name, run_id="run"))
    for name in ("left", "right"):
        cluster.finish(2.0, name)
    assert cluster.place(2.0, call("join", run_id="run")).reason.rule.endswith(f"queue level {level}")


def test_autellix_balances_short_calls_and_keeps_long_ones_at_home() -> None:
    cluster = Cluster("autellix", spec("a"), spec("b"), config=config())
    cluster.place(0.0, call("x"))
    assert cluster.place(0.0, call("long 1", run_id="run", prompt_tokens=3000)).decode_instance == "b"
    assert cluster.place(0.0, call("short", run_id="run")).decode_instance == "a"
    placed = cluster.place(0.0, call("long 2", run_id="run", prompt_tokens=2049))
    assert (placed.decode_instance, placed.reason.rule) == ("b", "the program's instance, of 2; queue level 0")
    assert cluster.place(0.0, call("edge", run_id="run", prompt_tokens=2048)).decode_instance == "a"


def test_autellix_waits_for_its_home_unless_it_may_stray() -> None:
    for strays in (False, True):
        cluster = Cluster("autellix", spec("a"), spec("b"), config=config(), batch_cap=1, strays=strays)
        cluster.place(0.0, call("long 1", run_id="run", prompt_tokens=3000))
        (decision,) = cluster.at(0.0, call("long 2", run_id="run", prompt_tokens=3000))
        assert isinstance(decision, Dispatch if strays else Hold)


# HexGen-Flow.


def test_hexgen_flow_trades_suitability_against_work() -> None:
    # On huge a call takes 0.05 s, a quarter of slow's: 0.22·4 - 0.78·W/0.2 against 0.22; W grows by 0.05 s a call.
    cluster = Cluster("hexgen_flow", spec("a", "slow"), spec("c", "huge"), config=config(), alpha=0.22)
    placed = [cluster.place(1.0, call(f"r{i}")) for i in range(5)]
    assert [p.decode_instance for p in placed] == ["c", "c", "c", "c", "a"]
    assert placed[4].reason.candidates[1].verdict == "score 0.100: execution 0.050 s, work 0.200 s"


@pytest.mark.parametrize(("alpha", "chosen"), [(1.0, "ccc"), (0.0, "acc")])
def test_hexgen_flow_at_its_ends_sees_only_speed_or_only_work(alpha: float, chosen: str) -> None:
    cluster = Cluster("hexgen_flow", spec("a", "slow"), spec("c", "huge"), config=config(), alpha=alpha)
    assert "".join(cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(3)) == chosen


@pytest.mark.parametrize(
    ("changes", "priority"),
    [
        # 0.2 s of 0.4 s to do: half of the 9 s left; to start 0.2 s before that is spent.
        ({"run_deadline_s": 10.0, "downstream_s": 0.2}, 530),
        ({"run_deadline_s": 10.0}, 980),
        ({"latest_deadline_s": 4.0}, 380),
        ({}, 360_100),
    ],
)
def test_hexgen_flow_orders_by_latest_start(changes: dict[str, Any], priority: int) -> None:
    assert alone("hexgen_flow").place(1.0, call("r", **changes)).priority == priority


def test_hexgen_flow_serves_the_most_urgent_first() -> None:
    cluster = alone("hexgen_flow", batch_cap=1)
    cluster.place(1.0, call("x"))
    for name, deadline_s in (("none", None), ("loose", 50.0), ("tight", 5.0)):
        cluster.at(1.0, call(name, run_deadline_s=deadline_s))
    assert drained(cluster, "x", 2.0) == ["tight", "loose", "none"]


# JITServe.


@pytest.mark.parametrize(
    ("changes", "params", "density"),
    [
        ({}, {"reward": "run"}, 1 / 0.2),
        ({"downstream_s": 0.8}, {"reward": "run"}, 1.0),
        ({"downstream_s": 0.8}, {}, 110.0),
        # An end at 2 s is 0.5 s late on an SLO of 0.5 s: half the reward, or a quarter.
        ({"downstream_s": 0.8, "run_deadline_s": 1.5}, {"reward": "run"}, 0.5),
        ({"downstream_s": 0.8, "run_deadline_s": 1.5}, {"reward": "run", "decay": 2.0}, 0.25),
        ({"downstream_s": 0.8, "run_deadline_s": 2.5}, {"reward": "run"}, 1.0),
    ],
)
def test_jitserve_orders_by_reward_per_remaining_work(
    changes: dict[str, Any], params: dict[str, Any], density: float
) -> None:
    placed = alone("jitserve", **params).place(1.0, call("r", **changes))
    assert placed.priority == pytest.approx(-1e6 * log(density), abs=1.0)


def test_jitserve_serves_the_densest_first() -> None:
    cluster = alone("jitserve", batch_cap=1, reward="run")
    cluster.place(1.0, call("x"))
    for name, rest_s in (("long", 9.0), ("short", 0.1), ("middle", 1.0)):
        cluster.at(1.0, call(name, downstream_s=rest_s))
    assert drained(cluster, "x", 2.0) == ["short", "middle", "long"]


def test_jitserve_draws_a_few_instances_or_sees_all() -> None:
    pool = (spec("a", "slow"), spec("b", "slow"), spec("c", "huge"))
    assert Cluster("jitserve", *pool).place(1.0, call("r")).decode_instance == "c"
    cluster = Cluster("jitserve", *pool, choices=1)
    assert {cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(30)} == {"a", "b", "c"}


# Kairos.


def test_kairos_places_where_kv_peaks_lowest() -> None:
    pool = (spec("a", kv_capacity_tokens=2_000), spec("b", "fast", kv_capacity_tokens=1_000))
    placed = Cluster("kairos", *pool, config=config()).place(1.0, call("r"))
    assert (placed.decode_instance, placed.reason.candidates[1].verdict) == ("a", "KV would peak at 11.0%")
    assert Cluster("kairos", *pool, config=config(), earliest=True).place(1.0, call("r")).decode_instance == "b"


def test_kairos_holds_a_call_back_until_its_memory_is_free() -> None:
    cluster = Cluster("kairos", spec("a", kv_capacity_tokens=1_000), config=config())
    cluster.run(1.0, call("big", prompt_tokens=900))  # more than the share allowed, but the instance was idle
    (held,) = cluster.at(1.0, call("r", prompt_tokens=200))
    assert isinstance(held, Hold)
    assert names(cluster.finish(2.0, "big")) == ["r"]


def test_kairos_serves_those_with_the_least_left_first_then_the_earliest_run() -> None:
    cluster = alone("kairos", batch_cap=1)
    served(cluster, "old", "first", 0.1)
    cluster.place(1.0, call("x"))
    for name, run, rest_s in (("far", "f", 9.0), ("new", "n", 2.0), ("old 2", "old", 2.1)):
        cluster.at(1.5, call(name, run_id=run, downstream_s=rest_s))
    assert drained(cluster, "x", 2.0) == ["old 2", "new", "far"]


# HexAGenT.


def test_hexagent_orders_by_progress_against_the_revealed_critical_path() -> None:
    cluster = alone("hexagent")
    assert cluster.run(0.0, call("first", run_id="run")).priority == -10_000  # R = 0.2/0.2
    cluster.progress(2.0, "first", 10)
    cluster.finish(2.0, "first")
    # R = (2 + 0.2)/(0.2 + 0.2); a run of one call that began then: 0.2/0.2.
    placed = cluster.place(2.0, call("second", run_id="run"))
    assert (placed.priority, placed.reason.rule.split("; ")[1]) == (-55_000, "R 5.50")


def test_hexagent_serves_the_run_with_the_largest_ratio_first() -> None:
    cluster = alone("hexagent", batch_cap=1)
    cluster.place(0.0, call("x"))
    cluster.at(0.0, call("long", max_tokens=100))  # alone 1.1 s
    cluster.at(0.5, call("short"))  # alone 0.2 s
    # At 2 s: (2 + 1.1)/1.1 = 2.8 against (1.5 + 0.2)/0.2 = 8.5.
    cluster.wake(2.0)
    assert drained(cluster, "x", 2.0) == ["short", "long"]


@pytest.mark.parametrize(
    ("slow_link", "busy", "chosen"),
    [
        (None, False, ("q", "e")),  # 0.05 s + 0.0001 s + 0.05 s
        ("e", False, ("q", "d")),  # 1 s of transfer to e against 0.05 s more decode on d
        (None, True, ("p", "e")),  # 2 s of prefill before it on q
    ],
)
def test_hexagent_takes_the_pair_that_ends_first(slow_link: str | None, busy: bool, chosen: tuple[str, str]) -> None:
    links = {name: {"kv_link_bytes_per_s": 1e5 if name == slow_link else 1e9} for name in "pqde"}
    pool = [spec(name, gpu, role=Role.PREFILL, **links[name]) for name, gpu in (("p", "slow"), ("q", "fast"))]
    pool += [spec(name, gpu, role=Role.DECODE, **links[name]) for name, gpu in (("d", "slow"), ("e", "fast"))]
    cluster = Cluster("hexagent", *pool, config=config())
    if busy:
        assert cluster.place(1.0, call("x", prompt_tokens=4000)).prefill_instance == "q"
    placed = cluster.place(1.0, call("r"))
    assert (placed.prefill_instance, placed.decode_instance) == chosen
    assert placed.reason.candidates_total == 4


def test_hexagent_prefers_a_decode_instance_with_room_for_the_whole_call() -> None:
    pool = [
        spec("p", role=Role.PREFILL, **LINK),
        spec("d", "fast", role=Role.DECODE, kv_capacity_tokens=1000, **LINK),
        spec("e", "slow", role=Role.DECODE, **LINK),
    ]
    cluster = Cluster("hexagent", *pool, config=config())
    assert cluster.run(1.0, call("x", prompt_tokens=600)).decode_instance == "d"
    assert cluster.place(1.0, call("r", prompt_tokens=500)).decode_instance == "e"


def test_hexagent_knows_of_prefixes_only_if_told() -> None:
    for prefix, prefill_s in ((False, 0.4), (True, 0.001)):
        cluster = alone("hexagent", prefix=prefix)
        for name in ("r0", "r1"):
            placed = cluster.run(1.0, call(name, prompt_tokens=400, prefix_hashes=(1, 2), prefix_block_tokens=200))
            cluster.finish(1.0, name)
        best = placed.reason.candidates[0]
        assert (best.predicted_prefill_s, best.cached_tokens) == (pytest.approx(prefill_s), 399)


def test_hexagent_lets_prefills_wait_under_a_cap_and_go_when_one_is_done() -> None:
    cluster = pairs(prefill_cap=1)
    first = [cluster.place(1.0, call(f"r{i}")) for i in range(2)]
    assert {p.prefill_instance for p in first} == {"p", "q"}
    cluster.at(1.0, call("r2"))
    on_q = next(p for p in first if p.prefill_instance == "q")
    (went,) = cluster.at(1.1, PrefillFinished(event_id="done", request_id=on_q.request_id))
    assert isinstance(went, Dispatch)
    assert (went.request_id, went.prefill_instance) == ("r2", "q")
    cluster.at(1.2, FirstToken(event_id="f", request_id=on_q.request_id))


def test_hexagent_may_split_calls_between_instances_that_serve_both_phases() -> None:
    for splits_mixed, chosen in ((False, ("a", "a")), (True, ("a", "c"))):
        pool = (spec("a", "slow", **LINK), spec("c", "huge", **LINK))
        cluster = Cluster("hexagent", *pool, config=config(), splits_mixed=splits_mixed)
        assert cluster.place(1.0, call("x", prompt_tokens=8000)).prefill_instance == "c"
        # c has 2 s to prefill: a alone takes 0.2 s, prefill on a and decode on c 0.125 s.
        placed = cluster.place(1.0, call("r"))
        assert (placed.prefill_instance, placed.decode_instance) == chosen
