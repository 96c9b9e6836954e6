"""A run goes only where it may, says why not, and takes a repeated transition for what it is."""

import math

import pytest

from workflows.errors import DuplicateStep, IllegalTransition, InvalidSlo, WorkflowError
from workflows.run import (
    RUN_MAY_BECOME,
    STEP_MAY_BECOME,
    DeadlinesDerived,
    Run,
    RunFinished,
    RunStatus,
    Step,
    StepFinished,
    StepKind,
    StepStarted,
    StepStatus,
    Together,
    new_run,
)
from workflows.wire import run_from_plain, run_to_plain, step_from_plain


def started(step_id: str = "s1", node: str = "plan", **changes: object) -> StepStarted:
    fields: dict[str, object] = {"kind": StepKind.LLM, "at_s": 101.0, **changes}
    return StepStarted(step_id=step_id, node=node, **fields)  # type: ignore[arg-type]  # fields by name


def finished(step_id: str = "s1", status: StepStatus = StepStatus.SUCCEEDED, at_s: float = 105.0) -> StepFinished:
    return StepFinished(step_id=step_id, status=status, at_s=at_s)


def run_with(*transitions: object) -> Run:
    run = new_run("r1", "w", 100.0, slo_s=20.0)
    for transition in transitions:
        run = run.apply(transition)  # type: ignore[arg-type]  # any transition
    return run


def test_slo_gives_the_deadline_and_the_deadline_the_slo() -> None:
    assert new_run("r", "w", 100.0, slo_s=20.0).deadline_s == 120.0
    assert new_run("r", "w", 100.0, deadline_s=130.0).slo_s == 30.0
    assert new_run("r", "w", 100.0).deadline_s is None


@pytest.mark.parametrize(
    ("slo_s", "deadline_s", "message"),
    [
        (0.0, None, "run 'r': the SLO must be a positive, finite number of seconds, not 0.0"),
        (-3.0, None, "must be a positive"),
        (math.inf, None, "not inf"),
        (math.nan, None, "not nan"),
        (None, math.nan, "the deadline must be a finite time"),
        (None, 99.5, "the deadline had passed 0.500 s before the run was submitted"),
        (5.0, 105.0, "not both"),
    ],
)
def test_unusable_slo_is_refused(slo_s: float | None, deadline_s: float | None, message: str) -> None:
    with pytest.raises(InvalidSlo, match=message):
        new_run("r", "w", 100.0, slo_s=slo_s, deadline_s=deadline_s)


def test_a_run_goes_through_its_steps_and_ends() -> None:
    run = run_with(started(), finished(), started("s2", "write", parents=("s1",), at_s=106.0))
    assert [step.step_id for step in run.active] == ["s2"]
    run = run.apply(finished("s2", at_s=110.0)).apply(RunFinished(status=RunStatus.SUCCEEDED, at_s=111.0))
    assert (run.status, run.finished_s, run.version, run.active) == (RunStatus.SUCCEEDED, 111.0, 6, ())


def test_repeated_transitions_return_the_very_same_run() -> None:
    end = RunFinished(status=RunStatus.FAILED, at_s=112.0, error="boom")
    run = run_with(started(), finished(), end)
    assert run.apply(started()) is run
    assert run.apply(finished(at_s=300.0)) is run
    assert run.apply(end) is run


def test_a_running_step_that_starts_again_is_the_same_step() -> None:
    run = run_with(started())
    assert run.apply(started(at_s=108.0)) is run


def test_word_from_the_client_completes_a_step_that_a_call_began() -> None:
    run = run_with(started(implicit=True), started(kind=StepKind.TOOL, parents=("s0",), at_s=109.0))
    assert run.steps["s1"] == Step(step_id="s1", node="plan", kind=StepKind.LLM, parents=("s0",), started_s=101.0)
    assert run.apply(started(implicit=True)) is run


def test_a_tool_step_that_calls_a_model_is_an_llm_step() -> None:
    assert run_with(started(kind=StepKind.TOOL), started()).steps["s1"].kind is StepKind.LLM


def test_a_step_begins_no_earlier_than_its_run_even_if_told_twice() -> None:
    run = new_run("r", "w", 100.0, slo_s=5.0).apply(started(at_s=90.0))
    assert run.steps["s1"].started_s == 100.0
    ended = run.apply(finished())
    assert ended.apply(started(at_s=90.0)) is ended


def test_a_step_id_of_another_node_is_refused() -> None:
    with pytest.raises(
        DuplicateStep, match="run 'r1': step 's1' is of node 'plan' and running, it cannot start at nod"
    ):
        run_with(started(), started(node="write"))


def test_a_step_id_that_ended_cannot_start_anew() -> None:
    with pytest.raises(DuplicateStep, match="step 's1' of node 'plan' is succeeded, it cannot be running again"):
        run_with(started(), finished(), started(at_s=107.0))


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (started("s9"), "run 'r1': step 's9' cannot start, the run is succeeded"),
        (finished("s9"), r"run 'r1' \(succeeded\): step 's9' never started, it cannot be succeeded"),
        (finished(status=StepStatus.FAILED), "step 's1' is cancelled, it cannot become failed"),
        (finished(status=StepStatus.RUNNING), "step 's1' is cancelled, it cannot become running"),
        (RunFinished(status=RunStatus.FAILED, at_s=9.0), "run 'r1' is succeeded, it cannot become failed"),
        (RunFinished(status=RunStatus.RUNNING, at_s=9.0), "run 'r1' is succeeded, it cannot become running"),
    ],
)
def test_an_ended_run_refuses_what_would_change_it(transition: object, message: str) -> None:
    run = run_with(started(), RunFinished(status=RunStatus.SUCCEEDED, at_s=110.0))
    with pytest.raises(IllegalTransition, match=message):
        run.apply(transition)  # type: ignore[arg-type]  # any transition


def test_a_running_run_cannot_become_running() -> None:
    with pytest.raises(IllegalTransition, match="run 'r1' is running, it cannot become running"):
        run_with(RunFinished(status=RunStatus.RUNNING, at_s=110.0))
    with pytest.raises(IllegalTransition, match="step 's1' is running, it cannot become running"):
        run_with(started(), finished(status=StepStatus.RUNNING))


@pytest.mark.parametrize(
    ("status", "left"),
    [
        (RunStatus.SUCCEEDED, StepStatus.CANCELLED),
        (RunStatus.CANCELLED, StepStatus.CANCELLED),
        (RunStatus.FAILED, StepStatus.FAILED),
    ],
)
def test_running_steps_end_with_their_run(status: RunStatus, left: StepStatus) -> None:
    run = run_with(started(), started("s2"), finished("s2"), RunFinished(status=status, at_s=90.0, error="why"))
    assert (run.steps["s1"].status, run.steps["s1"].finished_s, run.steps["s1"].error) == (left, 101.0, "why")
    assert run.steps["s2"].status is StepStatus.SUCCEEDED
    assert run.finished_s == 100.0


def test_deadlines_are_set_on_running_steps_only() -> None:
    run = run_with(started(), finished(), started("s2"))
    derived = DeadlinesDerived(deadlines={"s1": (1.0, 2.0), "s2": (110.0, 118.0), "gone": (1.0, 2.0)})
    after = run.apply(derived)
    assert (after.steps["s2"].target_deadline_s, after.steps["s2"].latest_deadline_s) == (110.0, 118.0)
    assert after.steps["s1"] is run.steps["s1"]
    assert after.version == run.version + 1
    assert after.apply(derived) is after


def test_end_states_are_final() -> None:
    assert {status for status, targets in RUN_MAY_BECOME.items() if targets} == {RunStatus.RUNNING}
    assert {status for status, targets in STEP_MAY_BECOME.items() if targets} == {StepStatus.RUNNING}


def test_run_survives_being_written_down() -> None:
    run = run_with(started(parents=("s0",)), DeadlinesDerived(deadlines={"s1": (110.0, 118.0)}), started("s2"))
    assert run_from_plain(run_to_plain(run)) == run


@pytest.mark.parametrize("plain", [{}, {"steps": [{}]}, {"steps": 3}])
def test_plain_data_that_is_no_run_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(WorkflowError, match=r"not a (run|step) as written"):
        run_from_plain(plain)


def test_plain_data_that_is_no_step_is_refused() -> None:
    with pytest.raises(WorkflowError, match="not a step as written by step_to_plain: KeyError"):
        step_from_plain({})


def test_transitions_together_are_what_they_are_one_by_one() -> None:
    parts = (started(), finished(), RunFinished(status=RunStatus.SUCCEEDED, at_s=106.0))
    together = run_with(Together(parts))
    assert together == run_with(*parts)
    assert together.apply(Together(parts)) is together


def test_of_transitions_together_none_happens_if_one_is_refused() -> None:
    run = run_with(started())
    with pytest.raises(IllegalTransition):
        run.apply(Together((finished(), finished("unknown"))))
    assert run.steps["s1"].status is StepStatus.RUNNING
