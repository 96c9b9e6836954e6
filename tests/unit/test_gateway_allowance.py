"""Limits of tenants: each names itself and says when to come back, and none touches another tenant."""

import pytest

from agentserve.errors import LimitReached
from agentserve.gateway.allowance import Allowances
from agentserve.tenants.tenant import Tenant


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refused(allowances: Allowances, tenant: Tenant) -> LimitReached:
    with pytest.raises(LimitReached) as told:
        allowances.enter(tenant)
    return told.value


def test_rate_lets_a_burst_in_and_then_so_many_per_second() -> None:
    clock = Clock()
    allowances, tenant = Allowances(clock), Tenant(name="a", rate_per_s=2, burst=3)
    for _ in range(3):
        allowances.enter(tenant)
    error = refused(allowances, tenant)
    assert (error.code, error.retry_after_s) == ("rate_limit_exceeded", 0.5)
    assert "rate_per_s" in str(error)
    clock.now_s += 0.5
    allowances.enter(tenant)
    refused(allowances, tenant)
    allowances.enter(Tenant(name="b", rate_per_s=2))


def test_calls_in_flight_are_bounded_and_leaving_twice_frees_one_place() -> None:
    allowances, tenant = Allowances(Clock()), Tenant(name="a", concurrent_calls=2)
    first = allowances.enter(tenant)
    allowances.enter(tenant)
    assert refused(allowances, tenant).code == "concurrency_limit_exceeded"
    first.leave()
    first.leave()
    allowances.enter(tenant)
    refused(allowances, tenant)


def test_tokens_are_paid_when_known_and_debts_are_waited_off() -> None:
    clock = Clock()
    allowances, tenant = Allowances(clock), Tenant(name="a", tokens_per_minute=600)
    ticket = allowances.enter(tenant)
    ticket.charge(500)
    ticket.charge(900)
    ticket.leave()
    error = refused(allowances, tenant)
    assert (error.code, error.retry_after_s) == ("token_budget_exceeded", pytest.approx(30.1))
    clock.now_s += 30.1
    allowances.enter(tenant)


def test_a_refused_call_takes_nothing_from_other_limits() -> None:
    clock = Clock()
    allowances, tenant = Allowances(clock), Tenant(name="a", rate_per_s=1, burst=2, concurrent_calls=1)
    ticket = allowances.enter(tenant)
    for _ in range(5):
        assert refused(allowances, tenant).code == "concurrency_limit_exceeded"
    ticket.leave()
    allowances.enter(tenant)


def test_new_limits_hold_at_once_and_calls_in_flight_stay_counted() -> None:
    allowances = Allowances(Clock())
    ticket = allowances.enter(Tenant(name="a"))
    assert refused(allowances, Tenant(name="a", concurrent_calls=1)).code == "concurrency_limit_exceeded"
    ticket.leave()
    allowances.enter(Tenant(name="a", concurrent_calls=1))
