"""How do httpx clients reach an engine cheaply? A transport with a pool of lean connections; only HTTP/1.1.

httpx's own transport spends some 70 µs per streamed chunk in layers that a gateway pays once per token.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from functools import cache
from typing import Final

import httpx

from agentserve.engines.connection import Connection
from agentserve.engines.networks import Networks

MAX_IDLE: Final = 256
READ: Final = "agentserve.read"
"""Of a response's extensions: reads what has come of its body, empty at the end."""
_PORTS: Final = {"http": 80, "https": 443}


class EngineTransport(httpx.AsyncBaseTransport):
    """Connections to one engine: as many as there are calls, the idle ones kept for `keepalive_s`.

    Closing a response before its end closes its connection, by which engines notice that a call is given up.
    """

    def __init__(self, keepalive_s: float, networks: Networks | None = None) -> None:
        """`networks`: connect to addresses inside of them only."""
        self._networks = networks
        self._keepalive_s = keepalive_s
        self._idle: deque[Connection] = deque()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; httpx's TransportErrors. The response's stream is yet to be read."""
        timeouts = request.extensions.get("timeout", {})
        connection = self._take() or await self._connect(request.url, timeouts.get("connect"))
        try:
            await connection.exchange(_head(request), request.content, timeouts.get("read"))
        except BaseException:
            connection.close()
            raise
        stream = _Body(self, connection, timeouts.get("read"))
        return httpx.Response(
            connection.status,
            headers=connection.headers,
            stream=stream,
            request=request,
            extensions={READ: stream.read},
        )

    async def aclose(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended, if it can be used again."""
        if connection.release():
            self._idle.append(connection)
            if len(self._idle) > MAX_IDLE:
                self._idle.popleft().close()

    def _take(self) -> Connection | None:
        """The connection used last, since it is the least likely to be closed by now."""
        now_s = asyncio.get_running_loop().time()
        while self._idle and now_s - self._idle[0].idle_since_s > self._keepalive_s:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, url: httpx.URL, timeout_s: float | None) -> Connection:
        tls = _tls() if url.scheme == "https" else None
        port = url.port or _PORTS.get(url.scheme, 80)
        try:
            async with asyncio.timeout(timeout_s):
                loop, host = asyncio.get_running_loop(), url.host
                address = host if self._networks is None else await self._allowed(self._networks, host, port)
                name = host if tls is not None else None
                _, connection = await loop.create_connection(Connection, address, port, ssl=tls, server_hostname=name)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout_s:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    async def _allowed(self, networks: Networks, host: str, port: int) -> str:
        """The first address of a host that may be connected to."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, (address, *_) in found:
            if networks.hold(str(address)):
                return str(address)
        raise httpx.ConnectError("its address is outside of the networks of AGENTSERVE_ENGINE_NETWORKS")


class _Body(httpx.AsyncByteStream):
    """A response's body, read as it comes."""

    def __init__(self, pool: EngineTransport, connection: Connection, timeout_s: float | None) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._timeout_s = timeout_s

    async def read(self) -> bytes:
        """What has come, at least one byte; empty at the end."""
        return b"" if self._connection is None else await self._connection.read(self._timeout_s)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while content := await self.read():
            yield content

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)


def _head(request: httpx.Request) -> bytes:
    parts = [request.method.encode(), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        if b"\r" in value or b"\n" in value:
            raise httpx.LocalProtocolError(f"line break in header {name.decode('latin-1')}")
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()
