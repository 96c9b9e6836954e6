"""How do run events reach the store without anyone waiting for it? Over a bounded queue, written in batches."""

import asyncio
import contextlib
import logging
from collections import deque
from types import TracebackType
from typing import Final, Self

from agentserve.errors import AgentServeError, Unavailable
from agentserve.journal import RunEvent
from agentserve.tracker.store import EventStore

MAX_BATCH: Final = 256
MAX_DELAY_S: Final = 0.05
MAX_WAITING: Final = 20_000
_MAX_BACKOFF_S: Final = 0.5

_log = logging.getLogger(__name__)


class StoreSink:
    """A `journal.Sink` that writes to an EventStore, in order, at most 50 ms or 256 events late.

    While the store is down events wait, up to `max_waiting`; then the oldest are dropped and counted in `dropped`.
    Use it as `async with`, or `start` and `aclose`.
    """

    def __init__(self, store: EventStore, *, max_waiting: int = MAX_WAITING, max_delay_s: float = MAX_DELAY_S) -> None:
        self._store = store
        self._max_waiting = max_waiting
        self._max_delay_s = max_delay_s
        self._waiting: deque[RunEvent] = deque()
        self._in_flight: list[RunEvent] = []
        self._arrived = asyncio.Event()
        self._hurry = asyncio.Event()
        self._settled = asyncio.Condition()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._taken = 0
        self._reported = 0
        self.dropped = 0
        """Events lost so far, because the store was down for long or refused them."""

    @property
    def waiting(self) -> int:
        """Events taken and not yet in the store."""
        return len(self._waiting) + len(self._in_flight)

    def record(self, event: RunEvent) -> None:
        """Take one event; returns at once and never raises."""
        if len(self._waiting) >= self._max_waiting:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(event)
        self._taken += 1
        self._arrived.set()
        if len(self._waiting) >= MAX_BATCH:
            self._hurry.set()

    def start(self) -> None:
        """Begin to write, in a task that `aclose` ends."""
        if self._task is None:
            self._closing = False
            self._task = asyncio.create_task(self._write(), name="journal writer")

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until every event taken before this call is in the store, or dropped; False if that took too long."""
        target = self._taken
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s), self._settled:
                await self._settled.wait_for(lambda: self._taken - self.waiting >= target or self._task is None)
        except TimeoutError:
            return False
        return self._taken - self.waiting >= target

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most `timeout_s`, and stop; what could not be written is dropped and counted."""
        task = self._task
        self._closing = True
        self._arrived.set()
        self._hurry.set()
        if task is not None:
            await asyncio.wait([task], timeout=timeout_s)
            task.cancel()
            await asyncio.wait([task])
        self._task = None
        self.dropped += self.waiting
        self._waiting.clear()
        self._in_flight = []
        await self._report()
        if task is not None and not task.cancelled():
            task.result()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _write(self) -> None:
        while not self._closing or self._waiting:
            await self._arrived.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._max_delay_s):
                    await self._hurry.wait()
            self._arrived.clear()
            self._hurry.clear()
            while self._waiting:
                self._in_flight = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                await self._deliver(self._in_flight)
                self._in_flight = []
                await self._report()
            if self._closing:
                return

    async def _deliver(self, batch: list[RunEvent]) -> None:
        """Store a batch, for as long as that takes; events that the store refuses are dropped singly."""
        backoff_s = self._max_delay_s
        while True:
            try:
                await self._store.append(batch)
            except Unavailable as error:
                if backoff_s == self._max_delay_s:
                    _log.warning("journal: run events wait: %s", error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            except AgentServeError as error:
                if len(batch) == 1:
                    _log.warning("journal drops a %s event: %s", batch[0].kind, error)
                    self.dropped += 1
                    return
                for event in batch:
                    await self._deliver([event])
                return
            else:
                return

    async def _report(self) -> None:
        """Say what was lost since the last time, and wake those who wait in `flush`."""
        lost, self._reported = self.dropped - self._reported, self.dropped
        if lost:
            _log.warning(
                "journal: %d run events were dropped, %d in all, as the store did not take them", lost, self._reported
            )
        async with self._settled:
            self._settled.notify_all()
