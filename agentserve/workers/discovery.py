"""What does a worker announce of its engine? What is given, what a probe finds out, and what the GPU profile knows.

Asked once when the engine is ready, and again when it has changed.
"""

import asyncio
import logging
from functools import partial
from typing import Final

import httpx

from agentserve.errors import BadInput, Unavailable
from agentserve.telemetry.messages import Announce
from agentserve.workers.asking import open_client, why
from agentserve.workers.config import EngineConfig
from agentserve.workers.kinds import Identity, is_ready
from agentserve.workers.probe import DEFAULT_BLOCK_TOKENS, Given, Probe, probe
from agentserve.workers.trials import Skill
from agentserve.workers.unlisted import serves_unlisted
from scheduler.errors import UnknownProfile
from scheduler.events import Role
from scheduler.profiles import GpuProfile

logger = logging.getLogger(__name__)

DEFAULT_MAX_NUM_SEQS: Final = 256
DEFAULT_MAX_BATCHED_TOKENS: Final = 8192
_POLL_S: Final = (0.1, 0.2, 0.4, 0.8, 1.0)
_HEALTH_TIMEOUT_S: Final = 5.0
"""Some health checks generate a token: SGLang's takes a second when it is idle."""


def check_gpu(config: EngineConfig) -> None:
    """Raise BadInput, naming the known ones, for a GPU without a profile."""
    if not config.profiles.knows_gpu(config.gpu):
        raise BadInput(f"unknown gpu {config.gpu!r}; known: {', '.join(config.profiles.gpus())}")


async def discover(config: EngineConfig, client: httpx.AsyncClient, boot_id: str) -> Announce:
    """Wait until the engine is healthy, then state its facts.

    Raises BadInput (unknown GPU, another model, a fact that nobody knows) and Unavailable (not ready in time).
    """
    check_gpu(config)
    await _until_ready(config, client)
    found = await probe(
        client,
        config.engine_url,
        choose=partial(choose_model, config, client),
        given=Given(
            kind=config.engine,
            replay=config.supports_replay,
            priority=config.supports_priority,
            kv_transfer=config.kv_transfer,
            block_tokens=config.block_tokens,
        ),
        thorough=False,
        timeout_s=config.probe_timeout_s,
    )
    for skill, finding in found.skills.items():
        if finding.found is None:
            logger.warning("engine %s: whether it has %s is not known: %s", config.engine_url, skill, finding.how)
    return _announce(config, found, boot_id)


async def discover_static(config: EngineConfig) -> Announce:
    """The facts of an engine that has no worker, for `Registry.add_static`; raises as `discover` does."""
    async with client_for(config) as client:
        return await discover(config, client, boot_id="static")


def client_for(config: EngineConfig) -> httpx.AsyncClient:
    """A client for the configured engine; its user closes it."""
    return open_client(config.engine_url, api_key=config.api_key, timeout_s=config.request_timeout_s)


async def choose_model(config: EngineConfig, client: httpx.AsyncClient, identity: Identity) -> str:
    """The served name that the worker stands for; raises BadInput naming what is served."""
    served = identity.names
    names = ", ".join(served) or "nothing"
    if config.model is None:
        if len(served) == 1:
            return served[0]
        raise BadInput(f"engine {config.engine_url} serves {names}: say which one with --model")
    if config.model in served:
        return config.model
    wanted = _profile(config, config.model)
    for name in served:
        if wanted is not None and wanted == _profile(config, name):
            return name
    if await serves_unlisted(client, config.engine_url, identity, config.model, config.probe_timeout_s):
        return config.model
    raise BadInput(f"engine {config.engine_url} does not serve {config.model!r}; it serves {names}")


async def _until_ready(config: EngineConfig, client: httpx.AsyncClient) -> None:
    try:
        async with asyncio.timeout(config.ready_timeout_s):
            for attempt in range(2**31):
                try:
                    problem = await is_ready(client, config.engine, timeout_s=_HEALTH_TIMEOUT_S)
                except httpx.HTTPError as error:
                    problem = why(error)
                if problem is None:
                    return
                if attempt == 0:
                    logger.warning("waiting for the engine at %s (%s)", config.engine_url, problem)
                await asyncio.sleep(_POLL_S[min(attempt, len(_POLL_S) - 1)])
    except TimeoutError:
        raise Unavailable(f"engine {config.engine_url}: not ready within {config.ready_timeout_s:g} s") from None


def _announce(config: EngineConfig, found: Probe, boot_id: str) -> Announce:
    """The facts, flags first, then the engine's own words, then the profile."""
    facts, profile = found.facts, _profile(config, found.model)
    can_transfer = found.skills[Skill.KV_TRANSFER].found is True
    return Announce(
        worker_id=config.instance_id,
        boot_id=boot_id,
        engine_url=config.engine_url,
        engine=found.identity.kind,
        engine_version=found.identity.version,
        model=found.model,
        gpu=profile.gpu if profile else config.gpu,
        role=config.role or facts.role or Role.MIXED,
        kv_capacity_tokens=_known(
            "kv-capacity-tokens",
            config,
            config.kv_capacity_tokens or facts.kv_capacity_tokens or (profile.kv_capacity_tokens if profile else None),
        ),
        block_tokens=config.block_tokens or facts.block_tokens or DEFAULT_BLOCK_TOKENS,
        max_num_seqs=config.max_num_seqs or facts.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
        max_batched_tokens=config.max_batched_tokens or facts.max_batched_tokens or DEFAULT_MAX_BATCHED_TOKENS,
        kv_bytes_per_token=_known(
            "kv-bytes-per-token", config, config.kv_bytes_per_token or (profile.kv_bytes_per_token if profile else None)
        ),
        kv_link_bytes_per_s=_kv_link(config, profile) if can_transfer else None,
        kv_group=(config.kv_group or found.kv_group) if can_transfer else None,
        kv_address=facts.kv_address if can_transfer else None,
        speed=config.speed,
        supports_priority=found.capabilities.priority is not None,
        supports_replay=found.capabilities.can_replay,
    )


def _profile(config: EngineConfig, model: str) -> GpuProfile | None:
    try:
        return config.profiles(config.gpu, model)
    except UnknownProfile:
        return None


def _kv_link(config: EngineConfig, profile: GpuProfile | None) -> float | None:
    return config.kv_link_bytes_per_s or (profile.kv_link_bytes_per_s if profile else None) or None


def _known(flag: str, config: EngineConfig, value: int | None) -> int:
    if value is None:
        raise BadInput(f"engine {config.engine_url}: no profile and no metric tells its {flag}; give --{flag}")
    return value
