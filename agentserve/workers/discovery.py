"""What is this engine, and what can it do? Asked once when it is ready, and again when it has changed.

What is not given in the configuration is asked of the engine itself, and then of the GPU profile. Capabilities are
found out by using them, each with a completion of one token.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson

from agentserve.errors import BadInput, Unavailable
from agentserve.telemetry.messages import Announce
from agentserve.workers.config import EngineConfig
from agentserve.workers.scrape import kv_cache_size
from scheduler.errors import UnknownProfile
from scheduler.profiles import GpuProfile, known_models, load_profile

logger = logging.getLogger(__name__)

MAX_METRICS_BYTES: Final = 4 * 2**20
_MAX_ANSWER_BYTES: Final = 1 * 2**20
_DEFAULT_BLOCK_TOKENS: Final = 16
_POLL_S: Final = (0.1, 0.2, 0.4, 0.8, 1.0)
_ASK_PREFILL: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def open_client(config: EngineConfig) -> httpx.AsyncClient:
    """A client for one engine with small time limits; its user closes it."""
    headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return httpx.AsyncClient(
        base_url=config.engine_url, headers=headers, timeout=config.request_timeout_s, trust_env=False
    )


async def fetch(client: httpx.AsyncClient, path: str, max_bytes: int = _MAX_ANSWER_BYTES) -> tuple[int, bytes]:
    """GET `path`: status and body. Raises httpx.HTTPError; a body over the limit counts as a protocol error."""
    async with client.stream("GET", path) as response:
        return response.status_code, await _limited(response, max_bytes)


def check_gpu(gpu: str) -> None:
    """Raise BadInput, naming the known ones, for a GPU without a profile."""
    try:
        load_profile(gpu, known_models()[0])
    except UnknownProfile as error:
        raise BadInput(str(error)) from None


async def discover(config: EngineConfig, client: httpx.AsyncClient, boot_id: str) -> Announce:
    """Wait until the engine is healthy, then state its facts.

    Raises BadInput (unknown GPU, another model, a fact that nobody knows) and Unavailable (not ready in time).
    """
    check_gpu(config.gpu)
    await _until_ready(config, client)
    try:
        served = await served_models(client)
        version = await engine_version(client)
        status, metrics = await fetch(client, "/metrics", MAX_METRICS_BYTES)
    except httpx.HTTPError as error:
        raise Unavailable(f"engine {config.engine_url}: {_why(error)}") from None
    model = choose_model(config, served)
    capacity, block = kv_cache_size(metrics) if status == httpx.codes.OK else (None, None)
    profile = _profile(config.gpu, model)
    block = config.block_tokens or block or _DEFAULT_BLOCK_TOKENS
    replay, priority, kv_transfer = await _capabilities(config, client, model, block)
    return Announce(
        worker_id=config.instance_id,
        boot_id=boot_id,
        engine_url=config.engine_url,
        engine=config.engine,
        engine_version=version,
        model=model,
        gpu=profile.gpu if profile else config.gpu,
        role=config.role,
        kv_capacity_tokens=_known(
            "kv-capacity-tokens",
            config,
            config.kv_capacity_tokens or capacity or (profile.kv_capacity_tokens if profile else None),
        ),
        block_tokens=block,
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.max_batched_tokens,
        kv_bytes_per_token=_known(
            "kv-bytes-per-token", config, config.kv_bytes_per_token or (profile.kv_bytes_per_token if profile else None)
        ),
        kv_link_bytes_per_s=_kv_link(config, profile) if kv_transfer else None,
        kv_group=None,
        kv_address=None,
        speed=config.speed,
        supports_priority=priority,
        supports_replay=replay,
    )


async def discover_static(config: EngineConfig) -> Announce:
    """The facts of an engine that has no worker, for `Registry.add_static`; raises as `discover` does."""
    async with open_client(config) as client:
        return await discover(config, client, boot_id="static")


async def served_models(client: httpx.AsyncClient) -> tuple[str, ...]:
    """Names of the base models that the engine serves (adapters, which name a parent, are left out)."""
    status, body = await fetch(client, "/v1/models")
    try:
        entries = orjson.loads(body)["data"]
        return tuple(str(e["id"]) for e in entries if not e.get("parent"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise httpx.DecodingError(f"/v1/models answered {status} without a list of models") from None


async def engine_version(client: httpx.AsyncClient) -> str | None:
    """The engine's version where it tells."""
    status, body = await fetch(client, "/version")
    if status != httpx.codes.OK:
        return None
    try:
        version = orjson.loads(body)["version"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return str(version)[:64]


def choose_model(config: EngineConfig, served: tuple[str, ...]) -> str:
    """The served name that the worker stands for; raises BadInput naming what is served."""
    names = ", ".join(served) or "nothing"
    if config.model is None:
        if len(served) == 1:
            return served[0]
        raise BadInput(f"engine {config.engine_url} serves {names}: say which one with --model")
    if config.model in served:
        return config.model
    wanted = _profile(config.gpu, config.model)
    for name in served:
        if wanted is not None and wanted == _profile(config.gpu, name):
            return name
    raise BadInput(f"engine {config.engine_url} does not serve {config.model!r}; it serves {names}")


async def _until_ready(config: EngineConfig, client: httpx.AsyncClient) -> None:
    try:
        async with asyncio.timeout(config.ready_timeout_s):
            for attempt in range(2**31):
                try:
                    status, _ = await fetch(client, "/health")
                    if status == httpx.codes.OK:
                        return
                    problem = f"/health answered {status}"
                except httpx.HTTPError as error:
                    problem = _why(error)
                if attempt == 0:
                    logger.warning("waiting for the engine at %s (%s)", config.engine_url, problem)
                await asyncio.sleep(_POLL_S[min(attempt, len(_POLL_S) - 1)])
    except TimeoutError:
        raise Unavailable(f"engine {config.engine_url}: not ready within {config.ready_timeout_s:g} s") from None


async def _capabilities(
    config: EngineConfig, client: httpx.AsyncClient, model: str, block_tokens: int
) -> tuple[bool, bool, bool]:
    """Whether the engine takes and gives token ids, orders by priority, and hands over KV."""
    body = {"model": model, "prompt": "ping", "max_tokens": 1, "temperature": 0}
    replay, priority, kv_transfer = config.supports_replay, config.supports_priority, config.kv_transfer
    ids = await _ids(config, client, body) if replay is None or kv_transfer is None else []
    if replay is None:
        replay = bool(ids) and await _try(config, client, {**body, "prompt": ids}) is not None
    if priority is None:
        priority = await _try(config, client, {**body, "priority": 1}) is not None
    if kv_transfer is None and ids:
        prompt = (ids * (block_tokens + 1))[: block_tokens + 1]  # a part of a block is not handed over
        answer = await _try(config, client, {**body, "prompt": prompt, "kv_transfer_params": _ASK_PREFILL})
        kv_transfer = bool(answer and answer.get("kv_transfer_params"))
    return replay, priority, bool(kv_transfer)


async def _ids(config: EngineConfig, client: httpx.AsyncClient, body: Mapping[str, Any]) -> list[int]:
    """Prompt ids and the emitted id of a one-token completion; empty if the engine does not give them."""
    answer = await _try(config, client, {**body, "return_token_ids": True}) or {}
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    prompt, emitted = choice.get("prompt_token_ids"), choice.get("token_ids")
    if not isinstance(prompt, list) or not isinstance(emitted, list):
        return []
    return [i for i in (*prompt, *emitted) if isinstance(i, int)]


async def _try(config: EngineConfig, client: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The engine's answer to a completion; None if it refuses or fails it."""
    try:
        async with client.stream("POST", "/v1/completions", json=body, timeout=config.probe_timeout_s) as response:
            raw = await _limited(response, _MAX_ANSWER_BYTES)
        answer = orjson.loads(raw) if response.is_success else None
    except (httpx.HTTPError, orjson.JSONDecodeError) as error:
        logger.warning("engine %s: a one-token completion failed: %s", config.engine_url, type(error).__name__)
        return None
    return answer if isinstance(answer, dict) else None


async def _limited(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > max_bytes:
            raise httpx.RemoteProtocolError(f"{response.url.path}: over {max_bytes} bytes")
    return bytes(body)


def _profile(gpu: str, model: str) -> GpuProfile | None:
    try:
        return load_profile(gpu, model)
    except UnknownProfile:
        return None


def _kv_link(config: EngineConfig, profile: GpuProfile | None) -> float | None:
    return config.kv_link_bytes_per_s or (profile.kv_link_bytes_per_s if profile else None)


def _known(flag: str, config: EngineConfig, value: int | None) -> int:
    if value is None:
        raise BadInput(f"engine {config.engine_url}: no profile and no metric tells its {flag}; give --{flag}")
    return value


def _why(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
