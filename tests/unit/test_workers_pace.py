"""How often an engine's metrics are read."""

from hypothesis import given
from hypothesis import strategies as st

from agentserve.workers.pace import COST_SHARE, LONGEST_S, ReadingPace


def test_a_cheap_reading_is_made_as_often_as_is_asked_for() -> None:
    pace = ReadingPace(0.2)
    assert pace.is_due(10.0)
    pace.took(10.0, 10.002)
    assert not pace.is_due(10.19)
    assert pace.is_due(10.2)


def test_a_reading_of_ten_milliseconds_is_made_twice_a_second() -> None:
    pace = ReadingPace(0.2)
    pace.took(0.0, 0.010)
    assert pace.interval_s == 0.010 / COST_SHARE == 0.5


def test_a_slow_reading_is_still_made_before_the_last_is_forgotten() -> None:
    pace = ReadingPace(0.2)
    pace.took(10.0, 11.0)
    assert pace.interval_s == LONGEST_S
    assert pace.is_due(12.0)


def test_one_slow_reading_among_quick_ones_hardly_counts() -> None:
    pace = ReadingPace(0.2)
    for at_s in range(20):
        pace.took(at_s, at_s + 0.002)
    pace.took(20.0, 20.012)
    assert pace.interval_s == 0.2


def test_another_process_is_read_at_once() -> None:
    pace = ReadingPace(0.2)
    pace.took(10.0, 10.030)
    pace.forget()
    assert pace.is_due(10.1)
    assert pace.interval_s == 0.2


@given(st.lists(st.floats(0, 30), min_size=1), st.floats(0.01, 5))
def test_the_interval_stays_within_its_bounds(costs_s: list[float], shortest_s: float) -> None:
    pace = ReadingPace(shortest_s)
    for cost_s in costs_s:
        pace.took(100.0, 100.0 + cost_s)
        assert shortest_s <= pace.interval_s <= max(LONGEST_S, shortest_s)
