"""How do pages learn what goes on, at one cost however many look? One reading of the store and of the instances.

It reads nothing while nobody looks. The store is followed beside the ticks, so that a store that is away holds up
nothing: instances go on being shown, and `problem` says what is missing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, Final, Protocol

from agentserve.errors import AgentServeError
from agentserve.gateway.errors import Overloaded
from agentserve.gateway.page import figures
from agentserve.gateway.page.board import Board
from agentserve.orchestrator import Orchestrator
from agentserve.tracker.store import Overview, RunStore
from workflows.run import RunStatus

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.5
"""Pages hear of changes this often, whatever the load."""
MINUTES: Final = 60
MINUTE_S: Final = 60
_MAX_LIVE: Final = 1000
_MAX_NEWEST: Final = 200
_COUNT_EVERY: Final = 2
_RETRY_S: Final = 2.0
_READING: Final = "runs are being read"


class Watched(RunStore, Overview, Protocol):
    """What is read of the store."""


class Watch:
    """What pages are shown, with a version for every part; `run` in the background, readers in `reading()`."""

    def __init__(
        self, store: Watched, orchestrator: Orchestrator, max_readers: int, clock: Callable[[], float]
    ) -> None:
        self.board = Board()
        self.instances: dict[str, tuple[int, dict[str, Any]]] = {}
        """Each with the version of its last change."""
        self.minutes: dict[int, tuple[int, int, int, int]] = {}
        """Unix time of each minute's begin → version of its last change, and runs in time, missed, without SLO."""
        self.problem: str | None = _READING
        """Why the runs shown are not those of now; None: they are."""
        self.version = 0
        self.clock = clock
        self.orchestrator = orchestrator
        self._store = store
        self._max_readers = max_readers
        self.readers = 0
        """Streams that are open."""
        self._wanted = asyncio.Event()
        self._tick = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the gateway takes readers; not while it stops."""
        return self.orchestrator.accepting

    def check_room(self) -> None:
        """Overloaded if as many look as may."""
        if self.readers >= self._max_readers:
            raise Overloaded(f"{self._max_readers} pages are open, which is the limit; close one and try again")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Be counted as a reader; Overloaded if there are too many."""
        self.check_room()
        self.readers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.readers -= 1

    async def ticked(self) -> None:
        """Wait until what is shown may have changed."""
        await self._tick.wait()

    async def run(self) -> None:
        """Follow the cluster while somebody looks, until cancelled."""
        while True:
            if not self.readers:
                self._wanted.clear()
                await self._wanted.wait()
            following = asyncio.create_task(self._follow())
            try:
                while self.readers:
                    self.look()
                    self._announce()
                    await asyncio.sleep(PERIOD_S)
            finally:
                following.cancel()
                await asyncio.wait([following])

    def look(self) -> None:
        """Take the instances as they are now."""
        for name, plain in figures.instances(self.orchestrator).items():
            if name not in self.instances or self.instances[name][1] != plain:
                self.instances[name] = (self._next(), plain)

    def _announce(self) -> None:
        told, self._tick = self._tick, asyncio.Event()
        told.set()

    def _next(self) -> int:
        self.version += 1
        return self.version

    async def _follow(self) -> None:
        """Keep the board and the minutes current; what the store refuses is tried again."""
        position: str | None = None
        turn = 0
        self.problem = _READING
        while True:
            try:
                if position is None:
                    await self._begin()
                position = await self._read_feed(position)
                if turn % _COUNT_EVERY == 0:
                    await self.count(MINUTES if turn == 0 else 2)
                turn += 1
                self.problem = None
            except AgentServeError as error:
                logger.info("the page's runs are not current: %s", error)
                self.problem = "the store does not answer: runs are shown as they were"
                await asyncio.sleep(_RETRY_S)
            except Exception:
                logger.exception("the page's runs could not be read; they are read anew")
                self.problem, position, turn = "runs could not be read", None, 0
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(PERIOD_S)

    async def _begin(self) -> None:
        """A new board: the newest live runs, the newest of all, and then what the feed still tells of them."""
        board = Board(version=self.board.version)
        for status, limit in ((RunStatus.RUNNING, _MAX_LIVE), (None, _MAX_NEWEST)):
            asked_s = self.clock()
            board.take(await self._store.list(status, limit), asked_s)
        self.board = board

    async def _read_feed(self, position: str | None) -> str | None:
        """Take all that is new; the position to go on from, None if something was missed."""
        while True:
            facts = await self._store.facts(position)
            if facts.is_gap:
                return None
            self.board.apply(facts.events)
            position = facts.position
            if facts.is_last:
                return position

    async def count(self, minutes: int) -> None:
        """Count the runs that ended in the last minutes, the present one included."""
        this = int(self.clock() // MINUTE_S) * MINUTE_S
        begins = range(this - (minutes - 1) * MINUTE_S, this + MINUTE_S, MINUTE_S)
        counted = await self._store.ended([(begin, begin + MINUTE_S) for begin in begins])
        for begin, ended in zip(begins, counted, strict=True):
            known = self.minutes.get(begin)
            if known is None or known[1:] != astuple(ended):
                self.minutes[begin] = (self._next(), ended.in_time, ended.missed, ended.no_slo)
        for old in [begin for begin in self.minutes if begin <= this - MINUTES * MINUTE_S]:
            del self.minutes[old]
