"""What bytes does a streaming client get? Pieces as chunks in OpenAI's shape, encoding only what changes."""

from collections.abc import Mapping
from typing import Any

import orjson

from agentserve.errors import AgentServeError
from agentserve.gateway.errors import error_json
from agentserve.orchestrator.request import CallRequest
from agentserve.orchestrator.stream import JoinedStream, Piece

DONE = b"data: [DONE]\n\n"
_OUR_CHOICE_KEYS = ("token_ids", "prompt_token_ids")


def answer_id(request: CallRequest) -> str:
    """One id for the whole answer, the same again when a stream is resumed."""
    return f"{'chatcmpl' if request.is_chat else 'cmpl'}-{request.shown_id}"


class ChunkWriter:
    """Writes one call's stream: the same id, created and model in every chunk, whichever engine made it."""

    def __init__(self, request: CallRequest, stream: JoinedStream, created: int) -> None:
        self._request = request
        self._stream = stream
        self._is_chat = request.is_chat
        self._ids = request.wants_token_ids
        self._opened = request.resume is not None
        self._head = {
            "id": answer_id(request),
            "object": "chat.completion.chunk" if request.is_chat else "text_completion",
            "created": created,
            "model": request.model,
        }
        prefix = orjson.dumps(self._head)[:-1]
        middle = b',"choices":[{"index":0,"delta":{"content":' if request.is_chat else b',"choices":[{"index":0,"text":'
        self._before_text = b"data: " + prefix + middle
        self._after_text = (b"}" if request.is_chat else b"") + b',"logprobs":null,"finish_reason":'

    def pieces(self, pieces: list[Piece]) -> bytes:
        """The chunks of some pieces, the opening one first if this is the beginning."""
        out = [] if self._opened else [self._opening(pieces[0])]
        out.extend(self._piece(piece) for piece in pieces)
        return b"".join(out)

    def end(self) -> bytes:
        """Usage, if the client asked for it, and the end mark."""
        if not self._request.wants_usage:
            return DONE
        return self._event({**self._head, "choices": [], "usage": self._stream.usage()}) + DONE

    def error(self, error: AgentServeError) -> bytes:
        """An error event in OpenAI's shape, for a stream that has already begun."""
        return self._event(error_json(error)[1]) + DONE

    def _opening(self, first: Piece) -> bytes:
        self._opened = True
        ids = {"prompt_token_ids": self._stream.prompt_ids} if self._ids and self._stream.prompt_ids else {}
        if self._is_chat:
            if first.choice is not None and not ids:
                return b""  # the engine's own opening is passed on
            opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
            return self._event({**self._head, "choices": [{**opening, "finish_reason": None}], **ids})
        if not ids:
            return b""
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None, **ids}
        return self._event({**self._head, "choices": [choice]})

    def _piece(self, piece: Piece) -> bytes:
        if piece.choice is not None:
            return self._event({**self._head, "choices": [self._passed_on(piece.choice)]})
        reason = b"null" if piece.finish_reason is None else orjson.dumps(piece.finish_reason)
        ids = b',"token_ids":' + orjson.dumps(piece.token_ids) if self._ids else b""
        return b"".join((self._before_text, orjson.dumps(piece.text), self._after_text, reason, ids, b"}]}\n\n"))

    def _passed_on(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._ids:
            return choice
        return {name: value for name, value in choice.items() if name not in _OUR_CHOICE_KEYS}

    def _event(self, value: Mapping[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(value) + b"\n\n"
