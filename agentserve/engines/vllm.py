"""How is a call served by vLLM, or by the emulator that speaks the same? Token ids out and in, priority, P/D legs."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import COMPLETIONS, attempt_path, prefill_body, vllm_body
from agentserve.engines.capabilities import Capabilities, KvDialect, PrioritySign
from agentserve.engines.chunks import parse_chunk
from agentserve.engines.http import EngineHttp, EngineRefused, EngineUnreachable
from agentserve.engines.metric_names import VLLM_METRICS
from agentserve.engines.sse import DONE
from agentserve.errors import EngineFailed

_NO_MODEL: Final = "agentserve-release"
_HANDSHAKE_PAUSES_S: Final = (0.2, 1.0)
VLLM: Final = Capabilities(
    engine="vllm",
    tokens_in=True,
    tokens_out=True,
    priority=PrioritySign.LOWER_FIRST,
    kv_dialect=KvDialect.NIXL_PULL,
    abort="close the connection",
    metrics=VLLM_METRICS,
    reports_cached_tokens=True,
    detokenizes=True,
    guided_decoding=True,
)
"""With `--scheduling-policy priority`, a NIXL connector and `--enable-prompt-tokens-details`; a probe tells without."""


class VllmAdapter:
    """EngineAdapter for vLLM's OpenAI server with its extensions."""

    def __init__(self, http: EngineHttp, *, supports_priority: bool = False) -> None:
        self._http = http
        self._priority = supports_priority
        self.capabilities = VLLM if supports_priority else replace(VLLM, priority=None)

    def rendezvous(self) -> None:
        """None: the decode leg pulls from where the prefill leg's answer says."""
        return

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call, or the decode leg of a split one."""
        body = vllm_body(call, priority=self._priority)
        return stream_deltas(self._http, attempt_path(call), body, call.headers)

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Run the prefill leg of a split call; returns what its decode leg needs."""
        body = prefill_body(call, priority=self._priority)
        answer = await self._http.json(attempt_path(call), body, call.headers)
        params = answer.get("kv_transfer_params")
        if not isinstance(params, dict):
            raise EngineFailed(f"{self._http.url}: the prefill leg gave no kv_transfer_params")
        return params

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Send a decode leg that this engine refuses: vLLM then has the prefill side free what was kept for it.

        The refusal must come from the serving layer, behind the body's validation; an unknown model does. Engines that
        have not met yet shake hands first, and an idle engine sends its notice only with its next step: hence the
        single tokens that follow. An engine cannot release what it keeps itself: its lease (30 s) has to end.
        """
        refused = {"model": _NO_MODEL, "prompt": [1], "max_tokens": 1, "kv_transfer_params": handoff}
        step = {"model": model, "prompt": [1], "max_tokens": 1}
        with suppress(EngineFailed):
            await self._http.json(COMPLETIONS, refused, {})
        for pause_s in _HANDSHAKE_PAUSES_S:
            await asyncio.sleep(pause_s)
            with suppress(EngineFailed):
                await self._http.json(COMPLETIONS, step, {})

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """The text of some token ids, as `/detokenize` gives it; None if this server has no such route."""
        try:
            answer = await self._http.json("/detokenize", {"model": model, "tokens": ids}, {})
        except EngineRefused:
            return None
        text = answer.get("prompt")
        return text if isinstance(text, str) else None

    async def is_healthy(self) -> bool:
        """Whether `/health` answers in time."""
        return await self._http.is_healthy()

    async def close(self) -> None:
        """Release the connections."""
        await self._http.close()


async def stream_deltas(
    http: EngineHttp,
    path: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    parse: Callable[[bytes], Sequence[Delta]] = parse_chunk,
) -> AsyncGenerator[Delta, None]:
    """The deltas of a streaming call up to `[DONE]`; EngineUnreachable if the stream just stops before its finish.

    Of several choices each has a finish of its own. A server without `[DONE]` ends behind the last of them.
    """
    finished = 0
    async with aclosing(http.events(path, body, headers)) as arrivals:
        async for payloads in arrivals:
            for payload in payloads:
                if payload == DONE:
                    return
                for delta in parse(payload):
                    if delta.finish_reason is not None:
                        finished += 1
                    yield delta
    if finished < _choices(body):
        raise EngineUnreachable(f"{http.url}: the stream ended before its finish")


def _choices(body: Mapping[str, Any]) -> int:
    """How many choices a call asks for: `n` for each of its prompts."""
    prompt, each = body.get("prompt"), int(body.get("n") or 1)
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return each * len(prompt)
    return each
