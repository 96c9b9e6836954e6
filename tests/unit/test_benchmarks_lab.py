"""The study's own arithmetic, and how its tables are told."""

from typing import Any

import pytest
from rich.console import Console

from agentserve.lab.tuned import tuned_parameters
from benchmarks.lab import study, tune, write
from benchmarks.lab.calibrate import rate_at
from scheduler.policies import policy_names, policy_parameters


@pytest.mark.parametrize(("level", "rate"), [(0.95, 1.5), (0.8, 2.5), (0.5, 3.0), (0.99, 1.1)])
def test_a_load_is_where_attainment_falls_through_its_level(level: float, rate: float) -> None:
    assert rate_at((1.0, 2.0, 3.0), [1.0, 0.9, 0.7], level) == pytest.approx(rate)


def test_a_level_that_is_never_attained_gives_the_lowest_rate() -> None:
    assert rate_at((1.0, 2.0), [0.9, 0.8], 0.95) == 1.0


def test_capacity_is_the_largest_rate_that_holds_the_level() -> None:
    rates = [1.0, 2.0, 3.0]
    assert study._rate_at(rates, [0.99, 0.97, 0.93], 0.95) == pytest.approx(2.5)
    assert study._rate_at(rates, [0.99, 0.98, 0.96], 0.95) == 3.0
    assert study._rate_at(rates, [0.9, 0.8, 0.7], 0.95) is None


def test_req95_is_the_smallest_scale_that_is_held_from_there_on() -> None:
    curve = [0.5, 0.96, 0.9, 0.98, 1.0, 1.0, 1.0]
    low, high = study.HEXAGENT_SCALES[2], study.HEXAGENT_SCALES[3]
    assert study._scale_at(curve, 0.95) == pytest.approx(low + (high - low) * (0.95 - 0.9) / (0.98 - 0.9))
    assert study._scale_at([1.0] * 7, 0.95) == study.HEXAGENT_SCALES[0]
    assert study._scale_at([0.5] * 7, 0.95) is None


def test_every_published_policy_has_a_grid_of_parameters_that_it_knows() -> None:
    assert set(tune.GRIDS) == set(policy_names()) - {study.OURS}
    for name, grid in tune.GRIDS.items():
        assert set(grid) <= set(policy_parameters(name))
    assert {name for name in tune.GRIDS if tune.GRIDS[name]} == {
        name for name in policy_names() if tuned_parameters(name)
    }


def test_the_ablations_are_parameters_of_our_policy() -> None:
    for params in study.ABLATIONS.values():
        assert set(params) <= set(policy_parameters(study.OURS))


def test_the_best_published_policy_and_the_paired_gain_are_told() -> None:
    row: dict[str, Any] = {
        "workload": "w", "level": "50", "rate": 2.0, "best": "hexagent", "bound": 0.9,
        "attainment": {"hexagent": [0.5, 0.6], "goodserve": [0.4, 0.4], "agentserve": [0.6, 0.66]},
        "missed_p99": {"hexagent": 3.0, "agentserve": 9.0},
    }  # fmt: skip
    every = [{"workload": "w", "policy": name, "attainment": 0.5, "params": {}} for name in ("random", "agentserve")]
    console = Console(record=True, width=200)
    write.write_pages({"main": [row], "every": every}, {}, console, whole=False)
    text = console.export_text()
    assert "hexagent 0.550" in text
    assert "+15.0%" in text
    assert "70%" in text
    assert "3 / 9" in text
