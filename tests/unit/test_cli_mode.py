"""What `agentserve mode` prints."""

from io import StringIO
from typing import Any

from rich.console import Console

from agentserve.cli.mode import picture, remarks
from agentserve.telemetry.mode_figures import figures

RUNS = {"runs": 40, "with_slo": 40, "attained": 20, "e2e:47": 40, "dispatches": 90}
ESTIMATE = {
    "estimate.runs": 40,
    "estimate.attained": 30,
    "estimate.taken_attained": 22,
    "estimate.measured_attained": 20,
    "estimate.agrees": 36,
    "estimate.calls": 90,
    "estimate.elsewhere": 60,
    "estimate.kept": 2,
    "estimate.e2e:40": 40,
    "estimate.error:-14": 40,
}


def told(mode: str = "observe", **figures_: Any) -> dict[str, Any]:
    modes = ["observe", "route", "migrate", "split"]
    known = {"since_s": 0.0, "until_s": None}
    return {
        "mode": mode,
        "modes": modes,
        "policy": "agentserve",
        "observed_policy": "least_requests",
        "figures": {name: known | figures(figures_[name]) if name in figures_ else None for name in modes},
    }


def printed(answer: dict[str, Any]) -> list[str]:
    console = Console(width=100, file=StringIO())
    console.print(picture(answer))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is a StringIO


def row(answer: dict[str, Any], name: str) -> list[str]:
    (line,) = [line for line in printed(answer) if line.strip(" │▸").startswith(name)]
    return [cell.strip(" ▸") for cell in line.strip(" │").split("│")]


def test_each_mode_has_its_line() -> None:
    answer = told("route", observe=RUNS, route=RUNS | {"attained": 32, "migrations": 7})
    assert row(answer, "observe") == ["observe", "least_requests", "40", "50.0%", "10.15 s", "10.15 s", "0", "0"]
    assert row(answer, "route") == ["route", "agentserve", "40", "80.0%", "10.15 s", "10.15 s", "7", "0"]
    assert row(answer, "split") == ["split", "agentserve", *"––––––"]
    (marked,) = [line for line in printed(answer) if "▸" in line]
    assert " route " in marked


def test_the_estimate_is_shown_as_one_with_its_error() -> None:
    answer = told(observe=RUNS | ESTIMATE)
    assert row(answer, "estimated")[:5] == ["estimated", "agentserve", "40", "75.0%", "7.21 s"]
    first, second = remarks(answer)
    assert first.startswith("The estimate is no measurement.")
    assert "say 55.0% in time where 50.0% were" in first
    assert "off by 0.52 s" in first
    assert second == "60 of 90 calls would have gone elsewhere, 2 waited."


def test_without_the_store_the_mode_is_told_without_figures() -> None:
    answer = told() | {"figures": None, "problem": "Redis at x: the connection failed"}
    assert row(answer, "observe")[1:3] == ["least_requests", "–"]
    assert remarks(answer) == ["figures are unknown: Redis at x: the connection failed"]


def test_nothing_is_remarked_where_nothing_was_estimated() -> None:
    assert remarks(told("split", split=RUNS)) == []
