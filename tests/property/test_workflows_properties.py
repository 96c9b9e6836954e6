"""Whatever the graph, the runs and the order of things: no crash, no contradiction."""

import itertools
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workflows.counts import decode, encode
from workflows.deadlines import derive
from workflows.durations import Durations, bucket_of, prior
from workflows.errors import IllegalTransition, InvalidWorkflow
from workflows.forecast import Forecast, admit, observe_run_end, observe_step
from workflows.graph import END, START, Edge, Node, Workflow
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
from workflows.wire import run_from_plain, run_to_plain

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = [f"n{index}" for index in range(6)]
TOLERANCE_S = 1e-6


@st.composite
def any_graphs(draw: st.DrawFn) -> Workflow:
    """Any graph at all, most of them invalid."""
    names = draw(st.lists(st.sampled_from([*NAMES, START]), max_size=6))
    ends = st.sampled_from([*NAMES, START, END])
    edges = draw(st.lists(st.builds(Edge, ends, ends, st.booleans(), st.booleans()), max_size=12))
    return Workflow("w", tuple(map(Node, names)), tuple(edges))


@st.composite
def valid_graphs(draw: st.DrawFn) -> Workflow:
    """A path from START to END with forks, shortcuts and loops beside it, valid by construction."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    kinds = st.sampled_from(StepKind)
    nodes = tuple(Node(name, draw(kinds)) for name in names)
    places = [START, *names, END]
    labels = st.sampled_from([None, "x", "y"])
    edges = [
        Edge(source, target, conditional=draw(st.booleans()), fan_out=draw(st.booleans()))
        for source, target in itertools.pairwise(places)
    ]
    for _ in range(draw(st.integers(0, 6))):
        source = draw(st.integers(0, len(names)))
        onward = places[draw(st.integers(source + 1, len(names) + 1))]
        if draw(st.booleans()):
            edges.append(Edge(places[source], onward))
        else:
            target = draw(st.sampled_from([*names, onward]))
            edges += [Edge(places[source], target, conditional=True, label=draw(labels))]
    for source in dict.fromkeys(edge.source for edge in edges if edge.conditional):
        edges.append(Edge(source, END, conditional=True))
    return Workflow("w", nodes, tuple(edges))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run through nodes in any order, known to a graph or not, some steps still running."""
    run = new_run("r", "w", 0.0, slo_s=draw(st.floats(0.1, 500.0)))
    steps = draw(st.integers(1, 7))
    for number in range(steps):
        node = draw(st.sampled_from([*NAMES, "other", "n1:inner"]))
        parents = tuple(f"s{parent}" for parent in draw(st.sets(st.integers(0, steps), max_size=2)))
        at_s = draw(st.floats(0.0, 100.0))
        run = run.apply(
            StepStarted(
                step_id=f"s{number}", node=node, kind=draw(st.sampled_from(StepKind)), parents=parents, at_s=at_s
            )
        )
        if draw(st.booleans()):
            end_s = at_s + draw(st.floats(0.0, 50.0))
            run = run.apply(StepFinished(step_id=f"s{number}", status=StepStatus.SUCCEEDED, at_s=end_s))
    return run


def ended(run: Run) -> Run:
    return run.apply(RunFinished(status=RunStatus.SUCCEEDED, at_s=200.0))


def counts_of(learned: list[Run], workflow: Workflow) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for run in learned:
        counts.update(observe_run_end(ended(run), workflow))
        for step in run.steps.values():
            if step.finished_s is not None:
                counts.update(observe_step(step.node, step.kind, step.finished_s - step.started_s))
    return dict(counts)


@quick
@given(any_graphs())
def test_validation_accepts_or_refuses_and_never_crashes(workflow: Workflow) -> None:
    try:
        workflow.validate()
    except InvalidWorkflow as error:
        assert "workflow 'w'" in str(error)
    else:
        assert Workflow.from_dict(workflow.to_dict()) == workflow
        assert Forecast.from_counts(workflow, {}).remaining_s(START) >= 0.0


@quick
@given(valid_graphs())
def test_valid_graphs_are_valid_and_survive_being_written_down(workflow: Workflow) -> None:
    workflow.validate()
    again = Workflow.from_dict(workflow.to_dict())
    assert (again, again.fingerprint) == (workflow, workflow.fingerprint)


@quick
@given(valid_graphs(), st.lists(runs(), max_size=4))
def test_forecasts_are_finite_probabilities_and_times(workflow: Workflow, learned: list[Run]) -> None:
    forecast = Forecast.from_counts(workflow, counts_of(learned, workflow))
    for node in [START, *NAMES, "other", "never seen"]:
        assert 0.0 <= forecast.remaining_fast_s(node) <= forecast.remaining_s(node) <= 1e7
        chances = forecast.branches(node).values()
        assert all(-1e-9 <= chance <= 1 + 1e-9 for chance in chances)
        if node in workflow.by_name:
            assert sum(chances) >= 1 - 1e-9


@quick
@given(valid_graphs(), st.lists(runs(), max_size=3), runs(), st.floats(0.0, 400.0), st.floats(0.0, 50.0))
def test_deadlines_hold_their_promises(
    workflow: Workflow, learned: list[Run], run: Run, now_s: float, passing_s: float
) -> None:
    forecast = Forecast.from_counts(workflow, counts_of(learned, workflow))
    found = derive(run, workflow, forecast, now_s)
    later = derive(run, workflow, forecast, now_s + passing_s)
    assert set(found) == set(later) == {step.step_id for step in run.active}
    for step_id, one in found.items():
        assert run.deadline_s is not None
        assert one.target_s <= one.latest_s <= run.deadline_s
        assert one.predicted_s >= 0.0
        assert one.downstream_s >= 0.0
        if one.slack_s >= 0.0:
            assert one.target_s >= now_s - TOLERANCE_S
        assert later[step_id].slack_s <= one.slack_s + TOLERANCE_S


@quick
@given(valid_graphs(), runs(), st.floats(0.0, 400.0))
def test_with_slack_every_step_may_take_the_time_expected_of_it(workflow: Workflow, run: Run, now_s: float) -> None:
    forecast = Forecast.from_counts(workflow, {})
    outer = {step.step_id for step in run.active if step.node == "n1"}
    for step_id, one in derive(run, workflow, forecast, now_s).items():
        if one.slack_s >= 0.0 and step_id not in outer:
            assert one.target_s >= now_s + one.predicted_s - TOLERANCE_S


@quick
@given(valid_graphs(), st.lists(runs(), min_size=1, max_size=3))
def test_counters_add_up_in_any_order(workflow: Workflow, learned: list[Run]) -> None:
    forward, backward = counts_of(learned, workflow), counts_of(learned[::-1], workflow)
    assert forward == backward
    shuffled = dict(sorted(forward.items(), reverse=True))
    one, other = (Forecast.from_counts(workflow, counts) for counts in (forward, shuffled))
    assert [one.remaining_s(node) for node in [START, *NAMES]] == [other.remaining_s(node) for node in [START, *NAMES]]


@quick
@given(st.dictionaries(st.sampled_from(["d|a|llm|3", "d|a|llm|4", "t|a|1|b", "f|a|b|3", "x"]), st.integers(-1, 9000)))
def test_what_is_admitted_never_takes_more_than_there_is(counts: dict[str, int]) -> None:
    for key, change in admit(counts, dict.fromkeys(counts, 1)).items():
        assert counts[key] + change >= min(0, counts[key])


TRANSITIONS = st.one_of(
    st.builds(
        StepStarted,
        step_id=st.sampled_from(["s1", "s2"]),
        node=st.sampled_from(["a", "b"]),
        kind=st.sampled_from(StepKind),
        parents=st.sampled_from([(), ("s1",)]),
        implicit=st.booleans(),
        at_s=st.sampled_from([1.0, 2.0]),
    ),
    st.builds(
        StepFinished,
        step_id=st.sampled_from(["s1", "s2"]),
        status=st.sampled_from(StepStatus),
        at_s=st.floats(0.0, 9.0),
    ),
    st.builds(
        DeadlinesDerived,
        deadlines=st.dictionaries(st.sampled_from(["s1", "s2"]), st.tuples(st.floats(0, 9), st.floats(0, 9))),
    ),
    st.builds(RunFinished, status=st.sampled_from(RunStatus), at_s=st.floats(0.0, 9.0)),
)


@quick
@given(st.lists(TRANSITIONS, max_size=12))
def test_applying_a_transition_again_changes_nothing(transitions: list[Transition]) -> None:
    run = new_run("r", "w", 0.0, slo_s=5.0)
    for transition in transitions:
        try:
            after = run.apply(transition)
        except IllegalTransition as error:
            assert "run 'r'" in str(error)
            continue
        assert after.apply(transition) is after
        assert after is run or after.version == run.version + 1
        run = after
    assert run_from_plain(run_to_plain(run)) == run
    assert run.status is RunStatus.RUNNING or not run.active


@quick
@given(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=30), st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_the_expected_end_of_a_step_never_moves_back(seen: list[float], elapsed_s: float, passing_s: float) -> None:
    weights = prior(StepKind.LLM).weights * 0.0
    for duration_s in seen:
        weights[bucket_of(duration_s)] += 1.0
    known = Durations(weights / weights.sum(), len(seen))
    later_s = elapsed_s + passing_s
    assert elapsed_s + known.remaining_s(elapsed_s) <= (later_s + known.remaining_s(later_s)) * (1 + 1e-9)
    assert known.quantile_s(0.1) <= known.quantile_s(0.5) <= known.quantile_s(0.9)


@quick
@given(st.text(max_size=20))
def test_names_survive_in_keys(name: str) -> None:
    assert decode(encode(name)) == name
    assert not {"|", "+"}.intersection(encode(name))
