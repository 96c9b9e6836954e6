"""`agentserve ps` shows what the gateway knows, with and without its store."""

from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agentserve.cli import app, cluster
from agentserve.errors import Unavailable

INSTANCE = {"instance_id": "h100-1", "gpu": "h100", "role": "mixed", "state": "online", "reported": {"running": 3}}
ESTIMATE = {
    "instance_id": "h100-1", "prefill_correction": 1.04, "prefill_samples": 20.0, "decode_correction": 1.4,
    "decode_samples": 9.0, "drifted": ["decode"],
}  # fmt: skip
CLUSTER = {"policy": "agentserve", "instances": [INSTANCE], "scheduler": {"instances": [ESTIMATE]}}
RUNS = {"data": [{"run_id": "trip-42", "workflow": "trip", "steps": 2, "slo_s": 20.0}]}


def printed(monkeypatch: pytest.MonkeyPatch, runs: dict[str, Any] | Exception, *flags: str) -> str:
    def get_json(_: str, path: str) -> Any:
        if path == "/v1/cluster":
            return CLUSTER
        if isinstance(runs, Exception):
            raise runs
        return runs

    monkeypatch.setattr(cluster, "get_json", get_json)
    monkeypatch.setattr(cluster, "Console", lambda **more: Console(width=200, **more))
    return CliRunner().invoke(app, ["ps", *flags], catch_exceptions=False).output


def test_instances_and_live_runs_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, RUNS)
    assert "h100-1" in text
    assert "trip-42" in text


def test_without_the_store_the_instances_are_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, Unavailable("Redis at 127.0.0.1:6379: the connection failed"))
    assert "h100-1" in text
    assert "live runs are unknown: Redis at 127.0.0.1:6379: the connection failed" in text


def test_how_far_a_profile_is_off_is_shown_and_drift_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(line for line in printed(monkeypatch, RUNS).splitlines() if "h100-1" in line)
    assert "1.04" in row
    assert "1.04 drift" not in row
    assert "1.40 drift" in row


def test_a_correction_without_samples_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATE, "prefill_samples", 0.0)
    assert "1.04" not in printed(monkeypatch, RUNS)
