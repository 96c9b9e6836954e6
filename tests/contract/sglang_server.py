"""How does SGLang's server answer? Written from the protocol of 0.5.23; it refuses what SGLang does.

Text is shown by its detokenizer's rule: while a character is incomplete, what stands before it up to the last space or
Chinese character. `/generate` repeats everything in each chunk unless the server is incremental.
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

_INT64 = range(-(2**63), 2**63)
_SAMPLING = {
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias",
    "stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim",
    "sampling_seed", "stop",
}  # fmt: skip


@dataclass
class SglangServer:
    incremental: bool = False
    tokens_per_chunk: int = 1
    hang_after: int | None = None
    abort_after: int | None = None
    abort: dict[str, Any] = field(default_factory=lambda: {"type": "abort", "message": "out of memory"})
    role: str = "null"
    refuse_with: int | None = None
    is_ready: bool = True
    seen: Seen = field(default_factory=Seen)
    detokenized: int = 0

    def app(self) -> Starlette:
        post = ["POST"]
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=post),
                Route(COMPLETIONS, self.completions, methods=post),
                Route(CHAT, self.chat, methods=post),
                Route("/v1/detokenize", self.detokenize, methods=post),
                Route("/ready", self.ready),
            ]
        )

    async def ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.is_ready else 503)

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        self.detokenized += 1
        return JSONResponse({"text": words.text_of(body["tokens"])})

    async def generate(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        sampling = body.get("sampling_params") or {}
        if unknown := set(sampling) - _SAMPLING:
            return _bad(f"Unexpected keyword argument {unknown}")
        if "text" in body or not body.get("input_ids"):
            return _bad("this server is asked by ids")
        budget = sampling.get("max_new_tokens", 128)

        async def chunks():
            shown, before = "", 0
            async for ids, text, meta in self._made(body, tuple(body["input_ids"]), budget):
                if self.incremental:
                    yield _event({"text": text[len(shown) :], "output_ids": ids[before:], "meta_info": meta})
                else:
                    yield _event({"text": text, "output_ids": ids, "meta_info": meta})
                shown, before = text, len(ids)
            yield b"data: [DONE]\n\n"

        return self._stream(body, chunks())

    async def completions(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        budget = body.get("max_tokens", 16)
        if not isinstance(budget, int) or budget <= 0:
            return _bad("max_tokens must be positive")
        prompt = body["prompt"]
        prompt_ids = words.tokenize(prompt) if isinstance(prompt, str) else tuple(prompt)

        async def chunks():
            shown, before = "", 0
            async for ids, text, meta in self._made(body, prompt_ids, budget):
                if (meta["finish_reason"] or {}).get("status_code"):
                    yield _event({"error": meta["finish_reason"] | {"code": meta["finish_reason"]["status_code"]}})
                    break
                choice = {"index": 0, "text": text[len(shown) :], "finish_reason": _reason(meta), "logprobs": None}
                if body.get("return_token_ids"):
                    choice["token_ids"] = ids[before:]
                    if not before:
                        choice["prompt_token_ids"] = prompt_ids
                yield _event({"id": body["rid"], "object": "text_completion", "choices": [choice]})
                shown, before = text, len(ids)
            yield _event({"id": body["rid"], "choices": [], "usage": _usage(len(prompt_ids), before)})
            yield b"data: [DONE]\n\n"

        return self._stream(body, chunks())

    async def chat(self, request: Request) -> Response:
        body = await self._take(request)
        if isinstance(body, Response):
            return body
        if body.get("return_token_ids") or body.get("return_prompt_token_ids"):
            return _bad("return_token_ids is not supported with streaming on /v1/chat/completions.")
        budget = body.get("max_completion_tokens") or body.get("max_tokens")

        async def chunks():
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            shown, count = "", 0
            async for ids, text, meta in self._made(body, words.PROMPT, budget):
                if text != shown:
                    yield _event({"choices": [{"index": 0, "delta": {"content": text[len(shown) :]}}]})
                shown, count = text, len(ids)
                if _reason(meta):
                    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": _reason(meta)}]})
            yield _event({"choices": [], "usage": _usage(len(words.PROMPT), count)})
            yield b"data: [DONE]\n\n"

        return self._stream(body, chunks())

    async def _take(self, request: Request) -> dict[str, Any] | Response:
        body = await request.json()
        self.seen.requests.append((request.url.path, body))
        if self.refuse_with is not None:
            return _bad("refused", self.refuse_with)
        room = body.get("bootstrap_room")
        if (room is None) != (self.role == "null"):
            return _bad("a bootstrap_room belongs to a disaggregated server, and to it alone")
        for name, kind in (("rid", str), ("priority", int), ("bootstrap_host", str), ("bootstrap_port", int)):
            if body.get(name) is not None and not isinstance(body[name], kind):
                return _bad(f"{name} must be {kind}")
        if room is not None and room not in _INT64:
            return _bad("bootstrap_room is no int64")
        assert body["stream"] is True, "every call is streamed"
        return body

    async def _made(self, body: dict[str, Any], prompt: tuple[int, ...], budget: int | None):
        """Ids so far, the text shown so far, and meta_info, chunk by chunk."""
        ids: list[int] = []
        clean, finish = 0, None
        shown = ""
        if self.role == "prefill":
            budget = 1
        while finish is None:
            for _ in range(self.tokens_per_chunk):
                one = words.next_id((*prompt, *ids))
                ids.append(one)
                if one == words.END:
                    finish = {"type": "stop", "matched": words.END}
                elif budget is not None and len(ids) >= budget:
                    finish = {"type": "length", "length": budget}
                if finish:
                    break
            if self.abort_after is not None and len(ids) >= self.abort_after:
                finish = self.abort
            new = words.text_of(ids[clean:])
            if new and not new.endswith("\ufffd"):
                shown, clean = words.text_of(ids), len(ids)
            elif finish is not None:
                shown = words.text_of(ids)
            else:
                shown = words.text_of(ids[:clean]) + _printable(new)
            meta = {
                "id": body["rid"], "prompt_tokens": len(prompt), "completion_tokens": len(ids), "cached_tokens": 3,
                "finish_reason": finish,
            }  # fmt: skip
            yield list(ids), shown, meta
            if self.hang_after is not None and len(ids) >= self.hang_after:
                await asyncio.Event().wait()

    def _stream(self, body: dict[str, Any], chunks) -> StreamingResponse:
        async def watched():
            is_whole = False
            try:
                async for chunk in chunks:
                    yield chunk
                is_whole = True
            finally:
                if not is_whole:
                    self.seen.left.append(body["rid"])

        return StreamingResponse(watched(), media_type="text/event-stream")


def _printable(text: str) -> str:
    def chinese(char: str) -> bool:
        return 0x4E00 <= ord(char) <= 0x9FFF

    if text.endswith("\n") or (text and chinese(text[-1])):
        return text
    if len(text) > 1 and chinese(text[-2]):
        return text[:-1]
    return text[: text.rfind(" ") + 1]


def _reason(meta: dict[str, Any]) -> str | None:
    return meta["finish_reason"]["type"] if meta["finish_reason"] else None


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _bad(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"object": "error", "message": message, "type": "BadRequest", "code": status}, status)
