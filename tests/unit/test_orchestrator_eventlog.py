"""The event log: one file per life of a scheduler, bounded, never in the way."""

import json
from pathlib import Path

import pytest

from agentserve.errors import BadInput
from agentserve.orchestrator.eventlog import EventLog
from scheduler.events import Woke


def test_a_log_begins_with_its_header_and_has_a_line_per_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "deep" / "log.jsonl", {"policy": "p"})
    log.record(1.5, Woke(event_id="e1"), [])
    log.flush()
    header, line = [json.loads(text) for text in log.path.read_text().splitlines()]
    assert header == {"policy": "p"}
    assert line == {"now_s": 1.5, "event": {"type": "Woke", "event_id": "e1"}, "decisions": []}


def test_a_restart_begins_another_file(tmp_path: Path) -> None:
    first, second = (EventLog(tmp_path / "log.jsonl", {}) for _ in range(2))
    assert (first.path.name, second.path.name) == ("log.jsonl", "log-2.jsonl")


def test_at_its_bound_a_log_says_so_and_stops(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl", {}, max_bytes=100)
    for number in range(10):
        log.record(1.0, Woke(event_id=f"e{number}"), [])
        log.flush()
    lines = log.path.read_text().splitlines()
    assert "truncated" in lines[-1]
    assert len(lines) == 3


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        EventLog(tmp_path / "file" / "log.jsonl", {})
