"""A forecast starts from the graph's shape and comes to expect what runs do."""

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest

from workflows.counts import HALVE_AT, MAX_KEYS, leaf_steps, observe_gap
from workflows.durations import BUCKETS, PRIOR_MEAN_S, UPPER_S, Durations, bucket_of, prior
from workflows.forecast import (
    MAX_OUTLOOKS,
    Forecast,
    admit,
    observe_run_end,
    observe_step,
    observe_transition,
)
from workflows.graph import END, MAX_NODES, START, Edge, Workflow, declare, unknown_shape
from workflows.run import Run, RunFinished, RunStatus, StepFinished, StepKind, StepStarted, StepStatus, new_run

LLM_S, TOOL_S = PRIOR_MEAN_S[StepKind.LLM], PRIOR_MEAN_S[StepKind.TOOL]
CODER = declare("coder", [(START, "edit"), ("edit", "test")], choices={"test": ["edit", END]}, tools=["test"])
RESEARCHER = declare(
    "researcher", [(START, "plan"), ("search", "write"), ("write", END)], fan_out={"plan": "search"}, tools=["search"]
)


def close(value: float, rel: float = 0.08) -> object:
    """Buckets are 12 % wide: a duration is known to about half of that."""
    return pytest.approx(value, rel=rel, abs=0.01)


def added(*increments: Mapping[str, int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for some in increments:
        counts.update(some)
    return dict(counts)


def steps(node: str, kind: StepKind, duration_s: float, times: int) -> dict[str, int]:
    return added(*[observe_step(node, kind, duration_s)] * times)


def run_of(
    *spans: tuple[str, float, float], status: RunStatus = RunStatus.SUCCEEDED, **parents: tuple[str, ...]
) -> Run:
    """A run of steps `node#number` with (step id, start, end)."""
    run = new_run("r", "w", 0.0)
    for step_id, start_s, _ in spans:
        node, told = step_id.split("#")[0], parents.get(step_id.replace("#", "_"), ())
        run = run.apply(StepStarted(step_id=step_id, node=node, kind=StepKind.LLM, parents=told, at_s=start_s))
    for step_id, _, end_s in spans:
        run = run.apply(StepFinished(step_id=step_id, status=StepStatus.SUCCEEDED, at_s=end_s))
    return run.apply(RunFinished(status=status, at_s=max(span[2] for span in spans)))


def coder_run(visits: int) -> Run:
    spans = []
    for visit in range(visits):
        spans += [(f"edit#{visit}", 2.0 * visit, 2.0 * visit + 1), (f"test#{visit}", 2.0 * visit + 1, 2.0 * visit + 2)]
    return run_of(*spans)


def transitions(counts: Mapping[str, int]) -> dict[str, int]:
    return {key: count for key, count in counts.items() if key[0] in "tf"}


# Durations


def test_buckets_cover_a_millisecond_to_a_day() -> None:
    assert (bucket_of(-1.0), bucket_of(0.0), bucket_of(0.001)) == (0, 0, 0)
    assert bucket_of(86_400) < BUCKETS - 1
    assert bucket_of(1e9) == bucket_of(float("inf")) == bucket_of(float("nan")) == BUCKETS - 1
    assert UPPER_S[bucket_of(5.0) - 1] < 5.0 <= UPPER_S[bucket_of(5.0)]


def test_prior_is_log_normal_with_the_documented_mean() -> None:
    for kind, mean_s in PRIOR_MEAN_S.items():
        assert prior(kind).mean_s == close(mean_s, 0.01)
    assert prior(StepKind.TOOL).quantile_s(0.5) == close(TOOL_S * 0.726, 0.01)


def test_prior_fades_with_observations() -> None:
    few = Forecast.from_counts(CODER, steps("edit", StepKind.LLM, 20.0, 1)).node("edit")
    many = Forecast.from_counts(CODER, steps("edit", StepKind.LLM, 20.0, 30)).node("edit")
    assert LLM_S < few.mean_s < 19.0
    assert many.mean_s == close(20.0)
    assert many.p10_s == close(20.0)
    assert many.p90_s == close(20.0)
    assert (few.observations, many.observations) == (1, 30)


def test_quantiles_stay_within_the_observed_buckets() -> None:
    counts = added(steps("edit", StepKind.LLM, 1.0, 50), steps("edit", StepKind.LLM, 10.0, 50))
    node = Forecast.from_counts(CODER, counts).node("edit")
    assert (node.p10_s, node.p90_s) == (close(1.0, 0.12), close(10.0, 0.12))
    assert 1.0 <= node.p50_s <= 10.1


def test_quantile_beyond_all_weight_is_the_last_bucket() -> None:
    assert prior(StepKind.LLM).quantile_s(1.0) <= UPPER_S[-1]
    assert prior(StepKind.LLM).quantile_s(1.5) == UPPER_S[-1]


def test_the_longest_of_many_takes_longer_than_one() -> None:
    expected = [prior(StepKind.LLM).longest_of_s(width) for width in (1, 2, 4, 16)]
    assert expected == sorted(expected)
    assert expected[0] == prior(StepKind.LLM).mean_s


def test_a_step_that_outlives_its_short_mode_is_expected_to_take_the_long_one() -> None:
    counts = added(steps("edit", StepKind.LLM, 1.0, 50), steps("edit", StepKind.LLM, 10.0, 50))
    known = Forecast.from_counts(CODER, counts).durations("edit")
    assert known.remaining_s(0.0) == close(5.5)
    assert known.remaining_s(2.0) == close(8.0, 0.12)
    assert known.remaining_s(-5.0) == known.remaining_s(0.0)


def test_a_straggler_is_never_expected_to_end_at_once() -> None:
    assert prior(StepKind.TOOL).remaining_s(1e6) == pytest.approx(1e5)
    weights = prior(StepKind.TOOL).weights.copy()
    weights[bucket_of(10.0) :] = 0.0
    assert Durations(weights / weights.sum(), 9).remaining_s(50.0) == pytest.approx(5.0)


# What is counted


def test_a_step_counts_in_one_bucket_of_its_node_and_kind() -> None:
    assert observe_step("find flights|+%", StepKind.TOOL, 0.0005) == {"d|find flights%7C%2B%25|tool|0": 1}


def test_transitions_of_nothing_count_nothing() -> None:
    assert observe_transition("a", {}) == observe_transition("a", {"b": 0}) == {}


def test_transitions_are_counted_by_visit_and_width() -> None:
    assert observe_transition("a", {"c": 1, "b": 7}, visit=99) == {"t|a|8|b+c": 1, "f|a|b|6": 1}
    assert observe_transition("a", {"b": 1}, visit=0) == {"t|a|1|b": 1}


def test_a_run_is_counted_by_what_followed_what() -> None:
    counts = observe_run_end(coder_run(2), CODER)
    assert transitions(counts) == {
        "t|__start__|1|edit": 1,
        "t|edit|1|test": 1,
        "t|test|1|edit": 1,
        "t|edit|2|test": 1,
        "t|test|2|__end__": 1,
    }
    assert sum(count for key, count in counts.items() if key.startswith("g|")) == 5


def test_parents_are_believed_unless_the_graph_knows_better() -> None:
    run = run_of(
        ("plan#0", 0, 1),
        ("search#0", 1, 2),
        ("search#1", 1, 3),
        ("write#0", 3, 4),
        search_0=("plan#0",),
        search_1=("plan#0", "plan#0", "gone#1"),
        write_0=("plan#0", "search#0", "search#1"),
    )
    expected = {"t|__start__|1|plan": 1, "t|plan|1|search": 1, "f|plan|search|2": 1}
    expected |= {"t|search|1|write": 1, "t|search|2|write": 1, "t|write|1|__end__": 1}
    assert transitions(observe_run_end(run, RESEARCHER)) == expected
    assert "t|plan|1|search+write" in observe_run_end(run)


def test_parents_nobody_named_are_the_steps_that_ended_last() -> None:
    run = run_of(("plan#0", 0, 1), ("search#0", 1, 2), ("search#1", 1.5, 3), ("write#0", 3, 4))
    counts = transitions(observe_run_end(run))
    assert counts["f|plan|search|2"] == counts["t|search|1|write"] == counts["t|search|2|write"] == 1
    assert "t|plan|1|search" in counts


def test_a_branch_that_no_step_follows_has_ended_only_if_it_can() -> None:
    run = run_of(("plan#0", 0, 1), ("search#0", 1, 2), ("search#1", 1, 3), ("write#0", 3, 4), write_0=("search#1",))
    for workflow in (RESEARCHER, None):
        counts = observe_run_end(run, workflow)
        assert not any(key.startswith("t|search") and END in key for key in counts)
        assert "t|write|1|__end__" in counts


def test_a_failed_run_teaches_no_end() -> None:
    counts = observe_run_end(run_of(("edit#0", 0, 1), status=RunStatus.FAILED), CODER)
    assert transitions(counts) == {"t|__start__|1|edit": 1}
    assert not any(key.startswith("g|__end__") for key in counts)


def test_a_run_without_steps_teaches_no_transitions() -> None:
    run = new_run("r", "w", 0.0).apply(RunFinished(status=RunStatus.SUCCEEDED, at_s=2.0))
    assert observe_run_end(run) == observe_gap(END, 2.0)


def test_steps_that_others_run_in_are_left_out() -> None:
    run = run_of(("team#0", 0, 5), ("team:x#0", 0, 2), ("team:y#0", 2, 5), ("team2#0", 5, 6))
    assert [step.node for step in leaf_steps(tuple(run.steps.values()))] == ["team:x", "team:y", "team2"]


def test_new_keys_are_refused_when_there_are_many() -> None:
    counts = {f"d|n{index}|llm|9": 1 for index in range(MAX_KEYS)}
    assert admit(counts, {"d|n5|llm|9": 1, "d|new|llm|9": 1}) == {"d|n5|llm|9": 1}
    del counts["d|n7|llm|9"]
    assert admit(counts, {"x": 1, "y": 1}) == {"x": 1}


def test_counters_that_grew_large_are_halved_and_others_left() -> None:
    counts = {"d|a|llm|3": HALVE_AT - 3, "d|a|llm|4": 3, "d|a|tool|3": 9, "d|b|llm|3": HALVE_AT, "t|a|1|b": 5}
    assert admit(counts, {"d|a|llm|4": 1}) == {"d|a|llm|3": -(HALVE_AT // 2 - 1), "d|a|llm|4": -1}


def test_widths_are_halved_with_the_transitions_of_their_node() -> None:
    counts = {"t|a|1|b": HALVE_AT, "f|a|b|3": 10}
    assert admit(counts, {"t|a|2|b": 1}) == {"t|a|2|b": 1, "t|a|1|b": -HALVE_AT // 2, "f|a|b|3": -5}


# What is expected


def test_cold_start_comes_from_the_shape() -> None:
    line = declare("line", [(START, "a"), ("a", "b"), ("b", END)], tools=["b"])
    forecast = Forecast.from_counts(line, {})
    assert forecast.remaining_s(START) == close(LLM_S + TOOL_S)
    assert forecast.remaining_s("a") == close(TOOL_S)
    assert forecast.remaining_s("b") == close(0.0)
    assert forecast.kind("b") is StepKind.TOOL


def test_a_join_waits_for_its_slowest_branch() -> None:
    fork = declare("fork", [(START, ["a", "b"]), ("a", "a2"), ("a2", "j"), ("b", "j"), ("j", END)], tools=["b"])
    forecast = Forecast.from_counts(fork, {})
    assert forecast.remaining_s(START) == close(3 * LLM_S)
    assert forecast.branches(START) == {"a": 1.0, "b": 1.0}


def test_a_choice_is_weighed_by_probability() -> None:
    pick = declare("pick", [(START, "a"), ("b", END)], choices={"a": ["b", END]})
    assert Forecast.from_counts(pick, {}).remaining_s("a") == close(LLM_S / 2)
    seen = added(*[observe_transition("a", {END: 1})] * 99)
    assert Forecast.from_counts(pick, seen).branches("a") == {"b": close(0.005), END: close(0.995)}


@pytest.mark.parametrize(
    "workflow",
    [
        CODER,
        declare("sql", [(START, "edit"), ("edit", "check"), ("repair", "check")], choices={"check": ["repair", END]}),
        declare(
            "two gates",
            [(START, "edit"), ("edit", "test")],
            choices={"test": ["edit", "review"], "review": ["edit", END]},
        ),
    ],
)
def test_a_loop_is_expected_to_run_twice_before_any_run_was_seen(workflow: Workflow) -> None:
    forecast = Forecast.from_counts(workflow, {})
    visits = 1.0
    for source in ("test", "check", "review"):
        visits *= 1.0 - forecast.branches(source).get("edit", 0.0) - forecast.branches(source).get("repair", 0.0)
    assert 1 / visits == pytest.approx(2.0)


def test_a_loop_that_always_runs_three_times_is_expected_to_end_then() -> None:
    counts = added(*[observe_run_end(coder_run(3), CODER)] * 40)
    counts |= steps("edit", StepKind.LLM, 4.0, 40) | steps("test", StepKind.TOOL, 1.0, 40)
    forecast = Forecast.from_counts(CODER, counts)
    after = [forecast.outlook({"test": visit}).remaining_s("test") for visit in (1, 2, 3)]
    assert after == [close(10.0, 0.15), close(5.0, 0.2), pytest.approx(0.0, abs=1.0)]
    assert forecast.remaining_s(START) == close(15.0, 0.15)


def test_a_run_s_outlook_counts_the_visits_it_made() -> None:
    counts = added(*[observe_run_end(coder_run(2), CODER)] * 40)
    forecast = Forecast.from_counts(CODER, counts)
    first = new_run("r", "coder", 0.0).apply(StepStarted(step_id="t1", node="test", kind=StepKind.TOOL, at_s=1.0))
    ended = first.apply(StepFinished(step_id="t1", status=StepStatus.SUCCEEDED, at_s=2.0))
    second = ended.apply(StepStarted(step_id="t2", node="test", kind=StepKind.TOOL, at_s=3.0))
    assert forecast.outlook_of(first).remaining_s("test") > 4.0
    assert forecast.outlook_of(ended).remaining_s("test") == forecast.outlook_of(second).remaining_s("test") < 1.0


def test_outlooks_are_kept_but_not_without_bound() -> None:
    names = [f"n{index}" for index in range(9)]
    loops = declare(
        "loops",
        [(START, "n0")],
        choices={name: [name, after] for name, after in zip(names, [*names[1:], END], strict=True)},
    )
    counts = added(*[observe_transition(name, {name: 1}, visit=2) for name in names])
    forecast = Forecast.from_counts(loops, counts)
    assert forecast.outlook({"n0": 3}) is forecast.outlook({"n0": 5})
    for visits in itertools.islice(itertools.product((1, 2), repeat=9), MAX_OUTLOOKS + 1):
        forecast.outlook(dict(zip(names, visits, strict=True)))
    assert len(forecast._outlooks) < MAX_OUTLOOKS


def test_a_fan_out_takes_as_long_as_its_longest() -> None:
    cold = Forecast.from_counts(RESEARCHER, {})
    assert cold.cost_s("plan", "search") == close(prior(StepKind.TOOL).longest_of_s(3))
    wide = added(*[observe_transition("plan", {"search": 16})] * 50)
    assert Forecast.from_counts(RESEARCHER, wide).cost_s("plan", "search") == close(
        prior(StepKind.TOOL).longest_of_s(16)
    )


def test_a_fan_out_that_nobody_declared_is_learned() -> None:
    line = declare("line", [(START, "a"), ("a", "b"), ("b", END)])
    seen = added(*[observe_transition("a", {"b": 2})] * 5, *[observe_transition("a", {"b": 1})] * 5)
    expected = (prior(StepKind.LLM).longest_of_s(2) + prior(StepKind.LLM).mean_s) / 2
    assert Forecast.from_counts(line, seen).cost_s("a", "b") == close(expected)


def test_gaps_between_steps_count_as_time() -> None:
    gaps = added(*[observe_gap("test", 3.0)] * 30, *[observe_gap(END, 2.0)] * 30)
    assert Forecast.from_counts(CODER, gaps).cost_s("edit", "test") == close(3.0 + TOOL_S)
    assert Forecast.from_counts(CODER, gaps).outlook({}).tail_s(END) == close(2.0)


def test_the_kind_is_what_steps_turned_out_to_be() -> None:
    counts = steps("edit", StepKind.TOOL, 0.2, 3) | steps("edit", StepKind.LLM, 5.0, 1)
    assert Forecast.from_counts(CODER, counts).kind("edit") is StepKind.TOOL


def test_nodes_without_observations_are_like_others_of_their_kind() -> None:
    forecast = Forecast.from_counts(RESEARCHER, steps("plan", StepKind.LLM, 40.0, 50))
    assert forecast.node("write").mean_s == close(40.0, 0.15)
    assert forecast.node("search").mean_s == close(TOOL_S)


def test_the_fast_path_uses_short_durations_and_the_shortest_way() -> None:
    pick = declare("pick", [(START, "a"), ("b", END), ("c", END)], choices={"a": ["b", "c"]})
    counts = added(
        steps("b", StepKind.LLM, 2.0, 10), steps("b", StepKind.LLM, 30.0, 40), steps("c", StepKind.LLM, 9.0, 50)
    )
    forecast = Forecast.from_counts(pick, counts)
    assert forecast.remaining_fast_s("a") == close(2.0)
    assert forecast.remaining_s("a") > 8.0


def test_the_fast_path_promises_nothing_of_nodes_it_does_not_know() -> None:
    assert Forecast.from_counts(CODER, {}).remaining_fast_s(START) == 0.0


def test_the_fast_path_leaves_out_what_hardly_ever_happens() -> None:
    pick = declare("pick", [(START, "a"), ("b", END)], choices={"a": ["b", END]})
    counts = added(steps("b", StepKind.LLM, 6.0, 50), *[observe_transition("a", {"b": 1})] * 99)
    assert Forecast.from_counts(pick, counts).remaining_fast_s("a") == close(6.0)


def test_a_loop_that_hardly_ever_ends_still_does() -> None:
    counts = added(*[observe_transition("test", {"edit": 1})] * 999)
    forecast = Forecast.from_counts(CODER, counts)
    assert 0.0 <= forecast.remaining_fast_s("edit") <= forecast.remaining_s("edit") < 1e6
    assert forecast.join(["edit"]) == "test"


def test_joins_are_what_all_branches_lead_to() -> None:
    nested = declare(
        "nested",
        [(START, ["a", "b"]), ("a", ["a1", "a2"]), ("a1", "a3"), ("a2", "a3"), ("a3", "j"), ("b", "j"), ("j", END)],
    )
    forecast = Forecast.from_counts(nested, {})
    assert forecast.join(["a1", "a2"]) == "a3"
    assert forecast.join(["a1", "b"]) == "j"
    assert forecast.join(["a1", "a1"]) == "a3"
    assert forecast.join(["j", "b"]) == END
    assert forecast.join([]) == END


def test_the_shape_of_an_unregistered_workflow_is_learned() -> None:
    cold = Forecast.from_counts(unknown_shape("w"), {})
    assert (cold.remaining_s(START), cold.remaining_s("a"), cold.kind("a")) == (close(0.0), 0.0, StepKind.LLM)
    run = run_of(("plan#0", 0, 1), ("search#0", 1, 2), ("search#1", 1, 3), ("write#0", 3, 4))
    counts = added(*[observe_run_end(run)] * 30)
    forecast = Forecast.from_counts(unknown_shape("w"), counts)
    assert forecast.join(["search", "search"]) == "write"
    assert forecast.remaining_s("search") == close(LLM_S, 0.1)
    assert forecast.remaining_s("plan") == close(LLM_S + prior(StepKind.LLM).longest_of_s(2), 0.1)


def test_nodes_inside_and_around_others_stand_in_for_unknown_ones() -> None:
    teams = declare("teams", [(START, "team:x"), ("team:x", "team:y"), ("team:y", "w"), ("w", END)])
    forecast = Forecast.from_counts(teams, {})
    assert forecast.remaining_s("team") == forecast.remaining_s("team:y") == close(LLM_S)
    assert forecast.remaining_s("team:x:deeper:still") == forecast.remaining_s("team:x")
    assert forecast.remaining_s("other:x") == forecast.remaining_fast_s("other") == 0.0
    assert forecast.joins_after("other") == [END]


def test_foreign_and_broken_keys_are_passed_over() -> None:
    broken = {"x": 1, "d|edit|llm|999": 3, "d|edit|oracle|3": 2, "t|edit|one|test": 2, "d|edit": 1, "g|edit|-": 4}
    assert Forecast.from_counts(CODER, broken).remaining_s(START) == Forecast.from_counts(CODER, {}).remaining_s(START)
    negative = dict.fromkeys(observe_run_end(coder_run(5)), -5)
    assert Forecast.from_counts(CODER, negative).branches("test") == Forecast.from_counts(CODER, {}).branches("test")


def test_a_forecast_made_from_the_one_before_is_the_same() -> None:
    counts = added(*[observe_run_end(coder_run(3), CODER)] * 9)
    before = Forecast.from_counts(CODER, counts)
    slower = counts | steps("edit", StepKind.LLM, 30.0, 9)
    longer = slower | {"t|test|3|edit": 50}
    for now in (slower, longer):
        assert Forecast.from_counts(CODER, now, before).remaining_s(START) == Forecast.from_counts(
            CODER, now
        ).remaining_s(START)
    other = declare("other", [(START, "a"), ("a", END)])
    assert Forecast.from_counts(other, counts, before).branches("a") == {END: 1.0}


def test_impossible_transitions_are_passed_over() -> None:
    counts = {"t|edit|1|__start__": 9, "t|__end__|1|edit": 9}
    assert Forecast.from_counts(CODER, counts).branches("edit") == {"test": 1.0}


def test_only_the_most_visited_unknown_nodes_are_learned() -> None:
    counts = added(*[observe_transition(START, {f"n{index}": 1}) for index in range(MAX_NODES + 50)])
    counts |= {"t|__start__|1|often": 7}
    learned = Forecast.from_counts(unknown_shape("w"), counts).branches(START)
    assert "often" in learned
    assert len(learned) == MAX_NODES + 1  # and END


def test_learned_loops_without_exit_can_end() -> None:
    counts = added(observe_transition(START, {"a": 1}), observe_transition("a", {"a": 1}))
    forecast = Forecast.from_counts(unknown_shape("w"), counts)
    assert forecast.branches("a") == {"a": 0.5, END: 0.5}
    endless = Workflow("w", CODER.nodes, CODER.edges[:2])  # never validated: nothing follows test
    assert Forecast.from_counts(endless, {}).remaining_s("edit") == close(TOOL_S)
    circle = Workflow("w", CODER.nodes, (*CODER.edges[:2], Edge("test", "edit")))
    assert Forecast.from_counts(circle, {}).branches("test") == {"edit": 0.5, END: 0.5}
