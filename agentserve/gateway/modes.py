"""In which mode does this gateway serve, and how do all gateways of a cluster agree on it? `GET` and `PUT /v1/mode`.

The newest switch in the store holds, for every gateway and over restarts; before the first one, AGENTSERVE_MODE does.
While the store is away the mode stays as it is and cannot be switched.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentserve.errors import Unavailable
from agentserve.gateway.bodies import read_json
from agentserve.gateway.errors import BadParameter, json_response
from agentserve.gateway.guard import admin_only, tenant_of
from agentserve.gateway.runs import RunService
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings
from agentserve.telemetry.mode_figures import ModeCounts, figures
from agentserve.tracker.store import ModeStore, ModeSwitch
from scheduler.events import Mode

logger = logging.getLogger(__name__)

FOLLOW_S: Final = 0.4
"""How often the store is asked for a newer switch."""
_SHOWN_SWITCHES: Final = 20
_MAX_BODY_BYTES: Final = 4096


class Modes:
    """Follows the cluster's mode and switches it. `on_mode` is told of the first one and of each that is taken up."""

    def __init__(
        self,
        settings: Settings,
        store: ModeStore,
        orchestrator: Orchestrator,
        runs: RunService,
        counts: ModeCounts,
        clock: Callable[[], float],
        on_mode: Callable[[Mode], None] = lambda mode: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._orchestrator = orchestrator
        self._runs = runs
        self._counts = counts
        self._clock = clock
        self._on_mode = on_mode
        self._start = ModeSwitch(mode=str(settings.mode), at_s=0.0, token=f"start-{settings.mode}")
        self._holds = self._start
        self._changing = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._is_away = False

    def routes(self) -> list[Route]:
        """Both of them."""
        return [
            Route("/v1/mode", self.get, methods=["GET"]),
            Route("/v1/mode", self.put, methods=["PUT"]),
        ]

    async def get(self, request: Request) -> Response:
        """The mode, and what runs did in each since it was last switched to: of all tenants, so for admins only."""
        told = await self.shown()
        if not tenant_of(request).admin:
            told |= {"figures": None, "switches": None, "problem": "they are for admins"}
        return json_response(told)

    async def put(self, request: Request) -> Response:
        """Switch the whole cluster; for admins."""
        admin_only(request, "switching the mode")
        given = (await read_json(request, _MAX_BODY_BYTES)).get("mode")
        try:
            mode = Mode(str(given))
        except ValueError:
            raise BadParameter("mode", f"must be one of {', '.join(Mode)}") from None
        await self.switch(mode)
        return json_response(await self.shown())

    async def begin(self) -> None:
        """Take up the mode that holds, before anything else happens."""
        async with self._changing:
            self._adopt(self._start)
            await self._follow()
        if self._holds.mode != self._settings.mode:
            logger.warning(
                "mode %s holds, as it was switched to; AGENTSERVE_MODE=%s counts until the first switch only",
                self._holds.mode,
                self._settings.mode,
            )

    async def run(self) -> None:
        """Follow switches made elsewhere and send what was counted, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            async with self._changing:
                await self._follow()
            try:
                await self._send()
            except Unavailable as error:
                self._warn(error)

    async def switch(self, mode: Mode) -> None:
        """Serve in another mode from the next decision on, here and, within a second, everywhere. Unavailable."""
        async with self._changing:
            if mode == self._holds.mode:
                return
            switch = ModeSwitch(mode=str(mode), at_s=self._clock(), token=uuid.uuid4().hex)
            await self._store.switch(switch)
            self._adopt(switch)

    async def shown(self) -> dict[str, Any]:
        """Everything about modes as plain data; without the store, no figures."""
        known: dict[str, Any] = {
            "mode": self._holds.mode,
            "since_s": self._since_s(self._holds),
            "modes": [str(mode) for mode in Mode],
            "policy": self._settings.policy,
            "observed_policy": self._settings.observed_policy,
        }
        try:
            await self._send()
            switches = [*await self._store.switches(), self._start]
            newest = {switch.mode: (i, switch) for i, switch in reversed(list(enumerate(switches)))}
            counts = await self._store.counts([switch.token for _, switch in newest.values()])
        except Unavailable as error:
            return {**known, "figures": None, "switches": None, "problem": str(error)}
        told = {
            mode: {
                "since_s": self._since_s(switch),
                "until_s": switches[i - 1].at_s if i else None,
                **figures(counted),
            }
            for (mode, (i, switch)), counted in zip(newest.items(), counts, strict=True)
        }
        history = [{"mode": switch.mode, "at_s": switch.at_s} for switch in switches[:-1][:_SHOWN_SWITCHES]]
        return {**known, "figures": {str(mode): told.get(str(mode)) for mode in Mode}, "switches": history}

    def _since_s(self, switch: ModeSwitch) -> float | None:
        return None if switch is self._start else switch.at_s

    async def _follow(self) -> None:
        """Take up the newest switch; a store that lost its memory is told again."""
        try:
            newest: Sequence[ModeSwitch] = await self._store.switches(1)
            if newest and newest[0].token != self._holds.token:
                self._adopt(newest[0])
            elif not newest and self._holds is not self._start:
                await self._store.switch(self._holds)
        except Unavailable as error:
            self._warn(error)
        else:
            self._is_away = False

    def _adopt(self, switch: ModeSwitch) -> None:
        """From the next decision on."""
        before, mode = self._orchestrator.mode, Mode(switch.mode)
        self._holds = switch
        self._counts.switched(switch.token)
        if mode is not before:
            self._orchestrator.switch(mode, self._settings.observed_policy)
            self._runs.mode_changed(before, mode)
            logger.info("mode %s, before %s", mode, before)
        self._on_mode(mode)

    async def _send(self) -> None:
        async with self._sending:
            for batch in self._counts.batches():
                await self._store.count(batch.token, batch.increments, batch.once)
                self._counts.sent(batch)

    def _warn(self, error: Unavailable) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("the mode stays %s: %s", self._holds.mode, error)
