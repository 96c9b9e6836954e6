"""In which order do calls reach an engine that knows no priorities? Held back here, the most urgent goes first.

As many calls are let in as the engine runs at once, so that nothing waits inside it, where order could not be changed.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Seats of one engine. A smaller `priority` goes first; equals go in the order they came."""

    def __init__(self, seats: int) -> None:
        self._free = seats
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    @property
    def waiting(self) -> int:
        """How many calls are held back now."""
        return sum(not turn.done() for _, _, turn in self._waiting)

    @asynccontextmanager
    async def seat(self, priority: int) -> AsyncIterator[None]:
        """Wait for a seat and keep it as long as this lasts; a cancelled wait takes none."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._turn(priority)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, priority: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._count), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the seat was given in the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
