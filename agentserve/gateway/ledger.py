"""How do transitions of runs reach the store, also when it is away for a while? Written through, or else behind.

A run that this process knows is served on from memory while the store is down; its transitions are kept in order and
written when the store is back. Derived deadlines are always written behind: nobody waits for them. They go with the
next transition of their run if one comes within a moment, which saves a short call a round trip.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable
from typing import Final

from agentserve.errors import AgentServeError, NotFound, Unavailable
from agentserve.tracker.store import Store
from workflows.errors import WorkflowError
from workflows.run import DeadlinesDerived, Run, Together, Transition

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.5
_MAX_BEHIND: Final = 50_000
_DEADLINES_WAIT_S: Final = 0.2


class Ledger:
    """Applies transitions to the store; see the module for what happens while it is away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._behind: deque[tuple[Run, Transition]] = deque()
        self._owed: dict[str, int] = {}
        self._deadlines: dict[str, DeadlinesDerived] = {}
        self._work = asyncio.Event()

    @property
    def owed(self) -> int:
        """Transitions that the store has not seen yet."""
        return len(self._behind)

    async def apply(self, run: Run, transition: Transition) -> Run:
        """The run after the transition, stored now or later. Raises what is illegal, and Unavailable past the bound."""
        if run.run_id not in self._owed:
            try:
                return await self._stored(run, self._with_deadlines(run, transition))
            except Unavailable as error:
                logger.warning("run %s goes on in memory: %s", run.run_id, error)
        if len(self._behind) >= _MAX_BEHIND:
            raise Unavailable(f"the store is away and {_MAX_BEHIND} transitions wait for it already")
        after = run.apply(transition)
        if after is not run:
            self._behind.append((run, transition))
            self._owed[run.run_id] = self._owed.get(run.run_id, 0) + 1
            self._work.set()
        return after

    def deadlines(self, run_id: str, derived: DeadlinesDerived) -> None:
        """Write deadlines soon; of several for one run only the latest."""
        self._deadlines[run_id] = derived
        self._work.set()

    async def run(self) -> None:
        """Write what is owed, until cancelled."""
        while True:
            await self._work.wait()
            if not self._behind:
                await asyncio.sleep(_DEADLINES_WAIT_S)
            self._work.clear()
            try:
                await self.flush()
            except Unavailable:
                self._work.set()
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Write everything owed; Unavailable if the store is away, with nothing lost."""
        while self._behind:
            run, transition = self._behind[0]
            run_id = run.run_id
            await self._told(run_id, self._stored(run, transition))
            self._behind.popleft()
            self._owed[run_id] -= 1
            if not self._owed[run_id]:
                del self._owed[run_id]
        while self._deadlines:
            run_id, derived = next(iter(self._deadlines.items()))
            await self._told(run_id, self._store.apply(run_id, derived))
            if self._deadlines.get(run_id) is derived:
                del self._deadlines[run_id]

    def _with_deadlines(self, run: Run, transition: Transition) -> Transition:
        """The transition with the deadlines that wait for their turn; those of an ended run matter no more."""
        derived = self._deadlines.pop(run.run_id, None)
        return transition if derived is None else Together((derived, transition))

    async def _stored(self, run: Run, transition: Transition) -> Run:
        try:
            return await self._store.apply(run.run_id, transition)
        except NotFound:  # the store lost it (restarted without its data): what we know is the run
            await self._store.create(run)
            return await self._store.apply(run.run_id, transition)

    async def _told(self, run_id: str, writing: Awaitable[Run]) -> None:
        try:
            await writing
        except Unavailable:
            raise
        except (AgentServeError, WorkflowError) as error:
            logger.warning("run %s: a transition could not be stored: %s", run_id, error)
