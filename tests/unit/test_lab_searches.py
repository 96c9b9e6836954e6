"""Where a level of attainment is passed, and how few simulations that takes."""

import pytest

from agentserve.lab.searches import MAX_PROBES, Found, holds_up_to, search, side_by_side


@pytest.mark.parametrize(
    ("curve", "level", "found"),
    [
        ({1.0: 1.0, 2.0: 0.9, 3.0: 0.7}, 0.8, Found(2.5, open_end=False)),
        ({3.0: 0.7, 1.0: 1.0, 2.0: 0.9}, 0.9, Found(2.0, open_end=False)),
        ({1.0: 0.9, 2.0: 0.7, 3.0: 0.9, 4.0: 0.5}, 0.8, Found(3.25, open_end=False)),
        ({1.0: 0.9, 2.0: 0.85}, 0.8, Found(2.0, open_end=True)),
        ({1.0: 0.7, 2.0: 0.5}, 0.8, Found(None, open_end=False)),
    ],
)
def test_a_level_is_held_up_to_the_largest_value_that_holds_it(curve, level, found):
    assert holds_up_to(curve, level) == Found(pytest.approx(found.at) if found.at else None, found.open_end)


def falling(value):
    return 1.0 / (1.0 + (value / 10.0) ** 4)


def searched(level, start, least=0.1, most=1000.0, share=falling, **more):
    probed = []

    def probe(asked):
        probed.extend(asked.values())
        return {name: share(value) for name, value in asked.items()}

    curve = side_by_side({"one": search(level, start, least, most, **more)}, probe)["one"]
    return curve, probed


@pytest.mark.parametrize("start", [1.0, 9.0, 300.0])
def test_a_search_ends_close_around_the_level_from_wherever_it_starts(start):
    curve, probed = searched(0.5, start)
    assert holds_up_to(curve, 0.5).at == pytest.approx(10.0, rel=0.02)
    assert len(probed) == len(set(probed)) <= MAX_PROBES


def test_a_search_stays_within_its_range():
    curve, probed = searched(0.5, 1.0, most=4.0)
    assert max(probed) == 4.0
    assert holds_up_to(curve, 0.5) == Found(4.0, open_end=True)
    curve, probed = searched(0.5, 100.0, least=30.0)
    assert min(probed) == 30.0
    assert holds_up_to(curve, 0.5) == Found(None, open_end=False)


def test_a_search_goes_on_from_what_is_known():
    known = {8.0: falling(8.0), 12.0: falling(12.0)}
    curve, probed = searched(0.5, 1.0, known=known)
    assert all(8.0 < value < 12.0 for value in probed)
    assert known.items() <= curve.items()


def test_searches_go_on_side_by_side_until_the_last_has_ended():
    steps = []

    def probe(asked):
        steps.append(set(asked))
        return {name: falling(value * (1 if name == "slow" else 3)) for name, value in asked.items()}

    found = side_by_side({name: search(0.5, 8.0, 0.1, 100.0, within=1.05) for name in ("slow", "fast")}, probe)
    assert steps[0] == {"slow", "fast"}
    assert holds_up_to(found["slow"], 0.5).at == pytest.approx(10.0, rel=0.02)
    assert holds_up_to(found["fast"], 0.5).at == pytest.approx(10.0 / 3, rel=0.02)
    assert list(found) == ["slow", "fast"]
