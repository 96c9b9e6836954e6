"""Which run and step is this code part of? A context variable says the run, LangGraph's own config says the node."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import quote

from agentserve import headers
from agentserve.sdk.durable import DurableRun
from agentserve.sdk.origin import Origin
from agentserve.sdk.patience import Patience
from agentserve.sdk.steps import NodeStep, StepLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRun:
    """A run that this process executes. `submitted_s` is Unix seconds."""

    run_id: str
    workflow: str
    gateway: str
    origin: Origin
    slo_s: float | None
    submitted_s: float
    ledger: StepLedger = field(repr=False)
    patience: Patience = field(default_factory=Patience, repr=False)
    durable: DurableRun | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRun:
    """The run around the caller, and the step if the caller is inside a node. `deadline_s` is Unix seconds."""

    run_id: str
    workflow: str
    slo_s: float | None
    deadline_s: float | None
    step_id: str | None = None
    node: str | None = None
    parents: tuple[str, ...] = ()
    ledger: StepLedger = field(repr=False, compare=False)
    place: str = field(default="", repr=False, compare=False)
    durable: DurableRun | None = field(default=None, repr=False, compare=False)

    def calls_model(self) -> None:
        """Note that the step calls a model, so that it counts as one that does."""
        if self.step_id is not None:
            self.ledger.note_call(self.step_id)
            if self.durable is not None and self.place:
                self.durable.calls_model(self.place)

    def headers(self) -> dict[str, str]:
        """The headers by which a call takes part in this run; names outside printable ASCII are percent-encoded."""
        carried = {headers.RUN_ID: _header_value(self.run_id), headers.WORKFLOW: _header_value(self.workflow)}
        if self.step_id is not None and self.node is not None:
            carried[headers.STEP_ID] = self.step_id
            carried[headers.NODE] = _header_value(self.node)
            if self.parents:
                carried[headers.PARENTS] = ",".join(self.parents)
        return carried


_ACTIVE: ContextVar[ActiveRun | None] = ContextVar("agentserve_active_run", default=None)


def active_run() -> ActiveRun | None:
    """The run around the caller, None outside of one."""
    return _ACTIVE.get()


@contextmanager
def running(run: ActiveRun) -> Iterator[None]:
    """Make `run` the caller's run; threads and tasks begun inside inherit it if they copy the context."""
    token = _ACTIVE.set(run)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def current_run() -> CurrentRun | None:
    """The run and step around the caller; None outside of a served run."""
    run = _ACTIVE.get()
    if run is None:
        return None
    step = _current_step(run)
    return CurrentRun(
        run_id=run.run_id,
        workflow=run.workflow,
        slo_s=run.slo_s,
        deadline_s=None if run.slo_s is None else run.submitted_s + run.slo_s,
        step_id=None if step is None else step.step_id,
        node=None if step is None else step.node,
        parents=() if step is None else step.parents,
        ledger=run.ledger,
        place="" if step is None else step.place,
        durable=run.durable,
    )


def _current_step(run: ActiveRun) -> NodeStep | None:
    langgraph = sys.modules.get("langgraph.config")  # a client of the transport alone need not load it
    if langgraph is None:
        return None
    try:
        config = langgraph.get_config()
    except RuntimeError:  # outside of any node
        return None
    for place, key in (("metadata", "langgraph_checkpoint_ns"), ("configurable", "checkpoint_ns")):
        namespace = (config.get(place) or {}).get(key)
        if namespace:
            return run.ledger.at(str(namespace))
    return None


def _header_value(text: str) -> str:
    return quote(text, safe=" !\"#$&'()*+/:;<=>?@[]^`{|}~")
