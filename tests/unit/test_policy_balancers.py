"""Balancers that count or stick: on cases small enough to work out by hand."""

from collections import Counter
from typing import Any

import pytest

from scheduler.errors import InvalidConfig
from scheduler.events import InstanceDraining, InstanceReported, Role
from scheduler.policies import make_policy
from tests.unit.scheduler_builders import Cluster, call, spec

POOL = (spec("a", "slow"), spec("b", "fast"), spec("c", "huge"))
PAIRS = (
    spec("p", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
    spec("q", "fast", role=Role.PREFILL, kv_link_bytes_per_s=1e9),
    spec("d", role=Role.DECODE, kv_link_bytes_per_s=1e9),
    spec("e", role=Role.DECODE, kv_link_bytes_per_s=1e9),
)
BLOCK = 100


def turn(name: str, session: int, blocks: int = 5, **changes: Any) -> Any:
    """A call with `blocks` blocks of prompt that only its session shares."""
    hashes = tuple(range(1000 * session, 1000 * session + blocks))
    given = {"prompt_tokens": BLOCK * blocks, "prefix_hashes": hashes, "prefix_block_tokens": BLOCK}
    return call(name, **{**given, "run_id": f"run{session}", **changes})


def where(cluster: Cluster, count: int) -> list[str]:
    return [cluster.place(1.0, call(f"r{i}")).decode_instance for i in range(count)]


def test_random_is_even_and_the_same_for_the_same_seed() -> None:
    drawn = where(Cluster("random", *POOL), 300)
    assert min(Counter(drawn).values()) > 70
    assert where(Cluster("random", *POOL), 300) == drawn
    assert where(Cluster("random", *POOL, seed=1), 300) != drawn


def test_random_draws_among_decode_instances_of_pairs() -> None:
    cluster = Cluster("random", *PAIRS)
    placed = [cluster.place(1.0, call(f"r{i}")) for i in range(40)]
    assert {p.decode_instance for p in placed} == {"d", "e"}
    assert {p.prefill_instance for p in placed} == {"p", "q"}  # whichever is ready first


def test_power_of_two_takes_the_less_loaded_of_those_drawn() -> None:
    cluster = Cluster("power_of_two", *POOL)
    loads = Counter(where(cluster, 30))
    assert max(loads.values()) - min(loads.values()) <= 2
    placed = cluster.place(1.0, call("r"))
    assert placed.reason.rule == "the fewest outstanding calls of 2 drawn, of 3"
    assert [c.verdict for c in placed.reason.candidates].count("not drawn") == 1


def test_power_of_all_is_least_requests() -> None:
    assert where(Cluster("power_of_two", *POOL, choices=9), 6) == ["a", "b", "c", "a", "b", "c"]


def test_least_requests_by_speed_fills_strong_instances_first() -> None:
    assert where(Cluster("least_requests", *POOL, by_speed=True), 7) == ["a", "b", "c", "c", "b", "c", "c"]


def test_least_kv_compares_shares_or_tokens() -> None:
    pool = (spec("a", kv_capacity_tokens=10_000), spec("b", kv_capacity_tokens=2_000))
    report = [
        InstanceReported(event_id="1", instance_id="a", measured_at_s=1.0, kv_usage=0.2),
        InstanceReported(event_id="2", instance_id="b", measured_at_s=1.0, kv_usage=0.5),
    ]
    chosen = []
    for as_share in (True, False):
        cluster = Cluster("least_kv", *pool, as_share=as_share)
        for event in report:
            cluster.at(1.0, event)
        placed = cluster.place(1.0, call("r"))
        chosen.append(placed.decode_instance)
        assert placed.reason.candidates[1].verdict in ("50.0% of its KV cache in use", "20.0% of its KV cache in use")
    assert chosen == ["a", "b"]


def test_lowest_tpm_counts_prompts_and_answers_of_the_last_minute() -> None:
    cluster = Cluster("lowest_tpm", spec("a"), spec("b"))
    assert cluster.run(0.0, call("r1", prompt_tokens=500)).decode_instance == "a"
    assert cluster.run(0.0, call("r2", prompt_tokens=300)).decode_instance == "b"
    cluster.finish(1.0, "r2", 300)
    placed = cluster.place(2.0, call("r3", prompt_tokens=50))
    assert placed.decode_instance == "a"
    assert placed.reason.candidates[1].verdict == "600 tokens in the last minute"
    # At 60.5 s all but the answer of b has passed, and r3 of a.
    assert cluster.place(60.5, call("r4")).decode_instance == "a"
    # At 62.5 s that has passed too, and a has r4's 100 tokens.
    assert cluster.place(62.5, call("r5")).decode_instance == "b"


def test_a_session_stays_where_it_was_while_that_is_open() -> None:
    cluster = Cluster("session_affinity", spec("a"), spec("b"))
    first = [cluster.place(1.0, turn(f"r{i}", session=i)).decode_instance for i in range(2)]
    again = [cluster.place(2.0, turn(f"s{n}", session=i)).decode_instance for n, i in enumerate((1, 1, 0))]
    assert (first, again) == (["a", "b"], ["b", "b", "a"])
    cluster.at(3.0, InstanceDraining(event_id="d", instance_id="a"))
    placed = cluster.place(3.0, turn("t", session=0))
    assert placed.decode_instance == "b"
    assert placed.reason.rule.startswith("a session without an open instance")


def test_a_session_by_hash_begins_at_the_same_instance_in_any_cluster() -> None:
    first, again = Cluster("session_affinity", *POOL, by_hash=True), Cluster("session_affinity", *POOL, by_hash=True)
    homes = {i: first.place(1.0, turn(f"r{i}", session=i)).decode_instance for i in range(30)}
    assert {i: again.place(1.0, turn(f"r{i}", session=i)).decode_instance for i in reversed(range(30))} == homes
    assert min(Counter(homes.values()).values()) > 4


def test_prefix_affinity_follows_the_longest_prefix_up_to_its_cap() -> None:
    cluster = Cluster("prefix_affinity", spec("a"), spec("b"), cap=1.0, slack=2.0)
    assert cluster.place(1.0, turn("r0", session=0)).decode_instance == "a"
    placed = [cluster.place(1.0, turn(f"r{i}", session=0)) for i in range(1, 5)]
    # Loads of a before each call: 1, 2, 3, 4; of an even share: 0.5, 1, 1.5, 2 and two calls more: all allowed.
    assert [p.decode_instance for p in placed] == ["a", "a", "a", "a"]
    assert placed[0].reason.rule == "the longest cached prefix, 499 tokens, of 2 under the load cap, of 2"
    # 5 against 2.5 + 2: over the cap.
    over = cluster.place(1.0, turn("r5", session=0))
    assert (over.decode_instance, over.reason.candidates[1].verdict) == (
        "b", "499 tokens cached, load 5.0, over the load cap",
    )  # fmt: skip
    assert over.reason.rule == "no prefix that counts: the least loaded, of 1 under the load cap, of 2"


def test_prefix_affinity_passes_over_a_prefix_that_is_too_short() -> None:
    for least_share, chosen in ((0.5, "b"), (0.3, "a")):
        cluster = Cluster("prefix_affinity", spec("a"), spec("b"), least_share=least_share)
        cluster.place(1.0, turn("r0", session=0, blocks=4))
        assert cluster.place(1.0, turn("r1", session=0, blocks=10)).decode_instance == chosen


def test_prefix_affinity_gives_strong_instances_a_larger_share() -> None:
    # Shares of 1 : 4. Eight calls of other sessions are spread 1 or 2 : 6 or 7 by speed, evenly without.
    for by_speed, loads in ((True, {"a": 2, "c": 6}), (False, {"a": 4, "c": 4})):
        cluster = Cluster("prefix_affinity", spec("a", "slow"), spec("c", "huge"), by_speed=by_speed, slack=0.0)
        placed = [cluster.place(1.0, turn(f"r{i}", session=i)).decode_instance for i in range(8)]
        assert dict(Counter(placed)) == loads


@pytest.mark.parametrize(("load", "chosen"), [("calls", "b"), ("tokens", "a"), ("seconds", "a")])
def test_prefix_affinity_measures_load_as_told(load: str, chosen: str) -> None:
    cluster = Cluster("prefix_affinity", spec("a"), spec("b"), load=load)
    cluster.place(1.0, turn("r0", session=0, blocks=1))  # a
    cluster.place(1.0, turn("r1", session=1, blocks=50))  # b
    cluster.place(1.0, turn("r2", session=0, blocks=1, prompt_tokens=150))  # by its prefix to a
    assert cluster.place(1.0, turn("r3", session=3, blocks=1)).decode_instance == chosen


def test_prefix_affinity_of_pairs_follows_the_prefill_instances_prefix() -> None:
    cluster = Cluster("prefix_affinity", *PAIRS)
    first = cluster.place(1.0, turn("r0", session=0))
    second = cluster.place(1.0, turn("r1", session=1))
    assert second.prefill_instance != first.prefill_instance
    assert second.decode_instance != first.decode_instance
    again = cluster.place(1.0, turn("r2", session=1))
    assert again.prefill_instance == second.prefill_instance


@pytest.mark.parametrize(
    ("policy", "params", "message"),
    [
        ("prefix_affinity", {"load": "weight"}, "PrefixAffinity.load is 'weight'; allowed are calls, tokens, seconds"),
        ("prefix_affinity", {"cap": -1.0}, "PrefixAffinity.cap is -1.0; allowed are 0.0 to 1000000.0"),
        ("power_of_two", {"choices": 0}, "PowerOfTwo.choices is 0; allowed are 1 to 1000000"),
        ("autellix", {"order": "fifo"}, "Autellix.order is 'fifo'; allowed are plas, atlas"),
        ("hexagent", {"batch_cap": -1}, "HexAgent.batch_cap is -1; allowed are 0 to 1000000"),
        ("polyserve", {"load": "x"}, "PolyServe.load is 'x'; allowed are calls, kv, step"),
        ("jitserve", {"reward": "x"}, "JitServe.reward is 'x'; allowed are tokens, run"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(policy: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message.replace(".", r"\.")):
        make_policy(policy, params)
