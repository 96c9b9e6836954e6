"""What of a token stream has reached its caller, and how does it go on after a break? Pure: bytes in, bytes out.

Only whole server-sent events pass; one that was cut off is dropped and comes again. Token ids are kept as they pass, so
that a new connection can continue behind the last token whose text was delivered: ids after it (an incomplete
character has the text '') are left out and made again. A stream that cannot be continued exactly is not continued.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentserve.errors import TooLarge, Unavailable

_END_OF_EVENT: Final = re.compile(rb"\r?\n\r?\n")
_DONE: Final = b"[DONE]"
_STOPPING: Final = Unavailable.code
MAX_EVENT_BYTES: Final = 16 * 2**20


class StreamProgress:
    """One streamed call over all its connections."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        """`body`: the caller's OpenAI request."""
        self._body = body
        self._strip = not body.get("return_token_ids")
        self._wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._pending = b""
        self._prompt_ids: list[int] | None = None
        self._ids: list[int] = []
        self._settled = 0
        self._last: dict[str, Any] | None = None
        self._resumed = False
        self._exact = True
        self._finished = False
        self._usage_passed = False
        self._interrupted = False
        self.ended = False
        """The caller has got all there is: `[DONE]` or an error event."""

    def first_body(self) -> bytes:
        """The caller's request, asking for token ids beside the text."""
        return orjson.dumps({**self._body, "return_token_ids": True})

    def feed(self, data: bytes) -> bytes:
        """Take bytes off the wire; the whole events among them, as the caller may see them."""
        self._pending += data
        passed: list[bytes] = []
        start = 0
        for end in _END_OF_EVENT.finditer(self._pending):
            passed.append(self._event(self._pending[start : end.start()], self._pending[start : end.end()]))
            start = end.end()
        self._pending = self._pending[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            raise TooLarge(f"a server-sent event is larger than {MAX_EVENT_BYTES} bytes")
        return b"".join(passed)

    def resume_body(self) -> bytes | None:
        """The request that continues this stream on a new connection; None if it cannot be continued exactly."""
        self._pending = b""
        self._interrupted = False
        if self.ended or self._finished or not self._exact:
            return None
        self._resumed = self._last is not None
        if self._settled == 0:
            self._ids = []
            return self.first_body()
        if self._prompt_ids is None:
            return None
        del self._ids[self._settled :]
        resume = {"prompt_token_ids": self._prompt_ids, "token_ids": self._ids}
        return orjson.dumps({**self._body, "return_token_ids": True, "agentserve": {"resume": resume}})

    def closing(self) -> bytes | None:
        """What is left to say after a break behind the last token: usage if asked for, and `[DONE]`. Else None."""
        if not self._finished or self.ended:
            return None
        self.ended = True
        tail = b"data: [DONE]\n\n"
        if not self._wants_usage or self._usage_passed or self._prompt_ids is None or self._last is None:
            return tail
        prompt, output = len(self._prompt_ids), len(self._ids)
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        return b"data: " + orjson.dumps({**self._last, "choices": [], "usage": usage}) + b"\n\n" + tail

    def _event(self, event: bytes, raw: bytes) -> bytes:
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if self._interrupted:
            return b""
        if not data:
            return raw
        if data == _DONE:
            self.ended = True
            return raw
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict) or not _is_sound(chunk):
            self._exact = False
            return raw
        if "error" in chunk:
            return self._error(chunk["error"], raw)
        return self._chunk(chunk, raw)

    def _error(self, error: Any, raw: bytes) -> bytes:
        """A gateway that stops says so; that is a break like any other if the stream can be continued."""
        self._interrupted = isinstance(error, dict) and error.get("code") == _STOPPING and self._exact
        self.ended = not self._interrupted
        return b"" if self._interrupted else raw

    def _chunk(self, chunk: dict[str, Any], raw: bytes) -> bytes:
        changed = self._take_ids(chunk)
        if chunk.get("usage") and not chunk.get("choices"):
            self._usage_passed = True
        if self._last is None:
            self._last = {key: chunk[key] for key in ("id", "object", "created", "model") if key in chunk}
        elif self._resumed:
            if _repeats_opening(chunk):
                return b""
            chunk.update(self._last)
            changed = True
        return b"data: " + orjson.dumps(chunk) + b"\n\n" if changed else raw

    def _take_ids(self, chunk: dict[str, Any]) -> bool:
        """Keep the chunk's token ids, and take them out if the caller had not asked for them; whether it changed."""
        changed = False
        prompt_ids = chunk.get("prompt_token_ids")
        if self._strip and "prompt_token_ids" in chunk:
            del chunk["prompt_token_ids"]
            changed = True
        for choice in chunk.get("choices") or ():
            prompt_ids = prompt_ids or choice.get("prompt_token_ids")
            ids = choice.get("token_ids") or ()
            if self._strip:
                for key in ("prompt_token_ids", "token_ids"):
                    changed = choice.pop(key, self) is not self or changed
            self._take_choice(choice, ids)
        if prompt_ids and self._prompt_ids is None:
            self._prompt_ids = list(prompt_ids)
        return changed

    def _take_choice(self, choice: dict[str, Any], ids: Any) -> None:
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text")
        self._ids.extend(ids)
        if text:
            self._settled = len(self._ids)
        opaque = any(value for key, value in delta.items() if key not in ("role", "content"))
        if opaque or choice.get("index") or choice.get("logprobs") or (text and not ids):
            self._exact = False
        if choice.get("finish_reason"):
            self._finished = True


def _is_sound(chunk: dict[str, Any]) -> bool:
    """Whether what is looked at here is of its type; other chunks pass as they are."""
    choices, ids = chunk.get("choices"), chunk.get("prompt_token_ids")
    return isinstance(ids, list | None) and (
        choices is None or (isinstance(choices, list) and all(_is_sound_choice(choice) for choice in choices))
    )


def _is_sound_choice(choice: Any) -> bool:
    if not isinstance(choice, dict) or not isinstance(choice.get("delta"), dict | None):
        return False
    return all(isinstance(choice.get(name), list | None) for name in ("token_ids", "prompt_token_ids"))


def _repeats_opening(chunk: dict[str, Any]) -> bool:
    """Take a second opening's role out of the chunk; whether nothing is left of it."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta")
        if delta:
            delta.pop("role", None)
        if choice.get("finish_reason") or choice.get("text") or choice.get("token_ids") or any((delta or {}).values()):
            return False
    return not chunk.get("usage")
