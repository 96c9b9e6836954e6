"""How does the gateway speak to an engine? One adapter per kind of engine, opened by name."""

import httpx

from agentserve.engines.adapter import EngineAdapter
from agentserve.engines.http import EngineHttp, Limits
from agentserve.engines.llamacpp import LlamacppAdapter
from agentserve.engines.openai import OpenAiAdapter
from agentserve.engines.sglang import SglangAdapter
from agentserve.engines.trtllm import TrtllmAdapter
from agentserve.engines.vllm import VllmAdapter
from agentserve.errors import BadInput

VLLM_LIKE = ("vllm", "emulator")
PLAIN = ("openai", "transformers")
KINDS = (*VLLM_LIKE, "sglang", "trtllm", "llamacpp", *PLAIN)


def open_adapter(
    engine: str,
    url: str,
    *,
    supports_priority: bool = False,
    kv_address: str | None = None,
    api_key: str | None = None,
    limits: Limits | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> EngineAdapter:
    """An adapter for the engine at `url`, with a connection pool of its own; BadInput for an unknown kind.

    `kv_address`: "host:port" where its KV can be fetched, as its worker announced it (SGLang's bootstrap server).
    `api_key`: the bearer token that the engine asks for. `transport`: carries its requests in place of that pool.
    """
    http = EngineHttp(url, limits or Limits(), transport, api_key)
    if engine in VLLM_LIKE:
        return VllmAdapter(http, supports_priority=supports_priority)
    if engine == "sglang":
        return SglangAdapter(http, supports_priority=supports_priority, kv_address=kv_address)
    if engine == "trtllm":
        return TrtllmAdapter(http, supports_priority=supports_priority)
    if engine == "llamacpp":
        return LlamacppAdapter(http)
    if engine in PLAIN:
        return OpenAiAdapter(http)
    raise BadInput(f"unknown engine {engine!r} at {url}: it may be {', '.join(KINDS)}")
