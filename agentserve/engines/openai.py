"""How is a call served by any OpenAI-compatible server? Plain fields only; it takes no token ids, so nothing moves."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import plain_body
from agentserve.engines.capabilities import Capabilities
from agentserve.engines.http import EngineHttp
from agentserve.engines.vllm import stream_deltas
from agentserve.errors import EngineFailed

OPENAI: Final = Capabilities(
    engine="openai",
    tokens_in=False,
    tokens_out=False,
    priority=None,
    kv_dialect=None,
    abort="close the connection",
    guided_decoding=True,
    accepts_unknown_fields=False,
)


class OpenAiAdapter:
    """EngineAdapter for a plain OpenAI server: unknown fields stripped, no replay, no split placement."""

    capabilities = OPENAI

    def __init__(self, http: EngineHttp, *, health_path: str = "/v1/models") -> None:
        self._http = http
        self._health_path = health_path

    def rendezvous(self) -> None:
        """None: there are no split calls."""
        return

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call from its beginning."""
        if call.replay_ids is not None or call.handoff is not None:
            raise EngineFailed(f"{self._http.url}: a plain OpenAI server takes no token ids and no KV", retryable=False)
        return stream_deltas(self._http, call.path, plain_body(call), call.headers)

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Always EngineFailed: there is no KV to hand over."""
        raise EngineFailed(f"{self._http.url}: a plain OpenAI server cannot prefill for another")

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Nothing: there is no KV to free."""

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """Always None: there are no token ids."""
        return None

    async def is_healthy(self) -> bool:
        """Whether the list of models answers in time."""
        return await self._http.is_healthy(self._health_path)

    async def close(self) -> None:
        """Release the connections."""
        await self._http.close()
