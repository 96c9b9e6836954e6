"""How the embedded broker is found, started and stopped, and what it says when it cannot be."""

import asyncio
import importlib.util
import shutil
import signal
import socket
from pathlib import Path

import pytest

from agentserve.errors import BadInput, Unavailable
from agentserve.local.broker import BrokerConfig, find_broker_command, run_broker
from agentserve.local.process import ChildProcess, free_port, tcp_ready
from tests.integration.worker_parts import HOST, broker_process


def test_without_a_mosquitto_the_command_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_broker_command(1234)[1:] == ["-m", "agentserve", "broker", "--port", "1234"]


def test_a_mosquitto_listens_on_loopback_only_and_reads_a_private_file() -> None:
    binary, flag, path = find_broker_command(1234, mosquitto="/opt/mosquitto")
    assert (binary, flag) == ("/opt/mosquitto", "-c")
    assert Path(path).read_text("utf-8").splitlines()[:2] == ["listener 1234 127.0.0.1", "allow_anonymous true"]


async def test_without_any_broker_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install agentserve\[local\]"):
        find_broker_command(1234)
    with pytest.raises(Unavailable, match=r"pip install agentserve\[local\]"):
        await run_broker(BrokerConfig(port=1234))


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use"):
            await run_broker(BrokerConfig(port=port))


@pytest.mark.parametrize("bad", [{"port": 0}, {"port": 65_536}, {"username": "me"}, {"password": "hunter2"}])
def test_a_bad_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        BrokerConfig(**bad)  # type: ignore[arg-type]  # bad on purpose
    assert "hunter2" not in str(caught.value)


async def test_our_own_broker_command_serves_until_it_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    port = free_port()
    process = ChildProcess("broker", find_broker_command(port), probe=tcp_ready(HOST, port))
    async with process:
        process._signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_our_broker_ends_at_once_though_clients_stay() -> None:
    port = free_port()
    async with broker_process("amqtt", port) as process:
        _, writer = await asyncio.open_connection(HOST, port)
        process._signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        writer.close()
