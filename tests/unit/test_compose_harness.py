"""`make compose-test` where it cannot be done: it says so and does not pass; what it leaves behind it tells."""

import dataclasses

import pytest

from tests.compose import __main__ as harness
from tests.compose import daemon, host
from tests.compose.commands import CannotRun


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "machines_own", lambda: None)
    monkeypatch.setattr(harness.signal, "signal", lambda *_: None)


def test_without_rights_it_says_so_and_does_not_pass(
    no_docker: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon.os, "geteuid", lambda: 1000)
    assert harness.main() == harness.CANNOT_RUN != 0
    told = capsys.readouterr()
    assert "compose-test cannot run: no Docker daemon answers and we are not root" in told.err
    assert "passed" not in told.out


def test_a_machine_without_namespaces_is_told_apart(no_docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.os, "geteuid", lambda: 0)
    monkeypatch.setattr(daemon, "works", lambda *_: False)
    with pytest.raises(CannotRun, match="does not let root make namespaces"):
        daemon.check_rights()


def test_what_was_left_behind_fails_a_run_that_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = host.look()
    after = dataclasses.replace(before, interfaces=before.interfaces | {"docker0"})
    monkeypatch.setattr(harness, "_with_some_docker", lambda _: 0)
    monkeypatch.setattr(harness.signal, "signal", lambda *_: None)
    monkeypatch.setattr(host, "as_before", lambda then: then.changes(after))
    monkeypatch.setattr(host, "look", lambda: before)
    assert harness.main() == 1
    assert "LEFT BEHIND: interfaces: docker0" in capsys.readouterr().out


def test_only_what_is_new_is_left_behind() -> None:
    now = host.look()
    assert now.changes(now) == []
    assert now.changes(dataclasses.replace(now, mounts=frozenset(), forwarding="2")) == [
        f"forwarding: 2, was {now.forwarding}"
    ]
