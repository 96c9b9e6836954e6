"""What the command line makes of flags, of a graph's failure, and of two decisions that differ."""

from typing import Any

import pytest

from agentserve.cli.values import duration_s, failure, first_difference
from agentserve.errors import BadInput


@pytest.mark.parametrize(("text", "seconds"), [("20", 20), ("20s", 20), ("500ms", 0.5), ("2m", 120), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text, "--slo") == seconds


@pytest.mark.parametrize("text", ["", "0", "-5s", "nan", "inf", "1e999", "banana", "5 parsecs"])
def test_what_is_no_positive_time_is_refused_by_the_flags_name(text: str) -> None:
    with pytest.raises(BadInput, match="--slo"):
        duration_s(text, "--slo")


def raise_deep() -> None:
    raise KeyError("question")


def test_a_failure_names_the_lines_of_the_graphs_own_code() -> None:
    with pytest.raises(KeyError) as caught:
        raise_deep()
    first, *frames = failure(caught.value).split("\n")
    assert first == "KeyError: 'question'"
    assert frames[-1].strip().startswith(f"{__file__}:")
    assert frames[-1].endswith('in raise_deep: raise KeyError("question")')


def test_a_failure_shows_no_frames_of_installed_packages() -> None:
    with pytest.raises(ValueError, match="Expecting") as caught:
        __import__("json").loads("{")
    assert [line for line in failure(caught.value).split("\n")[1:] if "json" in line.partition(" in ")[0]] == []


@pytest.mark.parametrize(
    ("recorded", "replayed", "told"),
    [
        ([{"a": {"b": 1}}], [{"a": {"b": 2}}], "decisions[0].a.b is 1 in the log, 2 when replayed"),
        ([{"a": 1}], [{"a": 1, "b": 2}], "decisions[0].b is null in the log, 2 when replayed"),
        ([], [{"a": 1}], 'decisions is [] in the log, [{"a":1}] when replayed'),
        ([1, "x"], [1, "y"], 'decisions[1] is "x" in the log, "y" when replayed'),
    ],
)
def test_the_first_difference_is_named_by_its_path(recorded: Any, replayed: Any, told: str) -> None:
    assert first_difference(recorded, replayed) == told


def test_a_long_difference_is_cut() -> None:
    assert len(first_difference([], ["x" * 10_000])) < 400
