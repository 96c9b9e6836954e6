"""How is a call served by SGLang? OpenAI routes first, `/generate` on ids for a replay, both legs of a split at once.

Written from SGLang 0.5.23: srt/entrypoints/http_server.py, srt/entrypoints/openai/{protocol,serving_chat,
serving_completions,serving_tokenize}.py, srt/managers/{io_struct,tokenizer_manager,detokenizer_manager}.py.

A completion comes with token ids and can move. A chat that streams comes without (SGLang refuses `return_token_ids`
there), and rendering it ourselves would lose its reasoning and tool parsers and the model's own sampling defaults: a
chat that began here stays here. One that began elsewhere can go on here, since a replay is on ids.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import CHAT
from agentserve.engines.capabilities import Capabilities, KvDialect
from agentserve.engines.chunks import parse_chunk
from agentserve.engines.http import EngineHttp, EngineRefused
from agentserve.engines.metric_names import SGLANG_METRICS
from agentserve.engines.sglang_bodies import SIGN, attempt_path, sglang_body
from agentserve.engines.sglang_chunks import GenerateChunks, whole_characters
from agentserve.engines.vllm import stream_deltas
from agentserve.errors import BadInput, EngineFailed

BOOTSTRAP_PORT: Final = 8998
"""SGLang's default for `--disaggregation-bootstrap-port`."""
SGLANG: Final = Capabilities(
    engine="sglang",
    tokens_in=True,
    tokens_out=True,
    priority=SIGN,
    kv_dialect=KvDialect.BOOTSTRAP,
    abort="close the connection",
    metrics=SGLANG_METRICS,
    reports_cached_tokens=True,
    detokenizes=True,
    guided_decoding=True,
    is_verified=False,
)
"""With `--enable-priority-scheduling` (and not `--schedule-low-priority-values-first`), `--disaggregation-mode` and
`--enable-metrics`; token ids of completions only."""


class SglangAdapter:
    """EngineAdapter for SGLang's server. `kv_address`: "host:port" of its bootstrap server, if it is a prefill one."""

    def __init__(self, http: EngineHttp, *, supports_priority: bool = False, kv_address: str | None = None) -> None:
        self._http = http
        self._priority = supports_priority
        self._bootstrap_host, self._bootstrap_port = _host_and_port(http.url, kv_address)
        self.capabilities = SGLANG if supports_priority else replace(SGLANG, priority=None)

    def rendezvous(self) -> Mapping[str, Any]:
        """A room of our own making at this (prefill) instance's bootstrap server, for both legs to name."""
        return {
            "bootstrap_host": self._bootstrap_host,
            "bootstrap_port": self._bootstrap_port,
            "bootstrap_room": secrets.randbelow(2**63 - 1) + 1,  # room 0 is its health check's
        }

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call, or the decode leg of a split one."""

        async def decode(ids: Sequence[int]) -> str | None:
            try:
                return await self.detokenize(str(call.body.get("model", "")), ids)
            except EngineFailed:
                return None  # the stream goes on; its text only comes a little later

        return whole_characters(self._deltas(call), decode)

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Run the prefill leg of a split call to its end: the same body as the decode leg's, its output unread."""
        if call.handoff is None:
            raise EngineFailed(f"{self._http.url}: SGLang's legs meet in a room that is named beforehand")
        async with aclosing(self._deltas(call)) as deltas:
            async for _ in deltas:
                pass
        return call.handoff

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Nothing: closing the prefill leg's connection aborts it, and its KV goes with it."""

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """The text of some token ids, as `/v1/detokenize` gives it; None if this server has no such route."""
        try:
            answer = await self._http.json("/v1/detokenize", {"model": model, "tokens": ids}, {})
        except EngineRefused:
            return None
        text = answer.get("text")
        return text if isinstance(text, str) else None

    async def is_healthy(self) -> bool:
        """Whether `/ready` answers in time. `/health` would run a token, which takes it a second at least."""
        return await self._http.is_healthy("/ready")

    async def close(self) -> None:
        """Release the connections."""
        await self._http.close()

    def _deltas(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        body = sglang_body(call, priority=self._priority)
        is_replay = call.replay_ids is not None
        parse = GenerateChunks(is_chat=call.path == CHAT).parse if is_replay else parse_chunk
        return stream_deltas(self._http, attempt_path(call), body, call.headers, parse)


def _host_and_port(url: str, kv_address: str | None) -> tuple[str, int]:
    """Where the bootstrap server listens: as announced, else beside the engine on SGLang's default port."""
    try:
        parts = urlsplit(f"//{kv_address}" if kv_address else url)
        port = parts.port if kv_address else None
    except ValueError as error:
        raise BadInput(f"the bootstrap address of {url} is not host:port: {kv_address!r}") from error
    if not parts.hostname or (kv_address and port is None):
        raise BadInput(f"the bootstrap address of {url} is not host:port: {kv_address!r}")
    return parts.hostname, port or BOOTSTRAP_PORT
