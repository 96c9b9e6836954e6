"""Which runs does the page know of, and what is each reader told of them?"""

import pytest

from agentserve.gateway.page.board import MAX_BARS, Board, View
from agentserve.journal import Kind, RunEvent
from agentserve.tracker.feed import bare, batch_bytes, batch_events
from agentserve.tracker.store import RunSummary
from tests.unit.made_up_run import RUN, START_S, whole_run
from workflows.run import RunStatus


def fact(run_id, event_kind, at_s, step=None, /, **data):
    return RunEvent(run_id=run_id, kind=event_kind, at_s=at_s, step_id=step, request_id=None, data=data)


def submitted(run_id, at_s, slo_s=10.0, workflow="coder"):
    return fact(run_id, Kind.RUN_SUBMITTED, at_s, workflow=workflow, slo_s=slo_s, deadline_s=at_s + slo_s)


def ended(run_id, at_s, attained=True, status="succeeded"):
    return fact(run_id, Kind.RUN_FINISHED, at_s, status=status, attained=attained)


def shown(board, now_s=0.0, **view):
    return list(board.window(View(**view), now_s)[0])


@pytest.fixture
def feed():
    """The made-up run as a watcher is told of it."""
    return batch_events(batch_bytes(whole_run()))


def test_a_whole_run_is_drawn_from_the_feed_alone(feed):
    board = Board()
    board.apply(feed)
    row = board.get(RUN)
    assert (row.workflow, row.status, row.attained, row.steps, row.failures) == ("researcher", "succeeded", True, 5, 1)
    assert row.moves == [[START_S + 4.1, "a100-1", "h200-1", "late"]]
    plan, _, _, fetch, write = row.bars.values()
    assert plan.to_plain() == ["plan", "llm", START_S + 0.1, START_S + 2.4, "ok", "a100-1", None]
    assert (fetch.kind, write.instance) == ("tool", "h100-1")


def test_facts_that_come_twice_change_nothing_more(feed):
    once, twice = Board(), Board()
    once.apply(feed)
    twice.apply([*feed, *feed])
    assert once.get(RUN).to_plain() == twice.get(RUN).to_plain()


def test_no_text_of_a_call_and_no_reason_is_in_the_feed():
    told = b"".join(batch_bytes([event]) for event in whole_run())
    for word in (b"just enough", b"verdict", b"connection lost", b"traceparent", b"candidates"):
        assert word not in told
    assert bare(fact("r", Kind.STEP_FINISHED, 1.0, "s", outcome="failed", error="secret"))[-1] == {"outcome": "failed"}


def test_the_newest_runs_come_first_and_a_page_of_them_is_a_slice():
    board = Board()
    board.apply([submitted("b", 2.0), submitted("a", 1.0), submitted("c", 3.0), submitted("d", 3.0)])
    assert shown(board) == ["d", "c", "b", "a"] or shown(board) == ["c", "d", "b", "a"]
    assert shown(board, first=2, rows=1) == ["b"]
    assert board.window(View(first=9), 0.0) == ([], 4)


def test_a_view_asks_for_a_kind_of_run_and_for_a_text():
    board = Board()
    board.apply([submitted(name, 1.0, workflow=name.upper()) for name in ("late", "done", "moved", "fine")])
    board.apply(
        [
            fact("late", Kind.STEP_DEADLINES, 2.0, "s", slack_s=-1.0),
            fact("done", Kind.RUN_FINISHED, 3.0, status="succeeded", attained=True),
            fact("moved", Kind.CALL_MIGRATED, 2.0, "s", source="a", target="b", cause="late"),
        ]
    )
    assert shown(board, 5.0, show="late") == ["late"]
    assert shown(board, 5.0, show="ended") == ["done"]
    assert shown(board, 5.0, show="moved") == ["moved"]
    assert set(shown(board, 5.0, show="live")) == {"late", "moved", "fine"}
    assert set(shown(board, 99.0, show="late")) == {"late", "moved", "fine"}, "past their deadlines"
    assert shown(board, 5.0, text="FIN") == ["fine"]
    assert board.totals(5.0) == {"live": 3, "late": 1, "known": 4}


def test_a_full_board_forgets_the_oldest_ended_run_first_then_the_oldest():
    board = Board(max_rows=3)
    board.apply([submitted("a", 1.0), submitted("b", 2.0), submitted("c", 3.0), ended("b", 3.5)])
    board.apply([submitted("d", 4.0)])
    assert shown(board) == ["d", "c", "a"]
    board.apply([submitted("e", 5.0)])
    assert shown(board) == ["e", "d", "c"]


def test_facts_of_an_unknown_run_are_passed_over():
    board = Board()
    board.apply([fact("gone", Kind.STEP_STARTED, 1.0, "s", node="n", kind="llm")])
    assert (board.get("gone"), board.version) == (None, 0)


def test_listed_runs_take_what_the_feed_tells_after():
    board = Board()
    listed = RunSummary("r", "coder", RunStatus.RUNNING, 1.0, None, 10.0, 7)
    board.take([listed], now_s=5.0)
    board.apply([fact("r", Kind.STEP_STARTED, 4.0, "s7", node="n", kind="llm")])
    assert board.get("r").steps == 7, "it was counted already"
    board.apply([fact("r", Kind.STEP_STARTED, 6.0, "s8", node="n", kind="llm")])
    assert (board.get("r").steps, board.get("r").deadline_s) == (8, 11.0)


def test_an_ended_run_of_the_list_is_judged_by_its_slo():
    board = Board()
    rows = [("in", RunStatus.SUCCEEDED, 9.0, 10.0), ("late", RunStatus.SUCCEEDED, 12.0, 10.0)]
    rows += [("failed", RunStatus.FAILED, 2.0, 10.0), ("free", RunStatus.SUCCEEDED, 2.0, None)]
    board.take([RunSummary(name, "w", status, 0.0, end, slo, 1) for name, status, end, slo in rows], 20.0)
    assert [board.get(name).attained for name, *_ in rows] == [True, False, False, None]


def test_a_long_run_keeps_its_newest_steps_and_the_count_of_all():
    board = Board()
    board.apply([submitted("r", 1.0)])
    board.apply([fact("r", Kind.STEP_STARTED, 2.0 + n, f"s{n}", node=f"n{n}", kind="llm") for n in range(MAX_BARS + 5)])
    row = board.get("r")
    assert (row.steps, len(row.bars), next(iter(row.bars))) == (MAX_BARS + 5, MAX_BARS, "s5")


def test_every_change_gives_a_row_a_newer_version():
    board = Board(version=100)
    board.apply([submitted("a", 1.0), submitted("b", 2.0)])
    before = board.get("a").version
    board.apply([ended("a", 3.0)])
    assert board.get("a").version > board.get("b").version > before > 100
