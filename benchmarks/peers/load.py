"""How is a router put under load without costing more than it? Raw sockets, and as much parsing as a clock needs.

Every call is a chat that streams. Its first body bytes and each later read that brings events are timed; an answer ends
with `data: [DONE]`.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.peers.engine import GAP_S_PER_TEMPERATURE

_DONE = b"data: [DONE]"
_EVENT = b"data: "


class WrongAnswer(Exception):
    """A call got something else than the stream that it asked for: what was measured is worth nothing."""


@dataclass(slots=True)
class Timings:
    """Of one part of a load, in seconds; `chunks` counts events."""

    elapsed_s: float = 0.0
    calls: int = 0
    chunks: int = 0
    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """Between events, where every call is paced."""


class Caller(asyncio.Protocol):
    """One connection that is kept; one call at a time."""

    def __init__(self, timings: Timings, gap_s: float) -> None:
        self._timings, self._gap_s = timings, gap_s
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio opened the connection."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    async def call(self, request: bytes) -> None:
        """Send it and read the answer to its end; WrongAnswer if it is not the one that was asked for."""
        self._ended = self._loop.create_future()
        self._tail, self._head, self._last_s = b"", b"", 0.0
        self._began_s = time.perf_counter()
        self.transport.write(request)
        await self._ended
        self._timings.calls += 1

    def data_received(self, data: bytes) -> None:
        """A read of the answer."""
        now_s, timings = time.perf_counter(), self._timings
        if not self._last_s and not self._head:
            self._head = data
            if not data.startswith(b"HTTP/1.1 200"):
                self._fail(data)
                return
        events = data.count(_EVENT)
        if events:
            timings.chunks += events
            if not self._last_s:
                timings.ttft_s.append(now_s - self._began_s)
            elif self._gap_s:
                timings.gaps_s.append(now_s - self._last_s)
            self._last_s = now_s
        tail = self._tail + data
        # What ends the answer, with the end mark of its chunked body.
        if _DONE in tail[-len(data) - 16 :] and tail.endswith(b"0\r\n\r\n"):
            self._end()
        self._tail = tail[-256:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The router closed it."""
        self._fail(b"the connection was closed")

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, said: bytes) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(WrongAnswer(repr(said[:300])))


def request(url: str, model: str, chunks: int, gap_s: float, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A chat of a few words that streams, as bytes on the wire."""
    parts = urlsplit(url)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Which of these GPUs should decode, and why? " * 4}],
        "max_tokens": chunks,
        "temperature": gap_s / GAP_S_PER_TEMPERATURE,
        "stream": True,
    }
    content = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(content)}"]
    lines += ["content-type: application/json", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join((*lines, "", "")).encode() + content


async def play(
    url: str, one: bytes, *, concurrency: int, calls: int, gap_s: float = 0.0, seconds: float = 60.0
) -> Timings:
    """`calls` calls in all, `concurrency` at a time, each on its own kept connection; after `seconds` none begins."""
    parts = urlsplit(url)
    timings, left = Timings(), calls
    loop = asyncio.get_running_loop()

    async def caller() -> None:
        nonlocal left
        _, protocol = await loop.create_connection(lambda: Caller(timings, gap_s), parts.hostname, parts.port)
        try:
            while left > 0 and time.perf_counter() - began_s < seconds:
                left -= 1
                await protocol.call(one)
        finally:
            protocol.transport.abort()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(caller())
    timings.elapsed_s = time.perf_counter() - began_s
    return timings
