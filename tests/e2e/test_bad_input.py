"""Bad input at the command line: one clear message, the right exit code, nothing left running."""

import socket
from pathlib import Path

import pytest

from agentserve.local.process import free_port
from tests.e2e.live import agentserve


async def test_unreadable_fleet_file(tmp_path: Path) -> None:
    done = await agentserve("up", "--fleet", str(tmp_path / "none.toml"))
    assert done.code == 2
    assert "none.toml: cannot be read" in done.err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model = ", "not TOML"),
        ('model = "llama-3.1-8b"', "workers: Field required"),
        ('model = "llama-3.1-8b"\nsped = 2\n[[workers]]\ngpu = "h100"', "sped: Extra inputs are not permitted"),
        ('model = "llama-3.1-8b"\n[[workers]]\ngpu = "tpu"', "h200"),
        ('model = "llama-3.1-8b"\n[[workers]]\ngpu = "h100"\ncount = 0', "workers.0.count"),
    ],
)
async def test_bad_fleet_file_names_the_key_and_what_is_allowed(tmp_path: Path, text: str, complaint: str) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(text)
    done = await agentserve("up", "--fleet", str(fleet))
    assert done.code == 2
    assert str(fleet) in done.err
    assert complaint in done.err


async def test_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = await agentserve("up", "--port", str(port))
    assert done.code == 4
    assert f"port {port} on 127.0.0.1 is in use" in done.err


async def test_gateway_without_redis() -> None:
    port = free_port()
    done = await agentserve("gateway", "--redis", f"redis://:secret@127.0.0.1:{port}/0", "--port", str(free_port()))
    assert done.code == 4
    assert f"127.0.0.1:{port}" in done.err
    assert "secret" not in done.err


async def test_bad_environment_value_is_named() -> None:
    done = await agentserve("gateway", AGENTSERVE_STALL_TIMEOUT_S="-3")
    assert done.code == 2
    assert "AGENTSERVE_STALL_TIMEOUT_S='-3'" in done.err


async def test_unknown_policy_names_the_known_ones() -> None:
    done = await agentserve("gateway", "--policy", "psychic")
    assert done.code == 2
    assert "goodserve" in done.err


async def test_worker_with_an_unknown_gpu() -> None:
    done = await agentserve("worker", "--engine", "http://127.0.0.1:9", "--gpu", "voodoo2", "--model", "llama-3.1-8b")
    assert done.code == 2
    assert "voodoo2" in done.err
    assert "h100" in done.err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("run", "workflows.catalog.debate:graph", "--slo", "0s"), "--slo '0s'"),
        (("run", "workflows.catalog.debate:graph", "--slo", "soon"), "--slo 'soon'"),
    ],
)
async def test_bad_flags_of_run(args: tuple[str, ...], complaint: str) -> None:
    done = await agentserve(*args)
    assert done.code == 2
    assert complaint in done.err


async def test_no_gateway_says_how_to_start_one() -> None:
    done = await agentserve("ps", "--gateway", f"http://127.0.0.1:{free_port()}")
    assert done.code == 4
    assert "agentserve up" in done.err


async def test_trace_file_that_is_not_there(tmp_path: Path) -> None:
    done = await agentserve("verify-log", str(tmp_path / "none.jsonl"))
    assert done.code == 2
    assert "cannot be read" in done.err
