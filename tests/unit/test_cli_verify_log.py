"""`agentserve verify-log` names the line at which a file stops being an event log."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentserve.cli import app
from agentserve.errors import BadInput
from scheduler.config import SchedulerConfig
from scheduler.wire import header

HEAD = json.dumps(header("agentserve", SchedulerConfig(), 0))


@pytest.mark.parametrize("row", ["[1, 2]", "7", '{"now_s": 1}', '{"now_s": 1, "event": {"type": "Odd"}}', "{", "\x00"])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, row: str) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(f"{HEAD}\n{row}\n")
    done = CliRunner().invoke(app, ["verify-log", str(log)])
    assert isinstance(done.exception, BadInput)
    assert str(done.exception).startswith(f"event log {log}: line 2: not an event log")


def test_a_log_of_nothing_but_its_head_is_identical(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(f"{HEAD}\n")
    done = CliRunner().invoke(app, ["verify-log", str(log), "--json"])
    assert json.loads(done.output) == {"lines": 1, "identical": True}
