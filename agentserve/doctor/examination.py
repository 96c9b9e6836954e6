"""In which order is a cluster examined? All parts side by side, then every engine that any of them named."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from agentserve.doctor.broker import Heard, check_broker
from agentserve.doctor.engines import Target, check_engine
from agentserve.doctor.finding import Finding, Part
from agentserve.doctor.gateway import LOST, Seen, check_gateway, compare
from agentserve.doctor.redis import check_redis
from agentserve.doctor.traces import check_traces
from agentserve.profile_files import read_profiles
from agentserve.settings import Settings
from agentserve.workers.kinds import AUTO

MAX_ENGINES: Final = 64
_AT_ONCE: Final = 8


async def examine(
    settings: Settings, gateway_url: str, engines: Sequence[Target] = (), *, timeout_s: float = 5.0
) -> list[Finding]:
    """Everything that was found: by part, in the order in which a call meets them.

    `timeout_s` is for every single question. Raises BadInput for profile files that cannot be read.
    """
    profiles = read_profiles(settings.profiles)
    key = settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
    redis, heard, seen, traces = await asyncio.gather(
        check_redis(settings.redis_url, settings.cluster, timeout_s, settings.redis_ca_file),
        check_broker(
            settings.mqtt_url, settings.cluster, timeout_s, settings.lost_after_s, ca_file=settings.mqtt_ca_file
        ),
        check_gateway(gateway_url, settings.cluster, timeout_s),
        check_traces(settings.otlp_endpoint, timeout_s),
    )
    targets = _targets(engines, heard, seen)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def look(target: Target) -> list[Finding]:
        async with turns:
            return await check_engine(target, profiles, key, timeout_s)

    looked = await asyncio.gather(*(look(target) for target in targets[:MAX_ENGINES]))
    return [
        *seen.findings,
        *compare(seen, [member.worker_id for member in heard.alive]),
        *redis,
        *heard.findings,
        *(finding for one in looked for finding in one),
        *_engines_left_out(targets),
        *traces,
    ]


def _targets(given: Sequence[Target], heard: Heard, seen: Seen) -> list[Target]:
    """One per engine: as its living worker announces it, else as given, else as the gateway knows it."""
    announced = [
        Target(
            name=told.worker_id, url=told.engine_url, kind=told.engine, gpu=told.gpu, model=told.model, announce=told
        )
        for member in heard.members
        if (told := member.announce) is not None and (member.is_live or member.report is not None)
    ]
    known = [
        Target(
            name=str(one["instance_id"]),
            url=str(one["url"]),
            kind=str(one.get("engine") or AUTO),
            gpu=str(one["gpu"]),
            model=str(one["model"]),
        )
        for one in seen.instances
        if one["state"] != LOST and one["url"] is not None  # addresses are told to admins only
    ]
    by_url: dict[str, Target] = {}
    for target in (*announced, *given, *known):
        by_url.setdefault(target.url.rstrip("/"), target)
    return list(by_url.values())


def _engines_left_out(targets: Sequence[Target]) -> Iterator[Finding]:
    if not targets:
        yield Part("engines").problem("found", "no engine is known anywhere", "start a worker, or give --engine")
    elif len(targets) > MAX_ENGINES:
        found = f"{MAX_ENGINES} of {len(targets)} were looked at"
        yield Part("engines").warning("found", found, "name the others with --engine")
