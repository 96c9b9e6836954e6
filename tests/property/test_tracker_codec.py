"""What is written of a run, change by change, is the run; and an event comes back as it went in."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agentserve.journal import Kind, RunEvent
from agentserve.tracker import codec
from agentserve.tracker.event_data import RULES
from workflows.errors import IllegalTransition
from workflows.run import (
    DeadlinesDerived,
    Run,
    RunFinished,
    RunStatus,
    StepFinished,
    StepKind,
    StepStarted,
    StepStatus,
    Transition,
    new_run,
)

times = st.floats(0, 1e10)
step_ids = st.sampled_from(["s1", "s2", "", "run", "s:s1", "шаг 3"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

transitions: st.SearchStrategy[Transition] = st.one_of(
    st.builds(
        StepStarted,
        step_id=step_ids,
        node=texts,
        kind=st.sampled_from(StepKind),
        parents=st.lists(texts, max_size=3).map(tuple),
        implicit=st.booleans(),
        at_s=times,
    ),
    st.builds(
        StepFinished,
        step_id=step_ids,
        status=st.sampled_from([StepStatus.SUCCEEDED, StepStatus.FAILED]),
        at_s=times,
        error=st.none() | texts,
    ),
    st.builds(DeadlinesDerived, deadlines=st.dictionaries(step_ids, st.tuples(times, times))),
    st.builds(
        RunFinished,
        status=st.sampled_from([RunStatus.FAILED, RunStatus.CANCELLED]),
        at_s=times,
        error=st.none() | texts,
    ),
)


def written(stored: dict[bytes, bytes], changes: list[bytes | int]) -> dict[bytes, bytes]:
    as_bytes = [value if isinstance(value, bytes) else str(value).encode() for value in changes]
    return stored | codec.pairs(as_bytes)


@given(st.lists(transitions, max_size=20), st.none() | st.floats(0.1, 1e5), st.randoms())
def test_a_run_written_change_by_change_is_the_run(steps: list[Transition], slo_s: float | None, dice) -> None:
    run = new_run("r1", "triage", 100.0, slo_s=slo_s)
    history = [run]
    for transition in steps:
        try:
            run = run.apply(transition)
        except IllegalTransition:
            continue
        history.append(run)
    stored = written({}, codec.changes(None, history[0]))
    for before, after in pairwise(history):
        stored = written(stored, codec.changes(before, after))
        shuffled = list(stored.items())
        dice.shuffle(shuffled)
        assert_same(codec.run_from_fields(dict(shuffled)), after)
    assert codec.summary(stored[b"run"], stored[b"steps"]).steps == len(run.steps)


def assert_same(found: Run, expected: Run) -> None:
    assert found == expected
    assert list(found.steps) == list(expected.steps)


keys = texts.filter(lambda name: name not in RULES)  # those are of one type, and checked
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(
    st.builds(
        RunEvent,
        run_id=st.just("r1"),
        kind=st.sampled_from(Kind),
        at_s=times,
        step_id=st.none() | texts,
        request_id=st.none() | texts,
        data=st.dictionaries(keys, plain, max_size=6),
    )
)
def test_an_event_comes_back_as_it_went_in(event: RunEvent) -> None:
    assert codec.event_from_bytes("r1", codec.event_bytes(event)) == event


@given(st.dictionaries(keys, st.integers(0, 40_000), max_size=8))
def test_an_event_too_large_is_cut_to_the_limit(sizes: dict[str, int]) -> None:
    data = {key: "x" * size for key, size in sizes.items()}
    stored = codec.event_bytes(RunEvent(run_id="r1", kind=Kind.CALL_DECIDED, at_s=1.0, data=data))
    assert len(stored) <= codec.MAX_EVENT_BYTES
    found = codec.event_from_bytes("r1", stored).data
    kept = {key: value for key, value in found.items() if key in data and found[key] == data[key]}
    assert set(data) == set(kept) | set(found.get("omitted", ()) if "omitted" not in kept else ())
