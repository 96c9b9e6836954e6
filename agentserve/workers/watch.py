"""Is the engine well, how busy is it, and is it still the one that was announced? One look at a time.

A refused connection or a failed health check tells at once; a slow answer may only mean a busy engine, so it takes
several in a row. Metrics can be served by a front end whose engine is dead, hence the health check beside them. Metrics
are read at a pace that the engine does not feel; looks in between ask for its health alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx

from agentserve.engines.metric_names import VLLM_METRICS
from agentserve.workers.asking import MAX_METRICS_BYTES, fetch
from agentserve.workers.kinds import engine_version, is_ready, metrics_route, served_models
from agentserve.workers.pace import ReadingPace
from agentserve.workers.scrape import Change, Reading, change, read, restarted

_SLOW_ANSWERS_ALLOWED: Final = 2
_HEALTH_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found. `reading` None: none was due, or the engine has no metrics or did not answer in time."""

    measured_at_s: float
    """When the engine was asked, Unix time."""
    healthy: bool
    problem: str | None = None
    reading: Reading | None = None
    change: Change = field(default_factory=Change)
    is_another: bool = False
    """It restarted, or serves another model or version than it did: its facts must be found out again."""


class EngineWatch:
    """Looks at one engine again and again; the caller sets the pace and never runs two looks at once."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        recheck_every_s: float,
        wall_clock: Callable[[], float],
        steady_clock: Callable[[], float],
        read_every_s: float = 0.0,
        kind: str = "vllm",
        names: Mapping[str, str] = VLLM_METRICS,
    ) -> None:
        """`read_every_s`: the shortest time between readings. `names`: of the metrics that this kind has."""
        self._client = client
        self._kind, self._names = kind, names
        self._recheck_every_s = recheck_every_s
        self._wall_clock, self._steady_clock = wall_clock, steady_clock
        self._pace = ReadingPace(read_every_s)
        self._last: Reading | None = None
        self._identity: tuple[tuple[str, ...], str | None] | None = None
        self._next_health_s = self._next_recheck_s = float("-inf")
        self._slow = 0
        self._was_down = False

    async def look(self) -> Look:
        """Ask the engine; never raises on what it does."""
        measured_at_s, at_s = self._wall_clock(), self._steady_clock()
        try:
            reading = await self._read(at_s)
            is_another = await self._recheck(at_s)
        except httpx.TimeoutException:
            self._slow += 1
            if self._slow <= _SLOW_ANSWERS_ALLOWED and not self._was_down:
                return Look(measured_at_s=measured_at_s, healthy=True)
            return self._down(measured_at_s, "it does not answer in time")
        except httpx.HTTPError as error:
            return self._down(measured_at_s, str(error) or type(error).__name__)
        self._slow = 0
        before, self._last = self._last, reading or self._last
        if reading is not None and before is not None:
            is_another = is_another or restarted(before, reading)
        is_another, self._was_down = is_another or self._was_down, False
        return Look(
            measured_at_s=measured_at_s,
            healthy=True,
            reading=reading,
            change=change(before, reading) if reading is not None else Change(),
            is_another=is_another,
        )

    def _down(self, measured_at_s: float, problem: str) -> Look:
        self._was_down = True
        self._last = None
        self._next_health_s = float("-inf")
        self._pace.forget()
        return Look(measured_at_s=measured_at_s, healthy=False, problem=problem)

    async def _read(self, at_s: float) -> Reading | None:
        """Metrics where they are due, and health where that is due or metrics are not read."""
        reading = None
        if is_due := bool(self._names) and self._pace.is_due(at_s):
            status, body = await fetch(self._client, metrics_route(self._kind), MAX_METRICS_BYTES)
            self._pace.took(at_s, self._steady_clock())
            reading = read(body, at_s, self._names) if status == httpx.codes.OK else None
        if not is_due or at_s >= self._next_health_s:
            if (problem := await is_ready(self._client, self._kind)) is not None:
                raise httpx.RemoteProtocolError(problem)
            self._next_health_s = at_s + _HEALTH_EVERY_S
        return reading

    async def _recheck(self, at_s: float) -> bool:
        if at_s < self._next_recheck_s:
            return False
        identity = (await served_models(self._client), await engine_version(self._client, self._kind))
        before, self._identity = self._identity, identity
        self._next_recheck_s = at_s + self._recheck_every_s
        return before is not None and before != identity
