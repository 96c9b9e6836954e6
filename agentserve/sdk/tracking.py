"""When does a step begin and end? A LangChain callback handler hears it from LangGraph and tells the gateway."""

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langgraph.errors import GraphBubbleUp

from agentserve.sdk.steps import NodeStep, StepLedger, is_node
from workflows.run import StepStatus


class StepTracker(BaseCallbackHandler):
    """Follows the nodes of one run; each step's start and end go to `report`, as the gateway's REST takes them."""

    run_inline = True  # in the node's own order, before its code runs
    raise_error = False

    def __init__(
        self, ledger: StepLedger, report: Callable[[Mapping[str, Any]], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._report = report
        self._clock = clock
        self._running: dict[UUID, NodeStep] = {}

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A runnable starts; it is a node's execution if LangGraph tagged it so."""
        if metadata is None or not is_node(tags):
            return
        step = self._ledger.begin(metadata)
        if step is None:
            return
        self._running[run_id] = step
        about = {"step_id": step.step_id, "node": step.node, "kind": step.kind.value, "parents": list(step.parents)}
        self._report({"event": "started", **about, "at_s": self._clock()})

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A runnable ended well."""
        self._end(run_id, StepStatus.SUCCEEDED)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A runnable failed; LangGraph also raises to pause a graph, or to hand control to the graph around it."""
        if isinstance(error, GraphBubbleUp):
            self._end(run_id, StepStatus.SUCCEEDED)
        elif isinstance(error, Exception):
            self._end(run_id, StepStatus.FAILED, type(error).__name__)
        else:
            self._end(run_id, StepStatus.CANCELLED, type(error).__name__)

    def _end(self, run_id: UUID, status: StepStatus, error: str | None = None) -> None:
        step = self._running.pop(run_id, None)
        if step is None:
            return
        self._ledger.end(step)
        about = {"step_id": step.step_id, "node": step.node, "kind": step.kind.value, "parents": list(step.parents)}
        ended = {"event": "finished", **about, "at_s": self._clock(), "status": status.value}
        self._report(ended if error is None else {**ended, "error": error})
