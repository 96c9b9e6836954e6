"""What the gateway needs of a store: five small Protocols, which the Redis store fulfils.

Every call raises Unavailable when the store cannot be reached. All are idempotent: a retry changes nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agentserve.journal import RunEvent
from agentserve.tracker.feed import Facts
from workflows.graph import Workflow
from workflows.run import Run, RunStatus, Transition

MAX_SWITCHES: Final = 100
"""Switches of the mode that are kept, the newest."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of a list of runs."""

    run_id: str
    workflow: str
    status: RunStatus
    submitted_s: float
    finished_s: float | None
    slo_s: float | None
    steps: int
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class EndedRuns:
    """How many runs ended in a span of time: within their SLO, not so, and without one."""

    in_time: int
    missed: int
    no_slo: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSwitch:
    """From `at_s` (Unix seconds) on the cluster is in `mode`; `token` names the switch and its counters."""

    mode: str
    at_s: float
    token: str


class RunStore(Protocol):
    """Runs and their steps."""

    async def create(self, run: Run) -> tuple[Run, bool]:
        """Store a new run; returns the stored one and whether this call made it. Conflict if it differs in workflow."""
        ...

    async def apply(self, run_id: str, transition: Transition) -> Run:
        """Apply atomically and return the new run. NotFound, IllegalTransition and DuplicateStep change nothing."""
        ...

    async def load(self, run_id: str) -> Run:
        """The run as stored; NotFound if it does not exist or its time to live has passed."""
        ...

    async def list(self, status: RunStatus | None, limit: int, tenant: str | None = None) -> Sequence[RunSummary]:
        """The newest runs first; of one tenant if named."""
        ...


class EventStore(Protocol):
    """The journal of each run, bounded in length and time."""

    async def append(self, events: Sequence[RunEvent]) -> None:
        """Add events in order (one round trip for all); unknown runs are accepted."""
        ...

    async def read(self, run_id: str) -> Sequence[RunEvent]:
        """All kept events of a run, oldest first; empty if there are none."""
        ...


class Overview(Protocol):
    """What goes on in all runs of the cluster, whichever gateway serves them."""

    async def facts(self, after: str | None = None) -> Facts:
        """What the feed tells after a position, a bounded piece at a time; None: from the oldest kept."""
        ...

    async def ended(self, spans: Sequence[tuple[float, float]]) -> Sequence[EndedRuns]:
        """How many runs ended from each span's begin until before its end (Unix seconds), by outcome."""
        ...


class ForecastStore(Protocol):
    """Counters that forecasts are made of, per workflow; see workflows.forecast for their keys."""

    async def add(self, workflow: str, increments: Mapping[str, int]) -> None:
        """Add to counters atomically."""
        ...

    async def counts(self, workflow: str) -> Mapping[str, int]:
        """All counters of a workflow; empty if nothing was learned."""
        ...


class WorkflowStore(Protocol):
    """The graphs that clients registered, by name."""

    async def put_workflow(self, workflow: Workflow) -> None:
        """Register or replace a workflow."""
        ...

    async def get_workflow(self, name: str) -> Workflow | None:
        """The workflow of that name, None if never registered."""
        ...


class ModeStore(Protocol):
    """Switches of the cluster's mode, and counters for each."""

    async def switch(self, switch: ModeSwitch) -> None:
        """Make a switch the newest."""
        ...

    async def switches(self, limit: int = MAX_SWITCHES) -> Sequence[ModeSwitch]:
        """The newest first."""
        ...

    async def count(self, token: str, increments: Mapping[str, int], once: str) -> None:
        """Add to the counters of a switch; the same `once` adds once."""
        ...

    async def counts(self, tokens: Sequence[str]) -> Sequence[Mapping[str, int]]:
        """All counters of each of these switches."""
        ...


class Store(RunStore, EventStore, Overview, ForecastStore, WorkflowStore, Protocol):
    """All of it, and its end."""

    @property
    def modes(self) -> ModeStore:
        """The cluster's mode."""
        ...

    async def ping(self) -> None:
        """Return if the store answers, raise Unavailable otherwise."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
