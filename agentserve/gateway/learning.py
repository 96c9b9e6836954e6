"""What is known of how workflows go on? Forecasts cached in this process, learned from steps and runs as they end."""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentserve.errors import AgentServeError, Unavailable
from agentserve.tracker.store import Store
from workflows.forecast import Forecast, admit
from workflows.graph import Workflow, single_step, unknown_shape

logger = logging.getLogger(__name__)

REFRESH_S: Final = 3.0
REBUILD_S: Final = 0.5
"""A forecast is built anew from its counters at most this often: it takes milliseconds, and steps end many a second."""
LONE_CALL: Final = "single"
"""Workflow of calls that name no run: one step."""
UNNAMED: Final = "unnamed"
"""Workflow of runs whose client gave none: their shape is learned from what they do."""
_MAX_WORKFLOWS: Final = 1024


@dataclass(slots=True)
class _Known:
    """One workflow with its counters as last read, plus what was learned here since."""

    workflow: Workflow
    registered: bool
    forecast: Forecast
    counts: dict[str, int] = field(default_factory=dict)
    unsent: dict[str, int] = field(default_factory=dict)
    read_at_s: float = 0.0
    built_at_s: float = 0.0
    is_stale: bool = False


class Learning:
    """Workflows and forecasts by name. Reading never waits for the store but the first time a name is seen."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._used: set[str] = set()

    async def workflow(self, name: str) -> Workflow:
        """The registered workflow of that name; else one whose shape is learned from its runs."""
        return (await self._get(name)).workflow

    async def registered(self, name: str) -> Workflow | None:
        """The registered workflow of that name, None if there is none. Unavailable without the store."""
        return await self._store.get_workflow(name)

    async def register(self, workflow: Workflow) -> None:
        """Store a workflow, checked before (InvalidWorkflow)."""
        workflow.validate()
        await self._store.put_workflow(workflow)
        self._known.pop(workflow.name, None)

    def forecast(self, workflow: Workflow) -> Forecast:
        """What is expected of the workflow now."""
        known = self._known.get(workflow.name)
        self._used.add(workflow.name)
        if known is None or known.workflow is not workflow:
            counts = {} if known is None else known.counts
            return Forecast.from_counts(workflow, counts)
        now_s = self._clock()
        if known.is_stale and now_s - known.built_at_s >= REBUILD_S:
            known.forecast = Forecast.from_counts(known.workflow, known.counts)
            known.is_stale, known.built_at_s = False, now_s
        return known.forecast

    def learn(self, name: str, increments: Mapping[str, int]) -> None:
        """Count what was observed; sent to the store by `run`."""
        known = self._known.get(name)
        if known is None or not increments:
            return
        for key, count in admit(known.counts, increments).items():
            known.counts[key] = known.counts.get(key, 0) + count
            known.unsent[key] = known.unsent.get(key, 0) + count
        known.is_stale = True

    async def run(self) -> None:
        """Send what was learned and refresh what is in use, until cancelled; outages of the store are waited out."""
        while True:
            await asyncio.sleep(REFRESH_S / 3)
            try:
                await self.exchange()
            except AgentServeError as error:
                logger.warning("forecasts are not exchanged with the store: %s", error)

    async def exchange(self) -> None:
        """Send what was learned, then read the counters of the workflows in use that are older than REFRESH_S."""
        for name, known in tuple(self._known.items()):
            if known.unsent:
                unsent, known.unsent = known.unsent, {}
                try:
                    await self._store.add(name, unsent)
                except AgentServeError:
                    known.unsent = _added(unsent, known.unsent)
                    raise
        used, self._used = self._used, set()
        for name in sorted(used):
            in_use = self._known.get(name)
            if in_use is not None and self._clock() - in_use.read_at_s >= REFRESH_S:
                await self._read(name, in_use)

    async def _get(self, name: str) -> _Known:
        seen = self._known.get(name)
        known: _Known = seen if seen is not None else await self._load(name, None)
        if seen is not None and not known.registered and self._clock() - known.read_at_s >= REFRESH_S:
            with contextlib.suppress(Unavailable):
                known = await self._load(name, known)
        if name in self._known:
            self._known.move_to_end(name)
        return known

    async def _load(self, name: str, before: _Known | None) -> _Known:
        workflow = await self._store.get_workflow(name)
        if before is not None and workflow is None:
            before.read_at_s = self._clock()
            return before
        graph = workflow or (single_step(name) if name.rpartition(":")[2] == LONE_CALL else unknown_shape(name))
        known = _Known(graph, workflow is not None, Forecast.from_counts(graph, {}))
        if before is not None:
            known.unsent = before.unsent
        await self._read(name, known)
        self._known[name] = known
        if len(self._known) > _MAX_WORKFLOWS:
            self._known.popitem(last=False)
        return known

    async def _read(self, name: str, known: _Known) -> None:
        counts = dict(await self._store.counts(name))
        known.counts = _added(counts, known.unsent)
        known.read_at_s = self._clock()
        known.is_stale = True


def _added(counts: Mapping[str, int], increments: Mapping[str, int]) -> dict[str, int]:
    total = dict(counts)
    for key, count in increments.items():
        total[key] = total.get(key, 0) + count
    return total
