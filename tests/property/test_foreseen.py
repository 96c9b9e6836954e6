"""What holds of every run that is played again with other durations of its calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentserve.telemetry.foreseen import ended_s, took_s
from agentserve.telemetry.story import CallStory, RunStory, StepStory

START_S = 1_000_000.0
STEPS = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 10.0), st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=8
)


Steps = list[tuple[float, float, float, bool]]


def made(steps: Steps) -> RunStory:
    """A run of steps (begin, length, share of it that is a call, is of known parents); each waits for what ended."""
    story = RunStory("r", START_S, START_S, slo_s=10.0)
    for i, (start_s, length_s, share, is_known) in enumerate(steps):
        start_s, end_s = START_S + start_s, START_S + start_s + length_s
        parents = tuple(one.step_id for one in story.steps if (one.finished_s or 0.0) <= start_s) if is_known else ()
        call = CallStory(f"c{i}", f"s{i}", start_s, finished_s=start_s + share * length_s, outcome="ok")
        story.steps.append(StepStory(f"s{i}", f"n{i}", "llm", start_s, parents=parents, finished_s=end_s, calls=[call]))
    story.finished_s = max(one.finished_s or 0.0 for one in story.steps) + 0.5
    return story


@given(STEPS)
def test_a_run_ends_when_it_did_if_its_calls_take_what_they_took(steps: Steps) -> None:
    story = made(steps)
    assert ended_s(story, took_s) == pytest.approx(story.finished_s)


@given(STEPS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_shorter_calls_never_end_a_run_later(steps: Steps, one: float, other: float) -> None:
    story = made(steps)
    less, more = sorted((one, other))
    assert ended_s(story, lambda call: less * took_s(call)) <= ended_s(story, lambda call: more * took_s(call)) + 1e-6
