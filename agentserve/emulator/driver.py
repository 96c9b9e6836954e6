"""How does the engine model run in wall time? One task paces its iterations and hands tokens to whoever waits."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from agentserve.emulator.engine import Engine
from agentserve.emulator.metrics import Histograms
from agentserve.emulator.sequence import EngineRequest, IterationResult

SHORTEST_SLEEP_S: Final = 0.001
"""Shorter waits are not slept (the loop's timers tick in milliseconds): tokens may come that much early."""
TIMER_LATE_S: Final = 0.0007
"""How late the loop's timers come on average: they are rounded up to milliseconds."""
LONGEST_BURST_S: Final = 0.005
"""While catching up, other tasks get their turn this often."""
LARGEST_LAG_S: Final = 1.0
"""A process that was stopped for longer does not pretend that its GPU worked on."""


class Ticket:
    """A request's progress. `available` tokens are out; `event` is set once there are `wake_at`, or it is done."""

    __slots__ = ("arrived_s", "available", "cached_tokens", "done", "event", "last_s", "on_transferred", "wake_at")

    def __init__(self, arrived_s: float, wake_at: int, on_transferred: Callable[[], None] | None) -> None:
        self.arrived_s = self.last_s = arrived_s
        self.available = 0
        self.cached_tokens = 0
        self.done = False
        self.event = asyncio.Event()
        self.wake_at = wake_at
        self.on_transferred = on_transferred

    async def wait_for(self, tokens: int) -> int:
        """Wait until `tokens` are available or the request is done; returns how many are."""
        self.wake_at = tokens
        while self.available < tokens and not self.done:
            self.event.clear()
            await self.event.wait()
        return self.available


class Driver:
    """Runs `engine` `speed` times faster than wall time. `run` is the only task that steps it."""

    def __init__(self, engine: Engine, speed: float) -> None:
        self.engine = engine
        self.speed = speed
        self.lag_s = 0.0
        self.lost_s = 0.0
        self.histograms = Histograms()
        self._started_s = monotonic()
        self._wake = asyncio.Event()
        self._woken_s: float | None = None
        self._tickets: dict[str, Ticket] = {}

    def now_s(self) -> float:
        """Engine time."""
        return (monotonic() - self._started_s) * self.speed

    def submit(
        self,
        request: EngineRequest,
        *,
        arrived_s: float,
        wake_at: int,
        on_transferred: Callable[[], None] | None = None,
    ) -> Ticket:
        """Queue a request that reached the server at `arrived_s` (monotonic). Raises ValueError like `Engine.add`.

        An idle engine begins with it as of then, so that the emulator's own parsing, which is no part of what it
        emulates, hides behind the first iteration. `on_transferred` is called when remote KV has arrived.
        """
        self.engine.add(request)
        ticket = Ticket(arrived_s, wake_at, on_transferred)
        self._tickets[request.request_id] = ticket
        if not self._wake.is_set():
            self._woken_s = (arrived_s - self._started_s) * self.speed
        self._wake.set()
        return ticket

    def abort(self, request_id: str) -> None:
        """Drop a request, if it still lives, and free its KV at once."""
        self.engine.abort(request_id)
        ticket = self._tickets.pop(request_id, None)
        if ticket is not None:
            ticket.done = True
            ticket.event.set()
            if ticket.on_transferred is not None:
                ticket.on_transferred()

    def release(self, request_id: str) -> bool:
        """Unpin KV and let what waited for its blocks begin; False if there was none."""
        released = self.engine.release(request_id)
        self._wake.set()
        return released

    async def run(self) -> None:
        """Run iterations until cancelled. An iteration's tokens come out at its end, which never drifts."""
        at_s, yielded_s = self.now_s(), monotonic()
        while True:
            result = self.engine.step(at_s)
            end_s = at_s + result.duration_s
            self._note_admissions(result)
            delay_s = (end_s - self.now_s()) / self.speed
            if not result.duration_s:
                at_s, yielded_s = max(at_s, await self._idle()), monotonic()
                continue
            if delay_s >= SHORTEST_SLEEP_S:
                await asyncio.sleep(delay_s - TIMER_LATE_S)
                yielded_s = monotonic()
            elif monotonic() - yielded_s > LONGEST_BURST_S:
                await asyncio.sleep(0)
                yielded_s = monotonic()
            self._deliver(result)
            at_s = self._keep_up(end_s)

    def _keep_up(self, end_s: float) -> float:
        """When the next iteration begins: at once, unless the process has fallen too far behind."""
        now_s = self.now_s()
        self.lag_s = max(0.0, now_s - end_s) / self.speed
        if self.lag_s <= LARGEST_LAG_S:
            return end_s
        self.lost_s += self.lag_s
        return now_s

    async def _idle(self) -> float:
        """Wait for a request or for an event that time brings; returns when the next iteration may begin."""
        self.lag_s, self._woken_s = 0.0, None
        self._wake.clear()
        event_s = self.engine.next_event_s()
        delay_s = None if event_s is None else max(0.0, (event_s - self.now_s()) / self.speed)
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return self.now_s()
        return self.now_s() if self._woken_s is None else self._woken_s

    def _note_admissions(self, result: IterationResult) -> None:
        for request_id in result.started:
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                ticket.cached_tokens = result.cached_tokens[request_id]
                self.histograms.queue.observe(monotonic() - ticket.arrived_s)
        for request_id in result.transferred:
            ticket = self._tickets.get(request_id)
            if ticket is not None and ticket.on_transferred is not None:
                ticket.on_transferred()
                ticket.on_transferred = None

    def _deliver(self, result: IterationResult) -> None:
        now_s = monotonic()
        tickets, histograms = self._tickets, self.histograms
        for request_id in result.emitted:
            ticket = tickets.get(request_id)
            if ticket is None:
                continue
            ticket.available += 1
            if ticket.available == 1:
                histograms.first_token.observe(now_s - ticket.arrived_s)
            else:
                histograms.inter_token.observe(now_s - ticket.last_s)
            ticket.last_s = now_s
            if ticket.available >= ticket.wake_at:
                ticket.event.set()
        for request_id in result.finished:
            ticket = tickets.pop(request_id, None)
            if ticket is not None:
                ticket.done = True
                ticket.event.set()
                histograms.whole.observe(now_s - ticket.arrived_s)
