"""How is one HTTP/1.1 exchange read without per-chunk overhead? An asyncio protocol around httptools' parser."""

import asyncio
from typing import Final

import httptools
import httpx

MAX_HEAD_BYTES: Final = 64 * 1024
_PAUSE_ABOVE_BYTES: Final = 1024 * 1024


class Connection(asyncio.Protocol):
    """One connection to an engine, serving one exchange after another.

    Errors are httpx's: RemoteProtocolError and ReadError for what the engine did, ReadTimeout for its silence.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since_s = 0.0
        self.is_open = False
        self._is_idle = True
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self._keeps_alive = False
        self._head_done = False
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._paused = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._due_s = 0.0

    async def exchange(self, head: bytes, content: bytes, timeout_s: float | None) -> None:
        """Send a request and wait for the head of its response."""
        self._begin()
        self._is_idle = False
        if self._transport is None or not self.is_open:
            raise httpx.ReadError("the connection was closed")
        self._transport.write(head + content if len(content) < 65_536 else head)
        if len(content) >= 65_536:
            self._transport.write(content)
        while not self._head_done:
            await self._more(timeout_s)

    async def read(self, timeout_s: float | None) -> bytes:
        """The next bytes of the body, all that are there; empty at its end."""
        while not self._body:
            if self.is_complete:
                return b""
            await self._more(timeout_s)
        content = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return content

    def release(self) -> bool:
        """End the exchange; whether the connection can take another. If not it is closed, which aborts the call."""
        reusable = self.is_open and self.is_complete and not self._body and self._keeps_alive
        if not reusable:
            self.close()
            return False
        self._is_idle = True
        self.idle_since_s = self._loop.time()
        return True

    def close(self) -> None:
        """Close at once."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _more(self, timeout_s: float | None) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        if timeout_s is not None:
            self._due_s = self._loop.time() + timeout_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._due_s, self._check_silence)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _check_silence(self) -> None:
        """One timer per connection: it moves on lazily, so that a chunk costs no timer of its own."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() >= self._due_s:
            self._waiter.set_exception(httpx.ReadTimeout("no bytes came in time"))
        else:
            self._timer = self._loop.call_at(self._due_s, self._check_silence)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: httpx.TransportError) -> None:
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio opened the connection."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport by construction
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._is_idle:  # nobody asked for anything
            self.close()
            return
        self._head_bytes += 0 if self._head_done else len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"not HTTP: {error}"))
            return
        if not self._head_done and self._head_bytes > MAX_HEAD_BYTES:  # a body may well come in the same read
            self._fail(httpx.RemoteProtocolError("the response's head is too long"))
            return
        if self._body_bytes > _PAUSE_ABOVE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The engine says no more; the connection ends with that."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.is_open = False
        if self.is_complete or self._is_idle:
            self._wake()
        elif self._head_done and not self._has_length():
            self.is_complete = True  # a body that ends with the connection
            self._wake()
        elif exc is None:
            self._fail(httpx.RemoteProtocolError("the engine closed the connection before its answer was complete"))
        else:
            self._fail(httpx.ReadError(f"the connection broke: {exc}"))

    def _has_length(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # -- httptools -----------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the response."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete; a 1xx one is followed by another."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
        else:
            self._head_done = True

    def on_body(self, body: bytes) -> None:
        """A part of the body, freed of its chunk framing."""
        self._body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """The response is complete."""
        if self._head_done:
            self.is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()
