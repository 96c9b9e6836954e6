"""What does one event of an engine's stream say? From its JSON payload to Deltas, one per choice."""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from agentserve.engines.adapter import Delta
from agentserve.errors import EngineFailed

MAX_TOKEN_ID: Final = 2**31 - 1
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


def parse_chunk(payload: bytes) -> Sequence[Delta]:
    """The deltas of one payload; raises EngineFailed for an error event or anything that is not a chunk."""
    try:
        chunk = orjson.loads(payload)
        if chunk.get("error"):
            raise _reported(chunk["error"])
        usage = chunk.get("usage")
        choices = chunk.get("choices")
        if choices:
            return [_delta(chunk, choice, usage) for choice in choices]
        return [sound(Delta(usage=usage))] if usage else ()
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineFailed(f"malformed chunk in the engine's stream: {type(error).__name__}") from error


def _delta(chunk: dict[str, Any], choice: dict[str, Any], usage: dict[str, Any] | None) -> Delta:
    message = choice.get("delta")
    text = (message.get("content") if message is not None else choice.get("text")) or ""
    finish = choice.get("finish_reason")
    if finish == "abort":
        raise EngineFailed("the engine aborted the call")
    prompt_ids = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
    return sound(
        Delta(
            text=text,
            token_ids=tuple(choice.get("token_ids") or ()),
            prompt_ids=tuple(prompt_ids) if prompt_ids else None,
            finish_reason=finish,
            choice=choice,
            usage=usage,
        )
    )


def sound(delta: Delta) -> Delta:
    """The delta, if all that is relied on later is of its type; TypeError otherwise: engines are not trusted."""
    ids, prompt_ids, finish, choice, usage = (
        delta.token_ids,
        delta.prompt_ids,
        delta.finish_reason,
        delta.choice,
        delta.usage,
    )
    if not isinstance(delta.text, str) or not isinstance(finish, str | None):
        raise TypeError("text")
    if (ids and not _are_ids(ids)) or (prompt_ids and not _are_ids(prompt_ids)):
        raise TypeError("token ids")
    if choice is not None and type(choice.get("index", 0)) is not int:
        raise TypeError("index")
    if usage is not None and not all(isinstance(usage.get(name), int | None) for name in _COUNTS):
        raise TypeError("usage")
    return delta


def _are_ids(ids: Sequence[Any]) -> bool:
    return all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in ids)


def _reported(error: Any) -> EngineFailed:
    detail = error if isinstance(error, dict) else {"message": str(error)}
    code = detail.get("code")
    is_client_error = isinstance(code, int) and 400 <= code < 500
    said = str(detail.get("message"))[:500]
    return EngineFailed("the engine broke off", retryable=not is_client_error, said=said)
