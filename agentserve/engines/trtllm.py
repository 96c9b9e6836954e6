"""How is a call served by TensorRT-LLM's `trtllm-serve`? Only fields it knows; a context leg, then a generation leg.

Written from NVIDIA/TensorRT-LLM's main branch of 2026: tensorrt_llm/serve/{openai_protocol,openai_server,
postprocess_handlers,openai_disagg_service}.py, llmapi/disagg_utils.py, metrics/collector.py.

It takes prompts of token ids, but its streams carry either text or ids (`detokenize: false`), never both, and no
prompt ids: a call that begins here stays here.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import attempt_path
from agentserve.engines.capabilities import Capabilities, KvDialect, PrioritySign
from agentserve.engines.chunks import parse_chunk
from agentserve.engines.http import EngineHttp
from agentserve.engines.metric_names import TRTLLM_METRICS
from agentserve.engines.trtllm_bodies import context_body, trtllm_body
from agentserve.engines.vllm import stream_deltas
from agentserve.errors import EngineFailed

_GOES_ON: Final = ("length", "not_finished")
"""How a context leg ends whose call needs a generation leg."""
_GIVEN_UP: Final = ("cancelled", "timeout")
TRTLLM: Final = Capabilities(
    engine="trtllm",
    tokens_in=True,
    tokens_out=False,
    priority=PrioritySign.HIGHER_FIRST,
    kv_dialect=KvDialect.DISAGGREGATED_PARAMS,
    abort="close the connection; it looks once a second",
    metrics=TRTLLM_METRICS,
    reports_cached_tokens=True,
    guided_decoding=True,
    accepts_unknown_fields=False,
    is_verified=False,
)
"""With `waiting_queue_policy: priority`, a cache transceiver and `return_perf_metrics` in its configuration."""


class TrtllmAdapter:
    """EngineAdapter for TensorRT-LLM's OpenAI server, an instance of its own or a context or generation one."""

    def __init__(self, http: EngineHttp, *, supports_priority: bool = False) -> None:
        self._http = http
        self._priority = supports_priority
        self.capabilities = TRTLLM if supports_priority else replace(TRTLLM, priority=None)

    def rendezvous(self) -> None:
        """None: the context leg's answer tells the generation leg where its KV is."""
        return

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call, or the decode leg of a split one; none is run if the first token ended the answer."""
        if call.handoff is not None and "answer" in call.handoff:
            return _whole(call.handoff["answer"])
        body = trtllm_body(call, priority=self._priority)
        return stream_deltas(self._http, attempt_path(call), body, call.headers, _parse)

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Run the context leg of a split call; returns what its generation leg needs."""
        body = context_body(call, priority=self._priority)
        answer = await self._http.json(attempt_path(call), body, call.headers)
        try:
            choice = answer["choices"][0]
            if choice.get("finish_reason") not in _GOES_ON:
                return {"answer": answer}
            params = choice["disaggregated_params"]
            id_of_both = body["disaggregated_params"]["disagg_request_id"]
            params = params | {"request_type": "generation_only", "disagg_request_id": id_of_both}
        except (KeyError, IndexError, TypeError) as error:
            raise EngineFailed(f"{self._http.url}: the context leg gave no disaggregated_params") from error
        # What it does not know it gives as null; a generation leg takes that as left out.
        params = {name: value for name, value in params.items() if value is not None}
        return {"disaggregated_params": params, "prompt_token_ids": answer.get("prompt_token_ids")}

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Nothing: its protocol has no word for it; the context side frees the KV when its transfer times out."""

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """Always None: there is no such route."""
        return None

    async def is_healthy(self) -> bool:
        """Whether `/health` answers in time."""
        return await self._http.is_healthy()

    async def close(self) -> None:
        """Release the connections."""
        await self._http.close()


def _parse(payload: bytes) -> Sequence[Delta]:
    deltas = parse_chunk(payload)
    for delta in deltas:
        if delta.finish_reason in _GIVEN_UP:
            raise EngineFailed(f"the engine gave the call up: {delta.finish_reason}")
    return deltas


async def _whole(answer: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
    """The one delta of an answer that ended in its context leg."""
    choice = answer["choices"][0]
    message, finish = choice.get("message"), choice.get("finish_reason")
    text = (message["content"] if message is not None else choice.get("text")) or ""
    shown = {"text": text} if message is None else {"delta": {"role": "assistant", "content": text}}
    yield Delta(
        text=text,
        finish_reason=finish,
        choice={"index": 0, "finish_reason": finish, "logprobs": None, **shown},
        usage=answer.get("usage"),
    )
