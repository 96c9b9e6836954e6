"""Who goes first when calls of several tenants wait, and what a flood of one may cost: worked out by hand."""

import pytest

from scheduler.config import FairnessConfig
from scheduler.decisions import Dispatch
from scheduler.events import RequestArrived
from scheduler.shares import Shares
from scheduler.state import ClusterState
from tests.unit.scheduler_builders import Cluster, call, config, profile, spec


def of(tenant: str, name: str, **changes: object) -> RequestArrived:
    return call(name, tenant=tenant, **changes)


def capped(**fairness: float) -> Cluster:
    """One instance that takes one call at a time; the rest waits as it came."""
    return Cluster("kairos", spec("a"), config=config(fairness=FairnessConfig(**fairness)), batch_cap=1)


def went(cluster: Cluster, first: str, now_s: float) -> list[str]:
    order, ended = [], first
    while names := [d.request_id for d in cluster.finish(now_s, ended) if isinstance(d, Dispatch)]:
        order += names
        (ended,) = names
        now_s += 0.001
    return order


def test_tenants_take_turns_and_the_one_served_least_goes_first() -> None:
    cluster = capped()
    cluster.place(1.0, of("flood", "f0"))
    for name in ("f1", "f2", "f3"):
        cluster.at(1.0, of("flood", name))
    for name in ("b1", "b2"):
        cluster.at(1.1, of("b", name))
    assert went(cluster, "f0", 1.2) == ["b1", "f1", "b2", "f2", "f3"]


def test_without_fairness_calls_go_as_they_came_whoever_sent_them() -> None:
    cluster = capped(strength=0.0)
    cluster.place(1.0, of("flood", "f0"))
    for tenant, name in (("flood", "f1"), ("flood", "f2"), ("b", "b1"), ("flood", "f3")):
        cluster.at(1.0, of(tenant, name))
    assert went(cluster, "f0", 1.2) == ["f1", "f2", "b1", "f3"]


def test_one_tenant_s_calls_go_as_they_would_without_tenants() -> None:
    orders = []
    for tenant in ("", "only"):
        cluster = capped()
        cluster.place(1.0, of(tenant, "r0"))
        for i in (3, 1, 2):
            cluster.at(1.0, of(tenant, f"r{i}"))
        orders.append(went(cluster, "r0", 1.2))
    assert orders[0] == orders[1]


class Served:
    """Shares with one live call of each tenant."""

    def __init__(self, weights: dict[str, float], strength: float = 1.0, **fairness: float) -> None:
        state = ClusterState(config(fairness=FairnessConfig(strength=strength, **fairness)), profile, 0)
        self.shares: Shares = state.shares
        self.calls = {
            name: state.admit(of(name, f"r-{name}", tenant_weight=weight)) for name, weight in weights.items()
        }

    def charge(self, name: str, prompt: float, output: float, now_s: float = 0.0) -> None:
        self.shares.charge(self.calls[name], prompt, output, now_s)

    def worth(self, name: str, now_s: float = 0.0) -> float:
        return self.shares.worth(self.calls[name], now_s)


def test_an_output_token_counts_twice_and_weights_divide() -> None:
    served = Served({"a": 1.0, "b": 3.0})
    served.charge("a", 100, 50)
    served.charge("b", 300, 150)
    assert served.shares.in_turn(["b", "a"], 0.0) == ["a", "b"]
    assert served.worth("a") == served.worth("b") == 1.0
    served.charge("b", 3, 0)
    assert served.shares.in_turn(["b", "a"], 0.0) == ["a", "b"]
    served.charge("a", 2, 0)
    assert served.shares.in_turn(["b", "a"], 0.0) == ["b", "a"]


def test_service_of_long_ago_is_forgotten() -> None:
    served = Served({"a": 1.0, "b": 1.0}, memory_s=10.0)
    served.charge("a", 1000, 0, now_s=0.0)
    assert served.worth("a", 0.0) == 0.5
    served.charge("b", 500, 0, now_s=30.0)
    assert served.shares.in_turn(["a", "b"], 30.0) == ["a", "b"]
    assert served.worth("a", 30.0) == pytest.approx(549.787 / (2 * 49.787), rel=1e-4)


def test_a_clock_that_is_set_back_makes_no_service_more() -> None:
    served = Served({"a": 1.0, "b": 1.0}, memory_s=10.0)
    served.charge("a", 1000, 0, now_s=1e9)
    served.charge("b", 1000, 0, now_s=0.0)
    assert served.worth("a", 0.0) == 1.0


def test_the_runs_of_a_tenant_that_is_alone_weigh_one_however_much_it_had() -> None:
    served = Served({"a": 1.0})
    served.charge("a", 1e9, 1e9)
    assert served.worth("a") == 1.0
    assert Served({"a": 1.0, "b": 1.0}).worth("a") == 1.0


def test_strength_makes_shares_weigh_more_up_to_a_bound_or_nothing_of_it() -> None:
    for strength, expected in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (8.0, 16.0)):
        served = Served({"a": 1.0, "b": 1.0}, strength=strength)
        served.charge("a", 300, 0)
        served.charge("b", 100, 0)
        assert served.worth("b") == expected
    never_served = Served({"a": 1.0, "b": 1.0}, most_worth=5.0)
    never_served.charge("a", 300, 0)
    assert (never_served.worth("b"), never_served.worth("a")) == (5.0, 0.5)


def test_live_calls_of_each_tenant_are_counted_until_they_end() -> None:
    cluster = capped()
    cluster.place(1.0, of("a", "r1"))
    cluster.at(1.0, of("b", "r2"))
    assert cluster.scheduler._state.shares.live_calls() == {"a": 1, "b": 1}
    cluster.finish(2.0, "r1")
    assert cluster.scheduler._state.shares.live_calls() == {"b": 1}
