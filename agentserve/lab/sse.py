"""When did the first and the last token of a stream come, and how many were there? Counted with little work per chunk.

Only the first chunks (until a token shows) and the end of a stream are parsed; what lies between is not looked at.
"""

from typing import Any, Final

import orjson

_MAX_HEAD_BYTES: Final = 256 * 1024
_TAIL_BYTES: Final = 8192


class StreamMeter:
    """Feed it the raw bytes of an SSE response with the time of each; then `finish`."""

    def __init__(self) -> None:
        self.first_token_s: float | None = None
        self.last_s: float | None = None
        self.output_tokens = 0
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.error: str | None = None
        self._head = b""
        self._tail = b""
        self._chunks = 0

    def feed(self, data: bytes, at_s: float) -> None:
        """Take the next bytes."""
        self.last_s = at_s
        self._chunks += data.count(b"data: ")
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self.first_token_s is None:
            self._head += data
            if self._shows_a_token():
                self.first_token_s = at_s

    def finish(self) -> None:
        """Read usage and errors from the end; an end without `[DONE]` is an error."""
        is_done = False
        usage: Any = None
        for line in self._tail.split(b"\n"):
            if not line.startswith(b"data: "):
                continue
            if line[6:].strip() == b"[DONE]":
                is_done = True
                continue
            chunk = _object(line[6:])
            if chunk.get("error"):
                self.error = error_text(chunk)
            usage = chunk.get("usage") or usage
        if isinstance(usage, dict):
            self.output_tokens = int(usage.get("completion_tokens") or 0)
            self.prompt_tokens = usage.get("prompt_tokens")
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        else:
            self.output_tokens = max(0, self._chunks - 1)
        if not is_done and self.error is None:
            self.error = "the stream broke off"

    def _shows_a_token(self) -> bool:
        *whole, self._head = self._head.split(b"\n")
        if len(self._head) > _MAX_HEAD_BYTES:
            self._head = b""
        for line in whole:
            if not line.startswith(b"data: {"):
                continue
            for choice in _object(line[6:]).get("choices") or ():
                delta = choice.get("delta") or choice
                if delta.get("content") or delta.get("text") or delta.get("tool_calls") or choice.get("token_ids"):
                    return True
        return False


def error_text(answer: dict[str, Any]) -> str:
    """The message in an OpenAI-shaped error, at most 200 characters."""
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "an error without a message")[:200]


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
