"""Which engines can the gateway use now? Workers' messages and its own health checks, told to the orchestrator."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from agentserve.engines import open_adapter
from agentserve.engines.adapter import EngineAdapter
from agentserve.engines.http import Limits
from agentserve.engines.networks import Networks
from agentserve.errors import AgentServeError
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings
from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Announce, Report
from agentserve.workers.config import EngineConfig
from agentserve.workers.discovery import check_gpu, discover_static
from agentserve.workers.follow import follow
from agentserve.workers.member import Member
from agentserve.workers.registry import Registry
from scheduler.events import InstanceSpec

logger = logging.getLogger(__name__)

PROBE_EVERY_S: Final = 0.5
FAILURES_UNTIL_LOST: Final = 2
_DISCOVER_AGAIN_S: Final = 1.0


class Fleet:
    """Keeps the orchestrator's instances current. `run` until cancelled; BadInput for an unknown GPU or a bad URL."""

    def __init__(
        self,
        settings: Settings,
        orchestrator: Orchestrator,
        static_engines: Sequence[EngineConfig] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        for engine in static_engines:
            check_gpu(engine)
        self._orchestrator = orchestrator
        self._static = tuple(static_engines)
        self._clock = clock
        self.bus = Bus(settings.mqtt_url, ca_file=settings.mqtt_ca_file) if settings.mqtt_url else None
        secret = settings.announce_secret
        self.registry = Registry(
            settings.cluster,
            settings.lost_after_s,
            on_joined=self._joined,
            on_reported=self._reported,
            on_draining=orchestrator.draining,
            on_lost=orchestrator.lost,
            secret=None if secret is None else secret.get_secret_value(),
        )
        self._networks = Networks.parse(settings.engine_networks)
        orchestrator.on_unreachable = self._unreachable
        self._limits = Limits(
            connect_timeout_s=settings.connect_timeout_s,
            stall_timeout_s=settings.connect_timeout_s,
        )
        self._api_key = settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
        self._probes: dict[tuple[str, str, bool], EngineAdapter] = {}
        self._failures: dict[str, int] = {}

    async def run(self) -> None:
        """Follow the broker, find the static engines, and check the health of whoever only we can judge."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.bus is not None:
                    tasks.create_task(follow(self.bus, self.registry, self._clock))
                for engine in self._static:
                    tasks.create_task(self._find(engine))
                tasks.create_task(self._probe_for_ever())
        finally:
            for adapter in self._probes.values():
                await adapter.close()

    async def probe(self) -> None:
        """Check every engine once that the registry wants checked."""
        members = self.registry.to_probe()
        async with asyncio.TaskGroup() as tasks:
            for member in members:
                tasks.create_task(self._probe_one(member))

    async def _probe_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            await self.probe()

    async def _probe_one(self, member: Member) -> None:
        announce = member.announce
        if announce is None:
            return
        key = (announce.engine, announce.engine_url)
        place = (*key, member.static)
        try:
            limits = self._limits if member.static else replace(self._limits, networks=self._networks)
            adapter = self._probes.get(place) or open_adapter(*key, api_key=self._api_key, limits=limits)
        except AgentServeError:  # an engine of an unknown kind; the registry has refused it already
            return
        self._probes[place] = adapter
        name = member.worker_id
        if await adapter.is_healthy():
            self._failures.pop(name, None)
            self.registry.observed_alive(name)
        elif member.is_live:
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._failures[name] >= FAILURES_UNTIL_LOST:
                self.registry.observed_lost(name, "its engine does not answer health checks", self._clock())

    async def _find(self, engine: EngineConfig) -> None:
        has_complained = False
        while True:
            try:
                self.registry.add_static(await discover_static(engine), self._clock())
                return
            except AgentServeError as error:
                if not has_complained:
                    logger.warning("%s; trying on", error)
                has_complained = True
            await asyncio.sleep(_DISCOVER_AGAIN_S)

    def _joined(self, spec: InstanceSpec, announce: Announce) -> None:
        member = self.registry.get(spec.instance_id)
        announced = member is None or not member.static
        self._orchestrator.joined(spec, announce.engine_url, announce.engine, announce.kv_address, announced=announced)

    def _reported(self, report: Report) -> None:
        figures = report.model_dump(exclude={"worker_id", "boot_id", "seq", "measured_at_s", "healthy"})
        if any(figure is not None for figure in figures.values()):  # else a sign of life; the last reading still holds
            self._orchestrator.reported(report.worker_id, report.measured_at_s, **figures)

    def _unreachable(self, instance_id: str, reason: str) -> None:
        self.registry.observed_lost(instance_id, reason, self._clock())
