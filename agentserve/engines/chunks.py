"""What does one event of an engine's stream say? From its JSON payload to Deltas, one per choice."""

from collections.abc import Sequence
from typing import Any

import orjson

from agentserve.engines.adapter import Delta
from agentserve.errors import EngineFailed


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
        return [Delta(usage=usage)] if usage else ()
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineFailed(f"malformed chunk in the engine's stream: {type(error).__name__}") from error


def _delta(chunk: dict[str, Any], choice: dict[str, Any], usage: dict[str, Any] | None) -> Delta:
    message = choice.get("delta")
    text = (message.get("content") if message is not None else choice.get("text")) or ""
    if not isinstance(text, str):
        raise TypeError("text")
    finish = choice.get("finish_reason")
    if finish == "abort":
        raise EngineFailed("the engine aborted the call")
    prompt_ids = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
    return Delta(
        text=text,
        token_ids=tuple(choice.get("token_ids") or ()),
        prompt_ids=tuple(prompt_ids) if prompt_ids else None,
        finish_reason=finish,
        choice=choice,
        usage=usage,
    )


def _reported(error: Any) -> EngineFailed:
    detail = error if isinstance(error, dict) else {"message": str(error)}
    code = detail.get("code")
    is_client_error = isinstance(code, int) and 400 <= code < 500
    said = str(detail.get("message"))[:500]
    return EngineFailed("the engine broke off", retryable=not is_client_error, said=said)
