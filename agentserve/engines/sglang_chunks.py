"""What does SGLang's stream say? From its native chunks to Deltas, and only whole characters of either route.

`/generate` repeats all text and ids in each chunk, unless the server runs with `--incremental-streaming-output`; a
chunk tells by itself which. While a character is incomplete, SGLang's detokenizer already shows the text before it, up
to the last space or Chinese character, and keeps the rest: such text is not the whole text of its tokens.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import orjson

from agentserve.engines.adapter import Delta
from agentserve.engines.chunks import sound
from agentserve.errors import EngineFailed

_HELD_TOKENS: Final = 8
"""After how many held tokens the engine is asked whether they end with a whole character."""
_REPLACEMENT: Final = "\ufffd"
_CHINESE: Final = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class GenerateChunks:
    """Reads the payloads of one `/generate` stream, in order."""

    def __init__(self, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._chars = 0
        self._tokens = 0

    def parse(self, payload: bytes) -> Sequence[Delta]:
        """The delta of one payload; raises EngineFailed for an abort, an error or anything that is not a chunk."""
        try:
            chunk = orjson.loads(payload)
            if chunk.get("error"):
                raise _broken(chunk["error"].get("message"), chunk["error"].get("code"))
            return (self._delta(chunk, chunk["meta_info"]),)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"malformed chunk in the engine's stream: {type(error).__name__}") from error

    def _delta(self, chunk: dict[str, Any], meta: dict[str, Any]) -> Delta:
        reason = meta.get("finish_reason")
        if reason is not None and reason["type"] == "abort":
            raise _broken(reason.get("message"), reason.get("status_code"))
        text, ids, total = chunk["text"], chunk["output_ids"], meta["completion_tokens"]
        if self._tokens and len(ids) > total - self._tokens:  # more than what is new: all of it again
            text, ids = text[self._chars :], ids[self._tokens :]
        self._chars += len(text)
        self._tokens += len(ids)
        finish = None if reason is None else reason["type"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": {"content": text}} if self._is_chat else {"text": text}
        usage = None if reason is None else _usage(meta)
        return sound(Delta(text=text, token_ids=tuple(ids), finish_reason=finish, choice=choice, usage=usage))


async def whole_characters(
    deltas: AsyncGenerator[Delta, None], decode: Callable[[Sequence[int]], Awaitable[str | None]]
) -> AsyncGenerator[Delta, None]:
    """The same deltas, joined where a text might not be the whole text of its tokens.

    `decode`: the text of some ids, asked for only where doubt lasts, as in Chinese text without punctuation.
    """
    held: list[Delta] = []
    asked = 0
    async with aclosing(deltas) as arrivals:
        async for delta in arrivals:
            if not delta.token_ids and not held:
                yield delta
                continue
            held.append(delta)
            if delta.finish_reason is None and delta.token_ids and _is_doubtful(held):
                ids = [one for part in held for one in part.token_ids]
                if len(ids) - asked < _HELD_TOKENS:
                    continue
                asked, text = len(ids), await decode(ids)
                if text is None or text.endswith(_REPLACEMENT):
                    continue
            yield _joined(held)
            held, asked = [], 0
    if held:
        yield _joined(held)


def _is_doubtful(held: Sequence[Delta]) -> bool:
    text = next((delta.text for delta in reversed(held) if delta.text), "")
    # Without text so far nothing is shown of these tokens, which the reader takes for an incomplete character.
    if not text:
        return False
    if not held[-1].text:
        return True
    last = ord(text[-1])
    return text[-1] == " " or any(low <= last <= high for low, high in _CHINESE)


def _joined(held: Sequence[Delta]) -> Delta:
    if len(held) == 1:
        return held[0]
    last = held[-1]
    text = "".join(delta.text for delta in held)
    choice = dict(last.choice or {})
    choice |= {"delta": {**choice["delta"], "content": text}} if "delta" in choice else {"text": text}
    return Delta(
        text=text,
        token_ids=tuple(one for delta in held for one in delta.token_ids),
        prompt_ids=next((delta.prompt_ids for delta in held if delta.prompt_ids is not None), None),
        finish_reason=last.finish_reason,
        choice=choice,
        usage=last.usage,
    )


def _usage(meta: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = meta["prompt_tokens"], meta["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": meta.get("cached_tokens", 0)},
    }


def _broken(message: Any, code: Any) -> EngineFailed:
    is_client_error = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)
    said = str(message)[:500] if message else ""
    return EngineFailed("the engine aborted the call", retryable=not is_client_error, said=said)
