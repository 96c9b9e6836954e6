"""How does `trtllm-serve` answer? Written from its protocol: a body with a field that it does not list is refused.

A stream carries text, or ids with `detokenize: false`. A context-only call makes one token and keeps its KV under the
id it was given; a generation-only call begins with that token.
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

_NUMBER = (int, float)
_BOTH: dict[str, Any] = {
    "model": str, "best_of": int, "echo": bool, "frequency_penalty": _NUMBER, "logit_bias": dict, "n": int,
    "presence_penalty": _NUMBER, "seed": int, "stop": (str, list), "stream": bool, "stream_options": dict,
    "temperature": _NUMBER, "top_p": _NUMBER, "user": str, "lora_request": dict, "prompt_ignore_length": int,
    "use_beam_search": bool, "top_k": int, "top_p_min": _NUMBER, "min_p": _NUMBER, "repetition_penalty": _NUMBER,
    "length_penalty": _NUMBER, "early_stopping": (bool, str), "stop_token_ids": list,
    "include_stop_str_in_output": bool, "ignore_eos": bool, "min_tokens": int, "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool, "truncate_prompt_tokens": int, "thinking_token_budget": int,
    "add_special_tokens": bool, "response_format": dict, "disaggregated_params": dict, "priority": _NUMBER,
    "conversation_params": dict,
}  # fmt: skip
_FIELDS: dict[str, dict[str, Any]] = {
    COMPLETIONS: _BOTH
    | {
        "prompt": (list, str), "logprobs": int, "max_tokens": int, "suffix": str, "return_context_logits": bool,
        "detokenize": bool,
    },
    CHAT: _BOTH
    | {
        "messages": list, "prompt_token_ids": list, "prompt_token_ids_b64": str, "logprobs": bool, "top_logprobs": int,
        "max_tokens": int, "max_completion_tokens": int, "tools": list, "tool_choice": (str, dict),
        "parallel_tool_calls": bool, "reasoning_effort": str, "thinking": dict, "add_generation_prompt": bool,
        "documents": list, "chat_template": str, "chat_template_kwargs": dict, "injected_chat_template_kwargs": list,
        "media_io_kwargs": dict, "cache_salt": str, "agent_hierarchy": dict, "mm_processor_kwargs": dict,
    },
}  # fmt: skip
_NOT_NULL = {"model", "n", "prompt", "messages", "use_beam_search", "top_k", "min_p", "repetition_penalty",
             "ignore_eos", "min_tokens", "skip_special_tokens"}  # fmt: skip
_PARAMS = {
    "request_type", "first_gen_tokens", "first_gen_log_probs", "first_gen_logits", "ctx_request_id",
    "encoded_opaque_state", "draft_tokens", "disagg_request_id", "ctx_dp_rank", "ctx_info_endpoint", "schedule_style",
    "ctx_usage", "return_prompt_token_ids_b64", "resolved_thinking",
}  # fmt: skip
_STREAM_OPTIONS = {"include_usage", "continuous_usage_stats"}
MIN_GLOBAL_ID = 2**42


@dataclass
class TrtllmServer:
    role: str = "both"
    peer: "TrtllmServer | None" = None
    hang_after: int | None = None
    give_up_after: int | None = None
    refuse_with: int | None = None
    is_up: bool = True
    seen: Seen = field(default_factory=Seen)
    kept: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Id of a split call → the prompt whose KV is kept for it."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route(COMPLETIONS, self.serve, methods=["POST"]),
                Route(CHAT, self.serve, methods=["POST"]),
                Route("/health", self.health),
            ]
        )

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.is_up else 503)

    async def serve(self, request: Request) -> Response:
        path, body = request.url.path, await request.json()
        self.seen.requests.append((path, body))
        if self.refuse_with is not None:
            return _bad("refused", self.refuse_with)
        if (wrong := _violation(path, body)) is not None:
            return JSONResponse({"error": wrong}, 400)
        params = body.get("disaggregated_params") or {}
        prompt = _prompt(path, body)
        if params.get("request_type") == "context_only":
            return self._context(path, body, prompt, params["disagg_request_id"])
        begun: tuple[int, ...] = ()
        if params.get("request_type") == "generation_only":
            kept = self.peer.kept.pop(params["disagg_request_id"], None) if self.peer is not None else None
            if kept is None or kept != prompt or params["encoded_opaque_state"] != "opaque":
                return _bad("there is no KV for this call")
            begun = tuple(params["first_gen_tokens"])
        return StreamingResponse(self._stream(path, body, prompt, begun), media_type="text/event-stream")

    def _context(self, path: str, body: dict[str, Any], prompt: tuple[int, ...], call_id: int) -> Response:
        if body.get("stream"):
            return _bad("a context-only call is not streamed")
        first = words.next_id(prompt)
        ends = first == words.END
        if not ends:
            self.kept[call_id] = prompt
        params = dict.fromkeys(sorted(_PARAMS)) | {
            "request_type": "context_only", "first_gen_tokens": [first], "ctx_request_id": 77,
            "encoded_opaque_state": "opaque", "disagg_request_id": call_id, "return_prompt_token_ids_b64": False,
        }  # fmt: skip
        choice: dict[str, Any] = {
            "index": 0, "finish_reason": "stop" if ends else "not_finished", "disaggregated_params": params,
        }  # fmt: skip
        text = words.text_of([first])
        choice |= {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text}
        return JSONResponse(
            {"model": body["model"], "choices": [choice], "usage": _usage(len(prompt), 1), "prompt_token_ids": prompt}
        )

    async def _stream(self, path: str, body: dict[str, Any], prompt: tuple[int, ...], begun: tuple[int, ...]):
        is_whole = False
        try:
            async for event in self._events(path, body, prompt, begun):
                yield b"data: " + orjson.dumps(event) + b"\n\n"
            yield b"data: [DONE]\n\n"
            is_whole = True
        finally:
            if not is_whole:
                self.seen.left.append(path)

    async def _events(self, path: str, body: dict[str, Any], prompt: tuple[int, ...], begun: tuple[int, ...]):
        budget = body.get("max_tokens") or body.get("max_completion_tokens")
        ids: list[int] = []
        shown, finish = "", None
        if path == CHAT:
            yield _chunk({"index": 0, "delta": {"role": "assistant"}})
        while finish is None:
            ids.append(begun[len(ids)] if len(ids) < len(begun) else words.next_id((*prompt, *ids)))
            if ids[-1] == words.END:
                finish = "stop"
            elif budget is not None and len(ids) >= budget:
                finish = "length"
            elif self.give_up_after is not None and len(ids) >= self.give_up_after:
                finish = "cancelled"
            text = words.text_of(ids)
            if text.endswith("\ufffd") and finish is None:
                text = shown
            new, shown = text[len(shown) :], text
            if path == CHAT:
                yield _chunk({"index": 0, "delta": {"content": new, "reasoning_content": ""}, "finish_reason": finish})
            else:
                only_ids = body.get("detokenize") is False
                yield _chunk(
                    {
                        "index": 0, "text": "" if only_ids else new, "token_ids": ids[-1:] if only_ids else None,
                        "finish_reason": finish,
                    }
                )  # fmt: skip
            if self.hang_after is not None and len(ids) >= self.hang_after:
                await asyncio.Event().wait()
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {"choices": [], "usage": _usage(len(prompt), len(ids))}


def _violation(path: str, body: dict[str, Any]) -> str | None:
    fields = _FIELDS[path]
    for name, value in body.items():
        if name not in fields:
            return f"{name}: Extra inputs are not permitted"
        if value is None and name in _NOT_NULL:
            return f"{name}: Input should not be null"
        if value is not None and not isinstance(value, fields[name]):
            return f"{name}: Input should be {fields[name]}"
    if "max_tokens" in body and "max_completion_tokens" in body:
        return "max_completion_tokens: Extra inputs are not permitted"
    if set(body.get("stream_options") or {}) - _STREAM_OPTIONS:
        return "stream_options: Extra inputs are not permitted"
    if body.get("stream_options") is not None and not body.get("stream"):
        return "stream_options can only be set if stream is true"
    if not 0.0 <= (body.get("priority") or 0.0) <= 1.0:
        return "priority: Input should be between 0 and 1"
    params = body.get("disaggregated_params")
    if params is not None and (set(params) - _PARAMS or not isinstance(params.get("request_type"), str)):
        return "disaggregated_params: Extra inputs are not permitted"
    if params is not None and not MIN_GLOBAL_ID <= params.get("disagg_request_id", 0) < 2**63:
        return "disaggregated_params: the id is one of the engine's own"
    return None


def _prompt(path: str, body: dict[str, Any]) -> tuple[int, ...]:
    if path == CHAT:
        return tuple(body.get("prompt_token_ids") or words.PROMPT)
    prompt = body["prompt"]
    return words.tokenize(prompt) if isinstance(prompt, str) else tuple(prompt)


def _chunk(choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "cmpl-1", "model": "m", "choices": [choice]}


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip


def _bad(message: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"object": "error", "message": message, "type": "BadRequestError", "code": status}, status)
