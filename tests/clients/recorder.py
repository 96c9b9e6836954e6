"""An engine that keeps what it is sent and answers as told: a small Starlette app that speaks vLLM's wire format.

It serves what the emulator does not: several choices, logprobs, refusals, silence, streams without an end. Bodies are
told apart by a marker, a text that occurs in them.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PROMPT_IDS = (1, 2, 3)
_PING_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How calls that hold a marker are answered.

    `choices`: one stream chunk each, the choices of it. `then`: what follows them: the end, silence, pings (a client's
    patience runs out, the gateway's does not), tokens for ever, or nothing, not even a
    finish. `error`: an answer that is none.
    """

    choices: Sequence[Sequence[Mapping[str, Any]]] = ()
    usage: Mapping[str, Any] = field(default_factory=lambda: usage(len(PROMPT_IDS), 2))
    then: Literal["end", "silence", "pings", "tokens", "nothing"] = "end"
    status: int = 200
    error: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    split_bytes: int | None = None
    """Write the stream in parts of so many bytes, through characters and events."""


@dataclass(slots=True)
class Recorder:
    """What came, and what is to be answered; `running` counts calls whose connection is open."""

    model: str
    scripts: dict[str, Script] = field(default_factory=dict)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0

    def received(self, marker: str) -> list[dict[str, Any]]:
        """The bodies that held `marker`, in order."""
        return [body for raw, body in self.bodies if marker in raw]

    def app(self) -> Starlette:
        """The engine's routes."""
        return Starlette(
            routes=[
                Route("/health", lambda _: Response(), methods=["GET"]),
                Route("/version", lambda _: JSONResponse({"version": "recorder-1"}), methods=["GET"]),
                Route("/metrics", lambda _: Response("", media_type="text/plain"), methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "vllm"}]})

    async def _complete(self, request: Request) -> Response:
        raw = (await request.body()).decode()
        body = orjson.loads(raw)
        self.bodies.append((raw, body))
        self.headers.append(dict(request.headers))
        script = next((script for marker, script in self.scripts.items() if marker in raw), Script())
        if script.error is not None:
            return JSONResponse(script.error, script.status, dict(script.headers))
        is_chat = request.url.path.startswith("/v1/chat")
        if not body.get("stream"):
            return JSONResponse(self._whole(is_chat))
        return StreamingResponse(self._stream(script, body, is_chat), media_type="text/event-stream")

    def _whole(self, is_chat: bool) -> dict[str, Any]:
        """A plain answer, for the probes that find out what an engine can do."""
        shown: dict[str, Any] = {"message": {"role": "assistant", "content": "pong"}} if is_chat else {"text": "pong"}
        choice = {"index": 0, **shown, "finish_reason": "length", "token_ids": [5], "prompt_token_ids": [*PROMPT_IDS]}
        return {"id": "probe", "model": self.model, "choices": [choice], "usage": usage(3, 1)}

    async def _stream(self, script: Script, body: Mapping[str, Any], is_chat: bool) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            chunks = script.choices or _plain(is_chat)
            parts = [self._event({"choices": [*choices], **_prompt(is_chat, i)}) for i, choices in enumerate(chunks)]
            if script.then == "end":
                parts += [self._event({"choices": [], "usage": script.usage}), b"data: [DONE]\n\n"]
            async for part in _written(parts, script.split_bytes):
                yield part
            async for part in self._tail(script, is_chat):
                yield part
        finally:
            self.running -= 1

    async def _tail(self, script: Script, is_chat: bool) -> AsyncIterator[bytes]:
        if script.then == "silence":
            await asyncio.Event().wait()
        while script.then in ("pings", "tokens"):
            yield b": ping\n\n" if script.then == "pings" else self._event({"choices": [text(" on", is_chat)]})
            await asyncio.sleep(_PING_S)

    def _event(self, value: Mapping[str, Any]) -> bytes:
        return b"data: " + orjson.dumps({"id": "engine", "created": 1, "model": self.model, **value}) + b"\n\n"


def text(
    content: str, is_chat: bool = True, finish: str | None = None, *, index: int = 0, **more: Any
) -> dict[str, Any]:
    """One choice of a chunk that brings text, with one token id."""
    shown: dict[str, Any] = {"delta": {"content": content}} if is_chat else {"text": content}
    return {"index": index, **shown, "logprobs": None, "finish_reason": finish, "token_ids": [7], **more}


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """One choice of a chat chunk with any delta."""
    return {"index": index, "delta": fields, "logprobs": None, "finish_reason": finish}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _plain(is_chat: bool) -> list[list[dict[str, Any]]]:
    opening = [[delta(role="assistant", content="")]] if is_chat else []
    return [*opening, [text("recorded", is_chat)], [text(" answer", is_chat, "stop")]]


def _prompt(is_chat: bool, position: int) -> dict[str, Any]:
    return {"prompt_token_ids": [*PROMPT_IDS]} if is_chat and position == 0 else {}


async def _written(parts: Sequence[bytes], split_bytes: int | None) -> AsyncIterator[bytes]:
    if split_bytes is None:
        for part in parts:
            yield part
        return
    content = b"".join(parts)
    for at in range(0, len(content), split_bytes):
        yield content[at : at + split_bytes]
        await asyncio.sleep(0)
