"""Is the engine well, how busy is it, and is it still the one that was announced? One look at a time.

A refused connection or a failed health check tells at once; a slow answer may only mean a busy engine, so it takes
several in a row. Metrics can be served by a front end whose engine is dead, hence the health check beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import httpx

from agentserve.workers.discovery import MAX_METRICS_BYTES, engine_version, fetch, served_models
from agentserve.workers.scrape import Change, Reading, change, read, restarted

_SLOW_ANSWERS_ALLOWED: Final = 2
_HEALTH_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found. `reading` None: it has no metrics, or did not answer in time."""

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
    ) -> None:
        self._client = client
        self._recheck_every_s = recheck_every_s
        self._wall_clock, self._steady_clock = wall_clock, steady_clock
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
        before, self._last = self._last, reading
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
        return Look(measured_at_s=measured_at_s, healthy=False, problem=problem)

    async def _read(self, at_s: float) -> Reading | None:
        """Metrics, and health where that is due or metrics do not exist."""
        status, body = await fetch(self._client, "/metrics", MAX_METRICS_BYTES)
        if at_s >= self._next_health_s:
            health, _ = await fetch(self._client, "/health")
            if health != httpx.codes.OK:
                raise httpx.RemoteProtocolError(f"/health answered {health}")
            self._next_health_s = at_s + _HEALTH_EVERY_S
        return read(body, at_s) if status == httpx.codes.OK else None

    async def _recheck(self, at_s: float) -> bool:
        if at_s < self._next_recheck_s:
            return False
        identity = (await served_models(self._client), await engine_version(self._client))
        before, self._identity = self._identity, identity
        self._next_recheck_s = at_s + self._recheck_every_s
        return before is not None and before != identity
