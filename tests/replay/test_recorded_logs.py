"""Logs of live runs replay through a fresh core to the very same decisions."""

import gzip
import json
from pathlib import Path

import pytest

from scheduler.core import make_scheduler
from scheduler.wire import replay

LOGS = sorted((Path(__file__).parent / "data").glob("*.jsonl.gz"))


def lines_of(log: Path) -> list[str]:
    with gzip.open(log, "rt", encoding="utf-8") as lines:
        return list(lines)


def test_there_are_logs_of_both_policies() -> None:
    assert [log.name for log in LOGS] == ["agentserve.jsonl.gz", "goodserve.jsonl.gz"]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_a_recorded_log_replays_to_identical_decisions(log: Path) -> None:
    assert replay(lines_of(log), make_scheduler) is None


def kinds(log: Path) -> tuple[set[str], set[str]]:
    """Kinds of event and of decision that a log holds."""
    records = [json.loads(line) for line in lines_of(log)[1:]]
    decided = {decision["type"] for record in records for decision in record["decisions"]}
    return {record["event"]["type"] for record in records}, decided


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_a_recorded_log_holds_a_lost_engine_and_its_calls(log: Path) -> None:
    happened, decided = kinds(log)
    assert {"RequestArrived", "FirstToken", "Progress", "RequestFinished", "RequestFailed", "InstanceLost"} <= happened
    assert {"Dispatch", "WakeAt"} <= decided


def test_the_log_of_our_policy_holds_migrations() -> None:
    assert "Migrate" in kinds(LOGS[0])[1]


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_a_log_with_one_changed_decision_is_told_by_its_line(log: Path) -> None:
    lines = lines_of(log)
    number = next(i for i, line in enumerate(lines[1:], start=1) if '"type":"Dispatch"' in line)
    changed = json.loads(lines[number])
    changed["decisions"][0]["decode_instance"] = "nowhere"
    mismatch = replay([*lines[:number], json.dumps(changed), *lines[number + 1 :]], make_scheduler)
    assert mismatch is not None
    assert mismatch.line == number
