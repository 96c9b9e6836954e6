"""What may a connection cost that says little, or says it slowly? uvicorn's protocol with limits that it lacks.

uvicorn closes a connection that is idle between two requests. One that never sends a whole head, or reads nothing of
its answer, it would keep for ever, and it takes heads of any size. Bodies are bounded in `bodies.py`.
"""

import asyncio
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: 26\r\n\r\nthe headers are too large\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection of at most `max_connections`: a whole head within `head_timeout_s` and MAX_HEAD_BYTES.

    A client for which answers pile up that it has not read for `stuck_reader_s` is cut off.
    """

    head_timeout_s: ClassVar[float] = 15.0
    stuck_reader_s: ClassVar[float] = 60.0
    max_connections: ClassVar[int] = 4096
    _head_timer: asyncio.TimerHandle | None = None
    _stuck_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        """A client connected; one too many is sent away without a word."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._begin_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # A body may come in the same read as its head: only what is still no head is too large.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A further request begins."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._head_bytes = False, 0
        self._end_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole; the next bytes are another's head."""
        super().on_message_complete()
        self._in_head = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._end_timer()
        self._read_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slower than its answer comes."""
        super().pause_writing()
        self._read_on()
        self._stuck_timer = self.loop.call_later(self.stuck_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        self._read_on()

    def _read_on(self) -> None:
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
            self._stuck_timer = None

    def _begin_head(self) -> None:
        self._in_head = True
        self._end_timer()
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded(head_timeout_s: float, max_connections: int, stuck_reader_s: float = 60.0) -> type[BoundedProtocol]:
    """The protocol with these limits, as uvicorn takes it."""
    limits = {"head_timeout_s": head_timeout_s, "max_connections": max_connections, "stuck_reader_s": stuck_reader_s}
    return type("Bounded", (BoundedProtocol,), limits)
