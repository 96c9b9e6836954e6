"""How does llama.cpp's server answer? Written from its README, with what the running server was seen to do.

A token that leaves a character incomplete sends no chunk; the next one's chunk has the whole text, and only its own id.
`/completion` ends without an end mark. Fields that it does not know it ignores.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.contract import words
from tests.contract.serving import CHAT, COMPLETIONS, Seen

BOS = 1
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
_KINDS: dict[str, Any] = {
    "temperature": (int, float), "top_p": (int, float), "min_p": (int, float), "top_k": int, "seed": int,
    "n_predict": int, "repeat_penalty": (int, float), "stream": bool, "return_tokens": bool, "ignore_eos": bool,
}  # fmt: skip


@dataclass
class LlamacppServer:
    template: str = TEMPLATE
    hang_after: int | None = None
    break_after: int | None = None
    stop_after: int | None = None
    refuse_with: int | None = None
    is_loading: bool = False
    seen: Seen = field(default_factory=Seen)

    def app(self) -> Starlette:
        post = ["POST"]
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/props", self.props),
                Route("/apply-template", self.apply_template, methods=post),
                Route("/tokenize", self.tokenize, methods=post),
                Route("/detokenize", self.detokenize, methods=post),
                Route("/completion", self.completion, methods=post),
                Route(COMPLETIONS, self.openai, methods=post),
                Route(CHAT, self.openai, methods=post),
            ]
        )

    async def health(self, request: Request) -> Response:
        return _bad("Loading model", 503) if self.is_loading else JSONResponse({"status": "ok"})

    async def props(self, request: Request) -> Response:
        return JSONResponse({"total_slots": 2, "chat_template": self.template, "model_path": "m.gguf"})

    async def apply_template(self, request: Request) -> Response:
        body = await self._take(request)
        if not isinstance(body.get("messages"), list):
            return _bad("Expected 'messages' to be an array")
        return JSONResponse({"prompt": "".join(message["content"] for message in body["messages"])})

    async def tokenize(self, request: Request) -> Response:
        body = await self._take(request)
        try:
            ids = words.tokenize(body["content"])
        except ValueError as error:
            return _bad(str(error))
        return JSONResponse({"tokens": ([BOS] if body.get("add_special") else []) + list(ids)})

    async def detokenize(self, request: Request) -> Response:
        return JSONResponse({"content": words.text_of((await self._take(request))["tokens"])})

    async def completion(self, request: Request) -> Response:
        body = await self._take(request)
        if self.refuse_with is not None:
            return _bad("refused", self.refuse_with)
        for name, kind in _KINDS.items():
            if name in body and not isinstance(body[name], kind):
                return _bad(f"Field '{name}': type must be {kind}")
        prompt = body.get("prompt")
        if not isinstance(prompt, list) or not prompt or not all(type(one) is int for one in prompt):
            return _bad('"prompt" must be ids here')
        if any(one not in words.PIECES for one in prompt):
            return _bad("Prompt contains invalid tokens")
        budget = body.get("n_predict", -1)
        return StreamingResponse(self._chunks(body, tuple(prompt), budget), media_type="text/event-stream")

    async def _chunks(self, body: dict[str, Any], prompt: tuple[int, ...], budget: int):
        is_whole = False
        try:
            async for piece in self._made(body, prompt, budget):
                yield piece
            is_whole = True
        finally:
            if not is_whole:
                self.seen.left.append("/completion")

    async def _made(self, body: dict[str, Any], prompt: tuple[int, ...], budget: int):
        yield b": ping\n\n"
        ids: list[int] = []
        shown = ""
        while True:
            one = words.next_id((*prompt, *ids))
            ids.append(one)
            told = {"index": 0, "id_slot": -1, "tokens_predicted": len(ids), "tokens_evaluated": len(prompt)}
            text = words.text_of(ids)
            if one != words.END and not text.endswith("\ufffd"):
                tokens = [one] if body.get("return_tokens") else []
                yield _event({"content": text[len(shown) :], "tokens": tokens, "stop": False, **told})
                shown = text
            if self.hang_after is not None and len(ids) >= self.hang_after:
                await asyncio.Event().wait()
            if self.stop_after is not None and len(ids) >= self.stop_after:
                return
            if self.break_after is not None and len(ids) >= self.break_after:
                yield _event({"error": {"code": 500, "message": "Compute error.", "type": "server_error"}})
                return
            if one == words.END or len(ids) == budget:
                stop_type = "eos" if one == words.END else "limit"
                timings = {"cache_n": 2, "prompt_n": len(prompt) - 2, "predicted_n": len(ids)}
                last = {"content": "", "tokens": [], "stop": True, "stop_type": stop_type, "timings": timings}
                yield _event(last | told | {"truncated": False, "stopping_word": "", "model": "m"})
                return

    async def openai(self, request: Request) -> Response:
        body = await self._take(request)
        if self.refuse_with is not None:
            return _bad("refused", self.refuse_with)
        is_chat = request.url.path == CHAT
        if is_chat and not isinstance(body.get("messages"), list):
            return _bad("Expected 'messages' to be an array")
        shown = {"delta": {"reasoning_content": "hm"}} if is_chat else {"text": words.TEXT}

        async def chunks():
            yield _event({"choices": [{"index": 0, "finish_reason": None, **shown}]})
            yield _event({"choices": [{"index": 0, "finish_reason": "stop", **({"delta": {}} if is_chat else {})}]})
            yield _event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def _take(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        self.seen.requests.append((request.url.path, body))
        return body


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _bad(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": {"code": status, "message": message, "type": "invalid_request_error"}}, status)
