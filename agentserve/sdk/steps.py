"""Which step is this node execution, and which steps led to it? Names them so that a retried run names them alike.

A step id is the node's name, LangGraph's superstep and, for a `Send`, its place among the sends: `search.2.0`; inside
a nested graph the outer execution comes first: `team.3/draft.1`. A second attempt of the same execution (a retry
policy, or a sub-graph called twice by one node) gets `#2`.

Only nodes of the registered workflow are steps. A node that the workflow shows as its sub-graph's nodes is a group: its
inner executions are the steps. Executions inside a graph that the workflow does not show belong to the node around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock
from typing import Any
from urllib.parse import quote

from workflows.graph import Workflow
from workflows.run import StepKind

_NAMESPACE_SEPARATOR = "|"
_NODE_TAG = "graph:step:"
_MAX_ID_CHARS = 120  # leaves room for the number of an attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStep:
    """One execution of a workflow's node, as reported to the gateway."""

    step_id: str
    node: str
    kind: StepKind
    parents: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    """LangGraph's checkpoint namespace: the same for the same execution, also in another process."""


@dataclass(slots=True, kw_only=True)
class _Execution:
    """A node that LangGraph runs or ran. `step` None: a group, or inside a node that is opaque to the workflow."""

    path_id: str
    node: str
    level: str
    superstep: int
    parents: tuple[str, ...]
    step: NodeStep | None
    inner: list["_Execution"] = field(default_factory=list)

    def exits(self) -> tuple[str, ...]:
        """Ids of the steps whose end is this execution's end."""
        if self.step is not None:
            return (self.step.step_id,)
        if not self.inner:
            return self.parents
        last = max(execution.superstep for execution in self.inner)
        return _unique(step for execution in self.inner if execution.superstep == last for step in execution.exits())


class StepLedger:
    """The node executions of one run, in the order in which LangGraph began them. Safe to use from many threads."""

    def __init__(
        self,
        workflow: Workflow,
        learned: dict[str, StepKind] | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`learned`: kinds of nodes as earlier runs showed them, shared with and extended by this run.

        `earlier`: the run's steps as the gateway knows them, if another process began it.
        """
        self._kinds = {node.name: node.kind for node in workflow.nodes}
        self._learned = {} if learned is None else learned
        self._calling: set[str] = set()
        self._edges = [(edge.source, edge.target) for edge in workflow.edges]
        self._by_namespace: dict[str, _Execution] = {}
        self._levels: dict[str, list[_Execution]] = {}
        self._ids: dict[str, int] = {}
        for known in earlier:
            if known.get("status") != "running":  # executed again it is another step
                path_id, _, attempt = str(known["step_id"]).partition("#")
                self._ids[path_id] = max(self._ids.get(path_id, 0), int(attempt or 1))
        waited_for = {parent for known in earlier for parent in known.get("parents") or ()}
        self._before = tuple(
            str(known["step_id"])
            for known in earlier
            if known.get("status") != "running" and known["step_id"] not in waited_for
        )
        self._lock = Lock()

    def begin(self, metadata: Mapping[str, Any]) -> NodeStep | None:
        """Take note of a node's start from LangGraph's metadata; its step, None if it is a group or inside a step."""
        namespace = str(metadata["langgraph_checkpoint_ns"])
        local, superstep = str(metadata["langgraph_node"]), int(metadata["langgraph_step"])
        with self._lock:
            around = self._enclosing(namespace.rpartition(_NAMESPACE_SEPARATOR)[0])
            level = namespace.rpartition(_NAMESPACE_SEPARATOR)[0]
            node = local if around is None else f"{around.node}:{local}"
            parents = self._parents(level, node, superstep, metadata.get("langgraph_triggers") or (), around)
            execution = _Execution(
                path_id=self._path_id(around, local, superstep, metadata.get("langgraph_path") or ()),
                node=node,
                level=level,
                superstep=superstep,
                parents=parents,
                step=None,
            )
            execution.step = self._step_of(execution, namespace)
            self._by_namespace[namespace] = execution
            self._levels.setdefault(level, []).append(execution)
            if around is not None:
                around.inner.append(execution)
            return execution.step

    def note_call(self, step_id: str) -> None:
        """The step called a model."""
        with self._lock:
            self._calling.add(step_id)

    def end(self, step: NodeStep) -> None:
        """The step ended: its node calls models, or (as far as is known) does not."""
        with self._lock:
            if step.step_id in self._calling:
                self._learned[step.node] = StepKind.LLM
            else:
                self._learned.setdefault(step.node, StepKind.TOOL)

    def at(self, namespace: str) -> NodeStep | None:
        """The innermost step that a LangGraph checkpoint namespace lies in; None if it lies in none."""
        with self._lock:
            while namespace:
                execution = self._by_namespace.get(namespace)
                if execution is not None and execution.step is not None:
                    return execution.step
                namespace = namespace.rpartition(_NAMESPACE_SEPARATOR)[0]
        return None

    def _step_of(self, execution: _Execution, place: str) -> NodeStep | None:
        kind = self._kinds.get(execution.node)
        if kind is None:
            return None
        kind = self._learned.get(execution.node, kind)
        parents = execution.parents
        return NodeStep(step_id=execution.path_id, node=execution.node, kind=kind, parents=parents, place=place)

    def _enclosing(self, level: str) -> _Execution | None:
        while level:
            if level in self._by_namespace:
                return self._by_namespace[level]
            level = level.rpartition(_NAMESPACE_SEPARATOR)[0]
        return None

    def _path_id(self, around: _Execution | None, local: str, superstep: int, path: tuple[Any, ...]) -> str:
        prefix = "" if around is None else f"{around.path_id}/"
        place = "".join(f".{index}" for index in _indices(path))
        path_id = _short(f"{prefix}{quote(local, safe='')}.{superstep}{place}")
        attempt = self._ids[path_id] = self._ids.get(path_id, 0) + 1
        return path_id if attempt == 1 else f"{path_id}#{attempt}"

    def _parents(
        self, level: str, node: str, superstep: int, triggers: tuple[Any, ...], around: _Execution | None
    ) -> tuple[str, ...]:
        """The steps whose results this execution had: of the last superstep, or all sources of a waiting edge."""
        before = [execution for execution in self._levels.get(level, []) if execution.superstep < superstep]
        if not before:
            return self._before if around is None else around.parents
        sources = [execution for execution in before if self._leads(execution.node, node)] or before
        waited_for = _waited_for(triggers)
        if waited_for:
            joined = [execution for execution in sources if execution.node.rpartition(":")[2] in waited_for]
            latest = {execution.node: execution.superstep for execution in joined}
            sources = [execution for execution in joined if execution.superstep == latest[execution.node]] or sources
        else:
            last = max(execution.superstep for execution in sources)
            sources = [execution for execution in sources if execution.superstep == last]
        return _unique(step for execution in sources for step in execution.exits())

    def _leads(self, source: str, target: str) -> bool:
        return any(_within(start, source) and _within(end, target) for start, end in self._edges)


def is_node(tags: Sequence[str] | None) -> bool:
    """Whether LangGraph tagged a runnable as a node's execution."""
    return any(tag.startswith(_NODE_TAG) for tag in tags or ())


def _short(path_id: str) -> str:
    """The id itself, or its end behind a digest of the whole: the gateway takes at most 128 characters."""
    if len(path_id) <= _MAX_ID_CHARS:
        return path_id
    return f"{sha256(path_id.encode()).hexdigest()[:16]}~{path_id[-(_MAX_ID_CHARS - 17) :]}"


def _within(node: str, outer: str) -> bool:
    return node == outer or node.startswith(f"{outer}:")


def _waited_for(triggers: tuple[Any, ...]) -> frozenset[str]:
    """Sources of an edge that waits for several nodes: LangGraph triggers it by the channel `join:a+b:target`."""
    joins = [str(trigger).split(":") for trigger in triggers if str(trigger).startswith("join:")]
    return frozenset(source for parts in joins if len(parts) >= 3 for source in parts[1].split("+"))


def _indices(path: tuple[Any, ...]) -> list[int]:
    """Places of a pushed task (a `Send`) among its siblings; none for a node that edges lead to."""
    if not path or path[0] != "__pregel_push":
        return []
    flat: list[int] = []
    for part in path[1:]:
        if isinstance(part, tuple):
            flat.extend(_indices(part))
        elif isinstance(part, int) and not isinstance(part, bool):
            flat.append(part)
    return flat


def _unique(items: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
