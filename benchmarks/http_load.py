"""How does a benchmark send HTTP without costing more than what it measures? Bytes over a socket, hardly parsed.

Only what the gateway answers is understood: a length, or chunks that end in an empty one. What comes is not kept.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

_LAST_CHUNK = b"0\r\n\r\n"


class Connection:
    """One connection that is kept; one request at a time. An answer that is not 2xx raises SystemExit with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Self]:
        """A connection to `url`, closed at the end."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
        try:
            yield cls(reader, writer, parts.netloc)
        finally:
            writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a request and read its answer to the end."""
        status = await self.begin(method, path, body, headers)
        rest = await self._read_body()
        if not 200 <= status < 300:
            raise SystemExit(f"{method} {path}: {status} {rest.decode(errors='replace')[:500]}")

    async def begin(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
        """Send a request and read the head of its answer; its status."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._writer.write("\r\n".join((*lines, "content-type: application/json", "", "")).encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._length = _content_length(head)
        return int(head.split(b" ", 2)[1])

    async def _read_body(self) -> bytes:
        if self._length is not None:
            return await self._reader.readexactly(self._length)
        tail = b""
        while not tail.endswith(_LAST_CHUNK):
            piece = await self._reader.read(2**16)
            if not piece:
                raise SystemExit("an answer broke off")
            tail = (tail + piece)[-512:]
        return tail


class Sink:
    """Takes POSTs and counts them; answers 200 with nothing, which an OTLP exporter takes for success."""

    def __init__(self) -> None:
        self.requests = 0
        self.received_bytes = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection until it is closed."""
        try:
            while True:
                length = _content_length(await reader.readuntil(b"\r\n\r\n")) or 0
                await reader.readexactly(length)
                self.requests += 1
                self.received_bytes += length
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(sink: Sink) -> AsyncIterator[str]:
    """The sink on a free port of loopback; its URL."""
    server = await asyncio.start_server(sink.take, "127.0.0.1", 0, limit=2**22)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _content_length(head: bytes) -> int | None:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return None
