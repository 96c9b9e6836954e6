"""Jain's index over tenants: everybody with its fair part is 1, however much each asked for."""

import pytest

from agentserve.lab.outcome import tenant_jain


def test_a_small_tenant_that_has_all_it_sent_and_a_large_one_with_the_rest_is_fair() -> None:
    assert tenant_jain({"small": (10, 10), "large": (90, 400)}) == pytest.approx(1.0)


def test_equal_demand_with_equal_parts_is_fair_and_one_with_everything_is_half() -> None:
    assert tenant_jain({"a": (50, 100), "b": (50, 100)}) == pytest.approx(1.0)
    assert tenant_jain({"a": (100, 100), "b": (0, 100)}) == pytest.approx(0.5)


def test_a_flood_that_pushes_a_small_tenant_out_lowers_it() -> None:
    # Fair parts of 333: 120 and 213; ratios 67/120 and 266/213.
    assert tenant_jain({"t1": (67, 120), "flood": (266, 476)}) == pytest.approx(0.873, abs=5e-4)


def test_without_two_tenants_or_a_run_in_time_there_is_none() -> None:
    assert tenant_jain({}) is None
    assert tenant_jain({"a": (1, 1)}) is None
    assert tenant_jain({"a": (0, 1), "b": (0, 1)}) is None
