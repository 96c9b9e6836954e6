"""How a run is drawn in the terminal."""

import io
from pathlib import Path

import orjson
import pytest
from rich.cells import cell_len
from rich.console import Console

from agentserve.journal import Kind
from agentserve.run_story import explain_json
from agentserve.waterfall import render_run
from tests.unit.made_up_run import RUN, START_S, event, run_still_going, submitted, whole_run
from workflows.run import Run, RunStatus, Step, StepKind, StepStatus

SNAPSHOTS = Path(__file__).parent / "snapshots"


def drawn(run, events, width=100, now_s=None, **options):
    options = {"force_terminal": False, "color_system": None, "legacy_windows": False} | options
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(render_run(run, events, now_s=now_s))
    return console.file.getvalue()


def stripped(text):
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@pytest.mark.parametrize(
    ("name", "events", "now_s", "width"),
    [
        ("whole_run", whole_run(), None, 100),
        ("whole_run_narrow", whole_run(), None, 70),
        ("run_still_going", run_still_going(), START_S + 8.6, 100),
    ],
)
def test_the_drawing_is_as_it_was(name, events, now_s, width):
    assert stripped(drawn({}, events, width, now_s)) == (SNAPSHOTS / f"waterfall_{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("width", [60, 80, 97, 120, 200])
def test_no_line_is_wider_than_the_console(width):
    assert max(cell_len(line) for line in drawn({}, whole_run(), width).splitlines()) <= width


def test_parallel_siblings_begin_in_the_same_column():
    first, second = [line for line in drawn({}, whole_run()).splitlines() if line.startswith("search")]
    assert first.index("▒") == second.index("▒")
    assert "⇢" in first
    assert "✗" in second


def test_colour_only_decorates_what_is_there_without_it():
    coloured = drawn({}, whole_run(), force_terminal=True, color_system="standard")
    plain = Console(file=io.StringIO(), width=100)
    assert "\x1b[32m" in coloured
    from rich.text import Text

    assert Text.from_ansi(coloured).plain.split() == drawn({}, whole_run()).split()
    assert plain.width == 100


def test_the_header_says_by_how_much_a_run_missed_its_slo():
    late = [
        *whole_run()[:-1],
        event(whole_run()[-1].kind, 14.0, status="succeeded", e2e_s=14.0, attained=False, error=None),
    ]
    assert "SLO 12.0 s · e2e 14.0 s · missed by 2.00 s" in drawn({}, late)


def test_a_run_that_missed_its_slo_says_what_was_to_blame_and_what_else_it_lost():
    late = [submitted(slo_s=4.0), *whole_run()[1:-1]]
    late.append(event(Kind.RUN_FINISHED, 9.5, status="succeeded", e2e_s=9.5, attained=False, error=None))
    lines = drawn({}, late, width=200).splitlines()
    assert lines[2].startswith("to blame: fetch, longer than planned, without a call (tool): 2.00 s · also ")
    told = explain_json({}, late)
    assert told["blame"] == {"reason": "tool", "step_id": "fetch", "node": "fetch", "lost_s": 2.0}
    assert told["blame"] in told["losses"]
    assert "to blame" not in drawn({}, whole_run())
    assert explain_json({}, whole_run())["blame"] is None


def test_the_header_of_a_failed_run_says_so():
    failed = [
        *whole_run()[:-1],
        event(whole_run()[-1].kind, 9.0, status="failed", e2e_s=9.0, attained=False, error="boom"),
    ]
    text = drawn({}, failed)
    assert "missed: the run failed" in text
    assert "error: boom" in text


def test_a_run_without_an_slo_has_no_verdict():
    free = [submitted(slo_s=None, deadline_s=None), *whole_run()[1:-1]]
    end = event(whole_run()[-1].kind, 9.5, status="succeeded", e2e_s=9.5, attained=None, error=None)
    assert "no SLO · e2e 9.50 s\n" in drawn({}, [*free, end])


def test_a_running_run_says_what_is_left():
    assert "e2e 8.60 s so far · 3.40 s left" in drawn({}, run_still_going(), now_s=START_S + 8.6)


def test_why_tells_rule_instance_slack_and_the_losers():
    text = " ".join(drawn({}, whole_run()).split())
    assert "prefill h100-1 ⇒ decode a100-1: just enough: weakest of 2 in time · slack +1.50 s" in text
    assert "not h200-1: stronger than needed" in text
    assert "120 tokens expected (40 to 310), 150 came" in text


def test_a_run_is_drawn_from_the_store_alone_when_its_journal_is_gone():
    step = Step(
        step_id="plan",
        node="plan",
        kind=StepKind.LLM,
        status=StepStatus.SUCCEEDED,
        started_s=START_S,
        finished_s=START_S + 2.0,
        target_deadline_s=START_S + 3.0,
        latest_deadline_s=START_S + 4.0,
    )
    run = Run(
        run_id=RUN,
        workflow="researcher",
        submitted_s=START_S,
        slo_s=5.0,
        deadline_s=START_S + 5.0,
        status=RunStatus.SUCCEEDED,
        finished_s=START_S + 2.5,
        steps={"plan": step},
    )
    text = drawn(run, [])
    assert "SLO 5.00 s · e2e 2.50 s · attained, 2.50 s to spare" in text
    assert "target 3.00 s, latest 4.00 s · ended 1.00 s before its target" in text


def test_an_error_that_call_and_step_share_is_told_once():
    failed = [
        submitted(),
        event(Kind.STEP_STARTED, 0.0, "s", node="plan", kind="llm", parents=[]),
        event(Kind.CALL_ARRIVED, 0.1, "s", "c", node="plan", model="m"),
        event(Kind.CALL_FINISHED, 1.0, "s", "c", outcome="failed", error="engine answered 400"),
        event(Kind.STEP_FINISHED, 1.0, "s", node="plan", outcome="failed", error="engine answered 400"),
    ]
    assert drawn({}, failed).count("engine answered 400") == 1


def test_a_run_that_has_not_begun_is_drawn_too():
    assert "no step has begun" in drawn({"run_id": RUN, "submitted_s": START_S, "workflow": "w"}, [])


def test_events_may_be_plain_data_from_the_rest_answer():
    plain = [
        {"kind": str(e.kind), "at_s": e.at_s, "step_id": e.step_id, "request_id": e.request_id, "data": e.data}
        for e in whole_run()
    ]
    assert drawn({"run_id": RUN}, plain) == drawn({}, whole_run())


def test_markup_in_names_is_text():
    odd = [submitted(workflow="[red]x[/]"), *whole_run()[1:]]
    assert "[red]x[/]" in drawn({}, odd)


def test_explain_json_tells_the_same_as_data():
    told = orjson.loads(orjson.dumps(explain_json({}, whole_run())))
    assert (told["run_id"], told["status"], told["attained"]) == (RUN, "succeeded", True)
    search = next(step for step in told["steps"] if step["step_id"] == "search-a")
    (call,) = search["calls"]
    assert call["why"]["rule"] == "just enough: weakest of 2 in time"
    assert call["migrations"][0]["target"] == "h200-1"
    assert [phase["phase"] for phase in call["phases"]] == ["queue", "prefill", "decode", "migration", "decode"]
    assert search["target_deadline_s"] == START_S + 6.0
