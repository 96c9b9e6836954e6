"""Which `data:` payloads are in the bytes of a server-sent event stream? A lean incremental splitter, no decoding."""

from agentserve.errors import EngineFailed

DONE = b"[DONE]"


class SseSplitter:
    """Turns raw chunks into the payloads of complete `data:` lines; comments and other fields are dropped.

    Bounded: raises EngineFailed for a line over `max_line_bytes` or a stream over `max_total_bytes`.
    """

    __slots__ = ("_max_line_bytes", "_max_total_bytes", "_rest", "_total")

    def __init__(self, max_line_bytes: int, max_total_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._max_total_bytes = max_total_bytes
        self._rest = b""
        self._total = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the payloads that they complete, in order."""
        self._total += len(chunk)
        if self._total > self._max_total_bytes:
            raise EngineFailed(f"the engine's stream is over {self._max_total_bytes} bytes", retryable=False)
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._max_line_bytes:
            raise EngineFailed(f"a line of the engine's stream is over {self._max_line_bytes} bytes", retryable=False)
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
