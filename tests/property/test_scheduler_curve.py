"""What is asked of one placement and of many at once gets the same bits: decisions may not depend on the way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scheduler.curve import Curve
from scheduler.rest import _EDGES_S, _EDGES_SHARE, Ends, Rest, RestByForecast, RestBySlo, RestByVisit
from scheduler.runs import Progress

CHANCES = st.integers(0, 2**32 - 1).map(
    lambda seed: np.append(np.sort(np.random.default_rng(seed).random(len(_EDGES_S) - 1)), 1.0)
)
SECONDS = st.floats(-100.0, 5000.0)
LENGTHS = st.lists(st.floats(1.0, 3000.0), min_size=1, max_size=8)
RESTS = st.one_of(
    st.builds(RestByVisit, CHANCES.map(lambda chances: Curve(_EDGES_S, chances))),
    st.builds(RestByForecast, st.floats(0.0, 100.0)),
    st.builds(
        RestBySlo,
        CHANCES.map(lambda chances: Curve(_EDGES_SHARE, chances)),
        st.floats(0.5, 600.0),
        st.builds(Progress, st.floats(0.0, 100.0), st.floats(1e-3, 0.1), st.floats(1.0, 2000.0)),
        st.builds(Ends, st.floats(0.0, 1.0), st.lists(st.floats(0.1, 500.0), min_size=8, max_size=8).map(np.array)),
        st.floats(1.0, 8.0),
    ),
)


@given(CHANCES, st.lists(SECONDS | st.sampled_from(_EDGES_S.tolist()), min_size=1))
def test_one_value_is_read_as_many_are(chances: np.ndarray, values: list[float]) -> None:
    curve = Curve(_EDGES_S, chances)
    assert [curve.at(value) for value in values] == curve.all_at(np.array(values)).tolist()


@given(RESTS, st.lists(SECONDS, min_size=1, max_size=3), st.floats(1e-3, 0.3), LENGTHS)
def test_a_run_has_the_same_chance_at_one_placement_as_among_many(
    rest: Rest, left_s: list[float], step_s: float, lengths: list[float]
) -> None:
    among_many = rest.chances(np.array(left_s), np.full(len(left_s), step_s), np.array(lengths))
    assert rest.chances_here(left_s, step_s, lengths) == among_many.tolist()
