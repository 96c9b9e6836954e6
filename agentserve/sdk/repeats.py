"""May this node execute again? A durable run goes on after its process died; what was under way then may have acted.

A node may be executed again if it says so (`metadata={"agentserve.retryable": True}`, or a LangGraph retry policy), if
the user says so when resuming, or if it says nothing and had called a model: asking a model changes nothing outside.
For every other node it is noted, before its code runs, that it begins; then it is never begun a second time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler

from agentserve.errors import Conflict
from agentserve.sdk.durable import DurableRun
from agentserve.sdk.redis_link import NotDriver
from agentserve.sdk.steps import is_node
from workflows.langgraph import RETRYABLE_KEY


class NotRetryable(Conflict):
    """A step was under way when its process died, and nobody said that it may be executed again."""

    code = "not_retryable"


def retryable_nodes(compiled: Any, prefix: str = "") -> dict[str, bool | None]:
    """For every node of a graph and its sub-graphs (`outer:inner`): may it be executed again; None: it does not say."""
    builder = getattr(compiled, "builder", None)
    found: dict[str, bool | None] = {}
    for name, spec in getattr(builder, "nodes", {}).items():
        full = f"{prefix}{name}"
        inner = getattr(spec, "runnable", None)
        if hasattr(getattr(inner, "builder", None), "nodes"):
            found |= retryable_nodes(inner, f"{full}:")
            continue
        said = (getattr(spec, "metadata", None) or {}).get(RETRYABLE_KEY)
        retried = True if getattr(spec, "retry_policy", None) else None
        found[full] = retried if said is None else bool(said)
    return found


class RepeatGuard(BaseCallbackHandler):
    """Notes what begins, and refuses what may not begin again, before its code runs."""

    run_inline = True
    raise_error = True

    def __init__(self, run: DurableRun, nodes: Mapping[str, bool | None]) -> None:
        self._run = run
        self._nodes = nodes

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
        place = self._place(tags, metadata)
        if place is not None:
            self._begin(place)

    def _place(self, tags: list[str] | None, metadata: dict[str, Any] | None) -> str | None:
        """Where the execution is in the graph; None if it is no node's that is looked after here."""
        if metadata is None or not is_node(tags):
            return None
        if self._run.lost:
            raise NotDriver(f"another process drives run {self._run.about.run_id} now")
        place = str(metadata["langgraph_checkpoint_ns"])
        node = node_of(place)
        return None if node not in self._nodes or self._nodes[node] else place

    def _begin(self, place: str) -> None:
        began_before, called = self._run.begin(place)
        if began_before:
            refuse([place] if not _may(self._run, self._nodes, place, called) else [], self._run.about.run_id)


class AsyncRepeatGuard(RepeatGuard, AsyncCallbackHandler):
    """The same for asynchronous graphs; `in_thread` runs what waits for Redis."""

    def __init__(self, run: DurableRun, nodes: Mapping[str, bool | None], in_thread: Callable[..., Any]) -> None:
        super().__init__(run, nodes)
        self._in_thread = in_thread

    async def on_chain_start(  # type: ignore[override]  # LangChain awaits it
        self,
        serialized: dict[str, Any],
        inputs: dict[str, Any],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A runnable starts."""
        place = self._place(tags, metadata)
        if place is not None:
            await self._in_thread(lambda: self._begin(place))


def check_pending(
    run: DurableRun, nodes: Mapping[str, bool | None], marks: Mapping[str, bool], pending: Iterable[str]
) -> None:
    """Refuse to go on before anything is executed, if a pending execution began and may not begin again."""
    refuse(
        [place for place in pending if place in marks and not _may(run, nodes, place, marks[place])], run.about.run_id
    )


def pending_places(snapshot: Any, around: str = "") -> Iterator[str]:
    """The executions that a graph's state (`get_state(…, subgraphs=True)`) has still to do, innermost first."""
    for task in snapshot.tasks:
        place = f"{around}{task.name}:{task.id}"
        if task.result is not None:
            continue
        if hasattr(task.state, "tasks"):
            yield from pending_places(task.state, f"{place}|")
        yield place


def node_of(place: str) -> str:
    """The full name of the node that a place is of: `outer:inner` of `outer:id|inner:id`."""
    return ":".join(part.partition(":")[0] for part in place.split("|"))


def refuse(places: list[str], run_id: str) -> None:
    """Raise the one error that says which nodes may not be executed again, and what to do; nothing without such."""
    if not places:
        return
    nodes = sorted({node_of(place) for place in places})
    flags = " ".join(f"--retry {node}" for node in nodes)
    raise NotRetryable(
        f"run {run_id} cannot go on by itself: {', '.join(nodes)} was under way when its process died, may have acted, "
        f"and nothing says that it may be executed again. See what it did; then `agentserve resume {run_id} "
        f"{flags}` executes it again, or cancel the run"
    )


def _may(run: DurableRun, nodes: Mapping[str, bool | None], place: str, called: bool) -> bool:
    node = node_of(place)
    return node in run.allowed or (nodes.get(node) is None and called)
