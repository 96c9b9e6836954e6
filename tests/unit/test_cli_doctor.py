"""What `agentserve doctor` prints and with which code it ends, where nothing is there to be found."""

import os
from collections.abc import Sequence

import orjson
import pytest
from typer.testing import CliRunner, Result

from agentserve.cli import app
from agentserve.errors import BadInput

NOWHERE = (
    "--gateway", "http://me:hunter2@127.0.0.1:1", "--redis", "redis://me:hunter2@127.0.0.1:1/0", "--mqtt", "",
    "--otlp", "http://me:hunter2@127.0.0.1:1", "--engine", "http://127.0.0.1:1,h100", "--timeout", "2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTSERVE_")]:
        monkeypatch.delenv(name)


def run(*flags: str, columns: int = 200) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["doctor", *flags])


def test_problems_end_with_code_1_and_say_what_to_do() -> None:
    result = run(*NOWHERE)
    assert result.exit_code == 1
    for words in ("set AGENTSERVE_REDIS_URL to where it is", "engine http://127.0.0.1:1", "4 problem"):
        assert words in result.output


def test_no_login_is_printed() -> None:
    for flags in (NOWHERE, (*NOWHERE, "--json")):
        assert "hunter2" not in run(*flags).output


def test_json_has_every_finding_with_the_same_keys() -> None:
    result = run(*NOWHERE, "--json")
    told = orjson.loads(result.stdout)
    assert result.exit_code == 1
    assert told["counts"] == {"ok": 1, "problem": 4}
    assert {tuple(finding) for finding in told["findings"]} == {("part", "check", "verdict", "found", "fix")}
    assert [f["part"] for f in told["findings"]] == [
        "gateway",
        "redis",
        "broker",
        "engine http://127.0.0.1:1",
        "traces",
    ]
    assert all((finding["fix"] is None) == (finding["verdict"] == "ok") for finding in told["findings"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "http://h:1,,"], "give URL, URL,GPU or URL,GPU,MODEL"),
        (["--engine", "ftp://h:1"], "engine URL"),
        (["--timeout", "0"], "--timeout 0"),
        (["--cluster", "a b"], "AGENTSERVE_CLUSTER"),
        (["--profiles", "/no/such/file"], "profile file"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_asked(flags: Sequence[str], words: str) -> None:
    result = run(*flags)
    assert isinstance(result.exception, BadInput)
    assert words in str(result.exception)
