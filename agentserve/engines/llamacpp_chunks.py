"""What does llama.cpp's `/completion` stream say? From its chunks to Deltas, and whether ids are missing.

A chunk holds the text since the last one, but the id of its last token only: tokens that left a character incomplete
send no chunk of their own. `tokens_predicted` counts them all, so a gap shows.
"""

from typing import Any, Final, NamedTuple

import orjson

from agentserve.engines.adapter import Delta
from agentserve.engines.chunks import parse_chunk, sound
from agentserve.errors import EngineFailed

_FINISH: Final = {"eos": "stop", "word": "stop", "limit": "length"}


class Read(NamedTuple):
    """One chunk. `missing`: how many ids should stand before those in `delta`."""

    delta: Delta
    missing: int


class CompletionChunks:
    """Reads the payloads of one stream on ids, in order; the first delta carries the prompt's ids."""

    def __init__(self, *, is_chat: bool, prompt_ids: tuple[int, ...] | None) -> None:
        self._is_chat = is_chat
        self._prompt_ids = prompt_ids
        self._tokens = 0

    def read(self, payload: bytes) -> Read:
        """The delta of one payload; raises EngineFailed for an error or anything that is not a chunk."""
        try:
            chunk = orjson.loads(payload)
            if chunk.get("error"):
                parse_chunk(payload)
            return self._read(chunk)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"malformed chunk in the engine's stream: {type(error).__name__}") from error

    def _read(self, chunk: dict[str, Any]) -> Read:
        text, ids, total = chunk["content"], tuple(chunk["tokens"]), chunk["tokens_predicted"]
        finish = _FINISH[chunk["stop_type"]] if chunk["stop"] else None
        # The last chunk counts an end token, which has no text, and what it never showed.
        missing = 0 if finish is not None else total - self._tokens - len(ids)
        self._tokens = total
        delta = sound(
            Delta(
                text=text,
                token_ids=ids,
                prompt_ids=self._prompt_ids,
                finish_reason=finish,
                choice=self._choice(text, finish),
                usage=None if finish is None else _usage(chunk),
            )
        )
        self._prompt_ids = None
        return Read(delta, missing)

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        shown = {"delta": {"content": text} if text else {}} if self._is_chat else {"text": text}
        return {"index": 0, "finish_reason": finish, "logprobs": None, **shown}


def _usage(chunk: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = chunk["tokens_evaluated"], chunk["tokens_predicted"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": chunk["timings"]["cache_n"]},
    }
