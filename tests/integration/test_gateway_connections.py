"""Clients that say little, say it slowly, or do not read: each is cut off, and others are served all the while."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from agentserve.errors import TooLarge
from agentserve.gateway.bodies import MAX_MESSAGES, check_call, read_json
from agentserve.gateway.connections import MAX_HEAD_BYTES, bounded
from agentserve.gateway.errors import SlowBody
from tests.integration.gateway_parts import until

HEAD = b"GET / HTTP/1.1\r\nhost: here\r\n"
LONG_S = 3600.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with as many bytes as the path says."""
    assert scope["type"] == "http"
    content = b"x" * int(scope["path"].strip("/") or 2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]})
    await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def served(
    head_timeout_s: float = LONG_S, max_connections: int = 100, stuck_reader_s: float = LONG_S
) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        kind = bounded(head_timeout_s, max_connections, stuck_reader_s)
        server = uvicorn.Server(uvicorn.Config(app, http=kind, ws="none", lifespan="off", log_config=None))
        task = asyncio.create_task(server._serve([listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1], server
        finally:
            server.should_exit = server.force_exit = True
            await task


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, also by a reset."""
    content = b""
    try:
        while more := await reader.read(65_536):
            content += more
    except ConnectionError:
        pass
    return content


async def test_a_head_that_never_ends_is_cut_off_while_others_are_served() -> None:
    async with served(head_timeout_s=0.3) as (port, _), connected(port) as (slow, writer):
        writer.write(HEAD)
        async with connected(port) as (reader, other):
            other.write(HEAD + b"connection: close\r\n\r\n")
            assert (await ended(reader)).startswith(b"HTTP/1.1 200")
        assert await ended(slow) == b""


async def test_a_connection_that_says_nothing_and_a_second_head_that_stops_are_cut_off() -> None:
    async with (
        served(head_timeout_s=0.3) as (port, _),
        connected(port) as (silent, _),
        connected(port) as (reader, second),
    ):
        second.write(HEAD + b"\r\n" + HEAD)
        assert await ended(silent) == b""
        content = await ended(reader)
        assert content.count(b"HTTP/1.1 200") == 1


async def test_headers_over_the_limit_are_refused_whether_at_once_or_bit_by_bit() -> None:
    async with served() as (port, _):
        for piece in (MAX_HEAD_BYTES * 2, 1000):
            async with connected(port) as (reader, writer):
                writer.write(HEAD)
                for i in range(2 * MAX_HEAD_BYTES // piece):
                    writer.write(b"x-%d: " % i + b"a" * piece + b"\r\n")
                assert (await ended(reader)).startswith(b"HTTP/1.1 431")


async def test_a_connection_over_the_limit_is_closed_and_a_place_that_is_left_can_be_had() -> None:
    async with served(max_connections=1) as (port, server):
        async with connected(port) as (_, __):
            await until(lambda: len(server.server_state.connections) == 1)
            async with connected(port) as (reader, writer):
                writer.write(HEAD + b"\r\n")
                assert await ended(reader) == b""
        await until(lambda: not server.server_state.connections)
        async with connected(port) as (reader, writer):
            writer.write(HEAD + b"connection: close\r\n\r\n")
            assert (await ended(reader)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_reads_nothing_of_a_long_answer_is_cut_off() -> None:
    async with served(stuck_reader_s=0.3) as (port, server), connected(port, limit=1024) as (_, writer):
        writer.write(HEAD.replace(b" / ", b" /50000000 ") + b"\r\n")
        await until(lambda: bool(server.server_state.connections))
        await until(lambda: not server.server_state.connections)


async def test_a_body_that_does_not_come_is_refused() -> None:
    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.Event().wait()
        sent.append(True)
        return {"type": "http.request", "body": b"{", "more_body": True}

    sent: list[bool] = []
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(SlowBody, match=r"0\.01 s"):
        await read_json(request, 1000, timeout_s=0.01)


def test_too_many_messages_are_refused() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": ""}] * (MAX_MESSAGES + 1)}
    with pytest.raises(TooLarge, match="messages"):
        check_call("/v1/chat/completions", body, 10**6)
