"""How is a call served by llama.cpp's server? Rendered and tokenized by the engine, then run on ids; so it can move.

Written from ggml-org/llama.cpp of October 2026 (tools/server/README.md, server-task.cpp) and run against that server.

A plain call's prompt is made as its OpenAI routes make it: `/apply-template`, then `/tokenize` with special tokens
added and parsed. What these routes parse or constrain (tools, schemas, logprobs, reasoning) is left to them and stays.
Of a character that was made by two tokens the first id is found again from its text; by more, the ids are unknown,
and the call stays from there on.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import CHAT
from agentserve.engines.capabilities import Capabilities
from agentserve.engines.http import EngineHttp, EngineRefused, EngineUnreachable
from agentserve.engines.llamacpp_bodies import (
    COMPLETION,
    completion_body,
    on_ids,
    openai_body,
    parses_reasoning,
    template_body,
)
from agentserve.engines.llamacpp_chunks import CompletionChunks, Read
from agentserve.engines.metric_names import LLAMACPP_METRICS
from agentserve.engines.vllm import stream_deltas
from agentserve.errors import EngineFailed

_NOT_THERE: Final = (404, 501)
LLAMACPP: Final = Capabilities(
    engine="llamacpp",
    tokens_in=True,
    tokens_out=True,
    priority=None,
    kv_dialect=None,
    abort="close the connection",
    metrics=LLAMACPP_METRICS,
    reports_cached_tokens=True,
    detokenizes=True,
    guided_decoding=True,
)
"""With `--metrics`. Token ids of plain calls only."""


class LlamacppAdapter:
    """EngineAdapter for llama.cpp's own server (not the Python one, which takes no ids)."""

    capabilities = LLAMACPP

    def __init__(self, http: EngineHttp) -> None:
        self._http = http

    def rendezvous(self) -> None:
        """None: there are no split calls."""
        return

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call, on ids where that is the same as on the OpenAI route."""
        if call.handoff is not None:
            raise EngineFailed(f"{self._http.url}: llama.cpp takes no KV", retryable=False)
        if call.replay_ids is not None:
            deltas = self._on_ids(call, call.replay_ids, None)
        elif on_ids(call) and (ids := await self._prompt_ids(call)) is not None:
            deltas = self._on_ids(call, ids, ids)
        else:
            deltas = stream_deltas(self._http, call.path, openai_body(call), call.headers)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Always EngineFailed: there is no KV to hand over."""
        raise EngineFailed(f"{self._http.url}: llama.cpp cannot prefill for another")

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Nothing: there is no KV to free."""

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """The text of some token ids, as `/detokenize` gives it; None if this server has no such route."""
        try:
            answer = await self._http.json("/detokenize", {"tokens": ids}, {})
        except EngineRefused:
            return None
        text = answer.get("content")
        return text if isinstance(text, str) else None

    async def is_healthy(self) -> bool:
        """Whether `/health` answers in time that the model is loaded."""
        return await self._http.is_healthy()

    async def close(self) -> None:
        """Release the connections."""
        await self._http.close()

    async def _prompt_ids(self, call: EngineCall) -> tuple[int, ...] | None:
        """The prompt as the OpenAI route would make it; None if that route is to serve the call itself."""
        prompt = call.body.get("prompt")
        if call.path != CHAT and not isinstance(prompt, str):
            return tuple(prompt or ())
        try:
            if call.path == CHAT:
                # Asked each time: a restarted server may hold another model.
                if parses_reasoning(str((await self._http.get("/props")).get("chat_template", ""))):
                    return None
                prompt = (await self._http.json("/apply-template", template_body(call), {}))["prompt"]
            return await self._tokenize(str(prompt), whole=True)
        except EngineRefused as refused:
            if refused.status in _NOT_THERE or call.path == CHAT:
                return None  # the chat's own route says what is wrong with it
            raise
        except (KeyError, TypeError) as error:
            raise EngineFailed(f"{self._http.url}: malformed answer while rendering the prompt") from error

    async def _tokenize(self, text: str, *, whole: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": whole, "parse_special": whole}
        answer = await self._http.json("/tokenize", body, {})
        return tuple(answer["tokens"])

    async def _on_ids(
        self, call: EngineCall, ids: Sequence[int], prompt_ids: tuple[int, ...] | None
    ) -> AsyncGenerator[Delta, None]:
        chunks = CompletionChunks(is_chat=call.path == CHAT, prompt_ids=prompt_ids)
        async with aclosing(self._http.events(COMPLETION, completion_body(call, ids), call.headers)) as arrivals:
            async for payloads in arrivals:
                for payload in payloads:
                    read = chunks.read(payload)
                    yield await self._completed(read) if read.missing > 0 else read.delta
                    if read.delta.finish_reason is not None:
                        return  # no end mark follows on this route
        raise EngineUnreachable(f"{self._http.url}: the stream ended before its finish")

    async def _completed(self, read: Read) -> Delta:
        """The delta with the ids that its chunk left out, or with none where they are not certain.

        The two tokens of a character: the bytes of the second are known, so those of the first are, and no other
        token has these bytes.
        """
        delta = read.delta
        if read.missing == 1:
            try:
                ids = await self._tokenize(delta.text, whole=False)
            except (EngineFailed, KeyError, TypeError):
                ids = ()
            if len(ids) == 2 and ids[1:] == delta.token_ids:
                return replace(delta, token_ids=ids)
        return replace(delta, token_ids=())
