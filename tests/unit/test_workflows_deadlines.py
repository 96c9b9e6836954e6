"""What is left of the SLO is shared out along the graph."""

import re
from collections import Counter
from pathlib import Path

import pytest

import workflows.deadlines
import workflows.forecast
import workflows.graph
import workflows.run
from workflows.deadlines import StepDeadline, derive
from workflows.forecast import Forecast, observe_step, observe_transition
from workflows.graph import END, START, Workflow, declare, unknown_shape
from workflows.run import Run, StepFinished, StepKind, StepStarted, StepStatus, new_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "deadlines.md"
LINE = declare("line", [(START, "a"), ("a", "b"), ("b", END)])
NESTED = declare(
    "nested",
    [(START, ["a", "b"]), ("a", ["a1", "a2"]), ("a1", "a3"), ("a2", "a3"), ("a3", "j"), ("b", "j"), ("j", END)],
)


def close(value: float) -> object:
    return pytest.approx(value, rel=0.07, abs=0.05)


def learned(workflow: Workflow, **durations_s: float) -> Forecast:
    counts: Counter[str] = Counter()
    for node, duration_s in durations_s.items():
        for _ in range(100):
            counts.update(observe_step(node.replace("__", ":"), StepKind.LLM, duration_s))
    return Forecast.from_counts(workflow, counts)


def running(*nodes: str, slo_s: float | None = 100.0, at_s: float = 0.0) -> Run:
    run = new_run("r", "w", 0.0, slo_s=slo_s)
    for number, node in enumerate(nodes):
        run = run.apply(StepStarted(step_id=f"{node}#{number}", node=node, kind=StepKind.LLM, at_s=at_s))
    return run


def targets(workflow: Workflow, forecast: Forecast, run: Run, now_s: float) -> dict[str, float]:
    return {step_id: one.target_s for step_id, one in derive(run, workflow, forecast, now_s).items()}


def test_a_run_without_an_slo_has_no_deadlines() -> None:
    assert derive(running("a", slo_s=None), LINE, learned(LINE), 0.0) == {}


def test_a_run_without_running_steps_has_no_deadlines() -> None:
    run = running("a").apply(StepFinished(step_id="a#0", status=StepStatus.SUCCEEDED, at_s=1.0))
    assert derive(run, LINE, learned(LINE), 1.0) == {}


def test_a_lone_step_gets_its_share_of_what_is_left() -> None:
    forecast = learned(LINE, a=5.0, b=15.0)
    assert derive(running("a", at_s=60.0), LINE, forecast, 60.0)["a#0"] == StepDeadline(
        target_s=close(70.0),  # type: ignore[arg-type]  # approximate
        latest_s=close(85.0),  # type: ignore[arg-type]
        predicted_s=close(5.0),  # type: ignore[arg-type]
        downstream_s=close(15.0),  # type: ignore[arg-type]
        slack_s=close(20.0),  # type: ignore[arg-type]
    )


def test_the_last_step_may_take_all_that_is_left() -> None:
    assert targets(LINE, learned(LINE, a=5.0, b=15.0), running("b"), 0.0) == {"b#0": close(100.0)}


def test_a_short_sibling_may_use_the_slack_of_its_long_one() -> None:
    fork = declare("fork", [(START, ["short", "long"]), ("short", "j"), ("long", "j"), ("j", END)])
    forecast = learned(fork, short=1.0, long=10.0, j=10.0)
    assert targets(fork, forecast, running("short", "long"), 0.0) == {"short#0": close(50.0), "long#1": close(50.0)}


def test_the_sibling_that_is_left_keeps_the_join_s_deadline() -> None:
    fork = declare("fork", [(START, ["short", "long"]), ("short", "j"), ("long", "j"), ("j", END)])
    forecast = learned(fork, short=1.0, long=10.0, j=10.0)
    assert targets(fork, forecast, running("long"), 0.0) == {"long#0": close(50.0)}


def test_steps_of_a_fan_out_share_their_join() -> None:
    spread = declare("spread", [(START, "plan"), ("search", "write"), ("write", END)], fan_out={"plan": "search"})
    forecast = learned(spread, search=10.0, write=10.0)
    due = targets(spread, forecast, running("search", "search", "search"), 0.0)
    assert list(due.values()) == [close(50.0)] * 3


def test_nested_forks_share_the_nearer_join_first() -> None:
    forecast = learned(NESTED, a1=5.0, a2=10.0, a3=10.0, b=4.0, j=20.0)
    due = targets(NESTED, forecast, running("a1", "a2", "b"), 0.0)
    assert due == {"a1#0": close(25.0), "a2#1": close(25.0), "b#2": close(50.0)}


def test_a_branch_that_is_not_critical_shares_its_float_along_its_steps() -> None:
    forecast = learned(NESTED, a1=5.0, a2=10.0, a3=10.0, b=60.0, j=20.0)
    due = targets(NESTED, forecast, running("a1", "a2", "b"), 0.0)
    assert due == {"a1#0": close(37.5), "a2#1": close(37.5), "b#2": close(75.0)}


def test_a_branch_that_is_ahead_of_its_siblings_is_due_with_its_join() -> None:
    forecast = learned(NESTED, a1=10.0, a2=10.0, a3=10.0, b=10.0, j=20.0)
    due = targets(NESTED, forecast, running("a3", "b"), 0.0)
    assert due == {"a3#0": close(33.3), "b#1": close(33.3)}


def test_unequal_progress_in_a_fan_out_of_two_steps() -> None:
    chain = declare("chain", [(START, "p"), ("x", "y"), ("y", "j"), ("j", END)], fan_out={"p": "x"})
    due = targets(chain, learned(chain, x=10.0, y=10.0, j=20.0), running("x", "x", "y"), 0.0)
    assert due == {"x#0": close(25.0), "x#1": close(25.0), "y#2": close(50.0)}


def test_without_slack_targets_shrink_in_proportion_and_latest_stays_honest() -> None:
    forecast = learned(LINE, a=60.0, b=60.0)
    found = derive(running("a", at_s=20.0), LINE, forecast, 20.0)["a#0"]
    assert found.slack_s == pytest.approx(-40.0, abs=8.0)
    assert found.latest_s == close(40.0)
    assert found.target_s == found.latest_s
    early = derive(running("a"), LINE, learned(LINE, a=110.0, b=10.0), 0.0)["a#0"]
    assert early.slack_s < 0.0
    assert early.target_s == pytest.approx(min(early.latest_s, 100 * 110 / 120), abs=3.0)


def test_past_the_deadline_the_target_is_the_latest() -> None:
    found = derive(running("a"), LINE, learned(LINE, a=10.0, b=10.0), 150.0)["a#0"]
    assert found.target_s == found.latest_s == close(90.0)
    assert found.slack_s < -50.0


def test_tools_get_deadlines_as_well() -> None:
    tools = declare("tools", [(START, "a"), ("a", END)], tools=["a"])
    assert targets(tools, learned(tools), running("a"), 0.0) == {"a#0": close(100.0)}


def test_a_clock_that_runs_behind_counts_as_a_step_that_just_began() -> None:
    forecast = learned(LINE, a=5.0, b=15.0)
    early, begun = (derive(running("a", at_s=now_s), LINE, forecast, 3.0)["a#0"] for now_s in (9.0, 3.0))
    assert early == begun


def test_a_step_that_others_run_in_is_due_with_the_last_of_them() -> None:
    teams = declare("teams", [(START, ["t:x", "t:y"]), ("t:x", "w"), ("t:y", "t:z"), ("t:z", "w"), ("w", END)])
    forecast = learned(teams, t__x=5.0, t__y=5.0, t__z=5.0, w=10.0)
    found = derive(running("t", "t:x", "t:y"), teams, forecast, 0.0)
    assert found["t#0"] == found["t:x#1"]
    assert found["t:x#1"].target_s > found["t:y#2"].target_s
    alone = derive(running("t"), teams, forecast, 0.0)["t#0"]
    assert alone.downstream_s == close(10.0)


def test_steps_of_nodes_nobody_knows_are_taken_to_end_the_run() -> None:
    due = targets(LINE, learned(LINE), running("a", "stranger"), 0.0)
    assert due["stranger#1"] == close(100.0)
    shapeless = unknown_shape("w")
    assert targets(shapeless, learned(shapeless), running("x", "y"), 0.0) == {"x#0": close(100), "y#1": close(100)}


def test_a_loop_s_later_visits_leave_more_time_for_each() -> None:
    coder = declare("coder", [(START, "edit"), ("edit", "test")], choices={"test": ["edit", END]})
    counts: Counter[str] = Counter()
    for _ in range(100):
        counts.update(observe_step("edit", StepKind.LLM, 10.0) | observe_step("test", StepKind.TOOL, 10.0))
        counts.update(observe_transition("edit", {"test": 1}) | observe_transition("edit", {"test": 1}, visit=2))
        counts.update(observe_transition("test", {"edit": 1}) | observe_transition("test", {END: 1}, visit=2))
    forecast = Forecast.from_counts(coder, counts)
    first = running("edit")
    second = first
    for step_id, node in [("edit#0", "edit"), ("test#1", "test")]:
        second = second.apply(StepStarted(step_id=step_id, node=node, kind=StepKind.LLM, at_s=0.0))
        second = second.apply(StepFinished(step_id=step_id, status=StepStatus.SUCCEEDED, at_s=0.0))
    second = second.apply(StepStarted(step_id="edit#2", node="edit", kind=StepKind.LLM, at_s=0.0))
    assert targets(coder, forecast, first, 0.0)["edit#0"] == pytest.approx(25.0, abs=3.0)
    assert targets(coder, forecast, second, 0.0)["edit#2"] == pytest.approx(50.0, abs=4.0)


def test_the_worked_example_is_true() -> None:
    text = DOCUMENT.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {"Counter": Counter}
    for module in (workflows.graph, workflows.run, workflows.forecast, workflows.deadlines):
        names |= vars(module)
    exec(code.group(1), names)
    deadlines = names["deadlines"]
    assert isinstance(deadlines, dict)
    rows = re.findall(r"^\| (web|papers) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == list(deadlines)
    for name, *numbers in rows:
        found: StepDeadline = deadlines[name]
        figures = (found.predicted_s, found.downstream_s, found.target_s, found.latest_s, found.slack_s)
        assert figures == tuple(close(float(number)) for number in numbers)
