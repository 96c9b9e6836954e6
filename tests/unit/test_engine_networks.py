"""Where engines may be that workers announce: private networks, and no way around by names or other spellings."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from agentserve.engines.networks import Networks
from agentserve.engines.transport import EngineTransport
from agentserve.errors import BadInput
from agentserve.settings import Settings

DEFAULT = Networks.parse(Settings().engine_networks)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.1.2.3", "172.31.0.9", "192.168.7.7", "fd12::1", "::ffff:10.0.0.1"]
)
def test_this_machine_and_private_networks_are_allowed(address: str) -> None:
    assert DEFAULT.hold(address)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "8.8.8.8", "2001:db8::1", "fd00:ec2::254", "0.0.0.0",
     "localhost", ""],
)  # fmt: skip
def test_metadata_services_and_the_rest_of_the_world_are_not(address: str) -> None:
    assert not DEFAULT.hold(address)


def test_a_network_may_be_named_and_a_metadata_service_only_alone() -> None:
    assert Networks.parse("8.8.8.0/24, 2001:db8::/32").hold("8.8.8.8")
    assert not Networks.parse("fd00::/8").hold("fd00:ec2::254")
    assert Networks.parse("fd00:ec2::254/128").hold("fd00:ec2::254")
    assert not Networks.parse("").hold("127.0.0.1")
    with pytest.raises(ValidationError, match="engine_networks"):
        Settings(engine_networks="10.0.0.0/33")


def test_an_announced_address_is_refused_at_once_and_a_name_where_it_is_resolved() -> None:
    DEFAULT.check_announced("http://10.0.0.7:8000", None)
    DEFAULT.check_announced("http://anything.example:8000", "anything.example:9000")
    DEFAULT.check_announced("http://engine.example:8000", "10.0.0.7:9000")
    for url, kv in (
        ("http://169.254.169.254/latest", None),
        ("http://[2001:db8::1]:8000", None),
        ("http://10.0.0.7:8000", "169.254.169.254:80"),
        ("http://10.0.0.7:8000", "other.example:80"),
        ("http://[broken", None),
    ):
        with pytest.raises(BadInput):
            DEFAULT.check_announced(url, kv)


@pytest.mark.parametrize("answers", [["169.254.169.254"], ["8.8.8.8", "2001:db8::1"], []])
async def test_a_name_that_means_another_network_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    loop = asyncio.get_running_loop()

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    async def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("it was connected to")

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    monkeypatch.setattr(loop, "create_connection", connect)
    async with httpx.AsyncClient(transport=EngineTransport(1.0, DEFAULT)) as client:
        with pytest.raises(httpx.ConnectError, match="AGENTSERVE_ENGINE_NETWORKS"):
            await client.get("http://engine.example/health")


async def test_the_address_that_was_looked_at_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, asked = asyncio.get_running_loop(), list[str]()

    async def lookup(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://8.8.8.8/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    async with server, httpx.AsyncClient(transport=EngineTransport(1.0, DEFAULT)) as client:
        answer = await client.get(f"http://engine.example:{server.sockets[0].getsockname()[1]}/health")
    assert answer.status_code == 307, "a redirect is an answer like any other"
    assert asked[0] == "engine.example"
