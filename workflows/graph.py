"""What must be done, and in which order? An agent's graph as plain data, with the checks that make it servable.

A node's plain edges are all taken, in parallel. Of its conditional edges one is taken, or all with one label (what runs
really do is learned). A fan-out edge starts its target several times at once. Sub-graphs are flattened: `outer:inner`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workflows.errors import InvalidWorkflow
from workflows.run import StepKind
from workflows.shape import able_to_end, reachable

START = "__start__"
END = "__end__"
MAX_NODES = 500
MAX_EDGES = 5_000
MAX_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class Node:
    """One kind of step. `kind` is what the graph says; the forecast corrects it from what steps turn out to be."""

    name: str
    kind: StepKind = StepKind.LLM


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` may follow `source`: always, or (conditional) by choice; `fan_out`: several times at once.

    `label` names the choice; conditional edges of one source with the same label are taken together.
    """

    source: str
    target: str
    conditional: bool = False
    fan_out: bool = False
    label: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A graph of steps from START to END, immutable; call `validate` before serving it."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def validate(self) -> None:
        """Return if the graph can be served; otherwise raise InvalidWorkflow naming the nodes at fault."""
        self._check_sizes()
        self._check_names()
        self._check_paths()

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that are equal for equal shapes, whatever the order and the name of the workflow."""
        nodes = sorted((node.name, str(node.kind)) for node in self.nodes)
        outcomes = sorted((source, sorted(map(sorted, found))) for source, found in self.outcomes.items() if found)
        fans = sorted({(edge.source, edge.target) for edge in self.edges if edge.fan_out})
        return hashlib.sha256(json.dumps([nodes, outcomes, fans]).encode()).hexdigest()[:16]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes by their names."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def edges_from(self) -> Mapping[str, tuple[Edge, ...]]:
        """The edges that leave START and every node, in declared order."""
        found: dict[str, list[Edge]] = {START: [], **{node.name: [] for node in self.nodes}}
        for edge in self.edges:
            found.setdefault(edge.source, []).append(edge)
        return {source: tuple(edges) for source, edges in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """The workflow as plain JSON; fields at their defaults are left out."""
        return {
            "name": self.name,
            "nodes": [{"name": node.name, "kind": str(node.kind)} for node in self.nodes],
            "edges": [_edge_to_dict(edge) for edge in self.edges],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Workflow":
        """The valid workflow that `to_dict` gave; raises InvalidWorkflow for anything else, saying where."""
        if not isinstance(data, Mapping):
            raise InvalidWorkflow(f"a workflow is an object with name, nodes and edges, not {type(data).__name__}")
        nodes = _listed(data, "nodes", MAX_NODES)
        edges = _listed(data, "edges", MAX_EDGES)
        workflow = cls(
            name=_text(data, "name", "the workflow"),
            nodes=tuple(_node_from_dict(node, f"nodes[{index}]") for index, node in enumerate(nodes)),
            edges=tuple(_edge_from_dict(edge, f"edges[{index}]") for index, edge in enumerate(edges)),
        )
        workflow.validate()
        return workflow

    def _fail(self, problem: str) -> None:
        raise InvalidWorkflow(f"workflow {_clip(self.name)!r}: {problem}")

    def _check_sizes(self) -> None:
        if len(self.nodes) > MAX_NODES:
            self._fail(f"has {len(self.nodes)} nodes, the limit is {MAX_NODES}")
        if len(self.edges) > MAX_EDGES:
            self._fail(f"has {len(self.edges)} edges, the limit is {MAX_EDGES}")
        for what, name in [("workflow", self.name), *(("node", node.name) for node in self.nodes)]:
            if not 0 < len(name) <= MAX_NAME_CHARS:
                self._fail(f"the {what} name {_clip(name)!r} must have 1 to {MAX_NAME_CHARS} characters")

    def _check_names(self) -> None:
        if not self.nodes:
            self._fail("has no nodes")
        counts = Counter(node.name for node in self.nodes)
        if reserved := sorted(name for name in (START, END) if name in counts):
            self._fail(f"a node cannot be called {_listing(reserved)}")
        if doubled := [name for name, count in counts.items() if count > 1]:
            self._fail(f"nodes with the same name: {_listing(doubled)}")
        for edge in self.edges:
            if edge.source not in counts and edge.source != START:
                self._fail(f"the edge {edge.source!r} -> {edge.target!r} leaves a node that does not exist")
            if edge.target not in counts and edge.target != END:
                self._fail(f"the edge {edge.source!r} -> {edge.target!r} leads to a node that does not exist")

    def _check_paths(self) -> None:
        if not self.edges_from[START]:
            self._fail("nothing follows START, so no node can be reached")
        successors = {source: [edge.target for edge in edges] for source, edges in self.edges_from.items()}
        reached = reachable(START, successors)
        if lost := [node.name for node in self.nodes if node.name not in reached]:
            self._fail(f"cannot be reached from START: {_listing(lost)}")
        if dead := [node.name for node in self.nodes if not successors[node.name]]:
            self._fail(f"nothing follows {_listing(dead)}; add an edge to END")
        if END not in reached:
            self._fail(f"no path leads to END from {_listing([node.name for node in self.nodes])}")
        ending = able_to_end(END, self.outcomes)
        if endless := [node.name for node in self.nodes if node.name not in ending]:
            self._fail(f"a loop without exit: {_listing(endless)} can only run for ever; make an edge conditional")

    @cached_property
    def outcomes(self) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """For START and each node, the sets of targets that may follow it: all plain ones and those of one choice."""
        return {source: _outcomes(edges) for source, edges in self.edges_from.items()}


def declare(
    name: str,
    edges: Iterable[tuple[str, str | Sequence[str]]],
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
    fan_out: Mapping[str, str | Sequence[str]] | None = None,
    tools: Iterable[str] = (),
) -> Workflow:
    """A valid workflow by hand: nodes are whatever the edges name, in order; raises InvalidWorkflow.

    `edges` are pairs (source, target) or (source, [parallel targets]); `choices` conditional ones, source → targets;
    `fan_out` those by which a source starts its target several times at once; `tools` names the nodes that call no
    model. Example: `declare("triage", [(START, "classify"), ("bill", END)], choices={"classify": ["bill", END]})`.
    """
    made = [Edge(source, target) for source, targets in edges for target in _names(targets)]
    for source, targets in (choices or {}).items():
        made += [Edge(source, target, conditional=True) for target in targets]
    for source, targets in (fan_out or {}).items():
        made += [Edge(source, target, conditional=True, fan_out=True) for target in _names(targets)]
    ends = (end for edge in made for end in (edge.source, edge.target))
    tool_names = set(tools)
    nodes = tuple(
        Node(name, StepKind.TOOL if name in tool_names else StepKind.LLM)
        for name in dict.fromkeys(ends)
        if name not in (START, END)
    )
    workflow = Workflow(name, nodes, tuple(made))
    workflow.validate()
    if unknown := sorted(tool_names - {node.name for node in nodes}):
        raise InvalidWorkflow(f"workflow {name!r}: the tools {_listing(unknown)} are in no edge")
    return workflow


def single_step(name: str = "single") -> Workflow:
    """The workflow of a lone LLM call: START → call → END."""
    return Workflow(name, (Node("call"),), (Edge(START, "call"), Edge("call", END)))


def unknown_shape(name: str) -> Workflow:
    """A workflow nobody registered: no nodes, not valid to register; forecasts learn its shape from its runs."""
    return Workflow(name, (), ())


def _outcomes(edges: Sequence[Edge]) -> tuple[tuple[str, ...], ...]:
    always = dict.fromkeys(edge.target for edge in edges if not edge.conditional)
    choices: dict[tuple[str, str], set[str]] = {}
    for edge in edges:
        if edge.conditional:
            choice = ("target", edge.target) if edge.label is None else ("label", edge.label)
            choices.setdefault(choice, set()).add(edge.target)
    if not choices:
        return (tuple(sorted(always)),) if always else ()
    return tuple(dict.fromkeys(tuple(sorted({*always, *targets})) for targets in choices.values()))


def _names(targets: str | Sequence[str]) -> Sequence[str]:
    return (targets,) if isinstance(targets, str) else targets


def _clip(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(_clip(name)) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _edge_to_dict(edge: Edge) -> dict[str, Any]:
    plain: dict[str, Any] = {"source": edge.source, "target": edge.target}
    if edge.conditional:
        plain["conditional"] = True
    if edge.fan_out:
        plain["fan_out"] = True
    if edge.label is not None:
        plain["label"] = edge.label
    return plain


def _listed(data: Mapping[str, Any], key: str, limit: int) -> Sequence[Any]:
    value = data.get(key)
    if not isinstance(value, list | tuple):
        raise InvalidWorkflow(f"the workflow's {key!r} must be a list")
    if len(value) > limit:
        raise InvalidWorkflow(f"the workflow has {len(value)} {key}, the limit is {limit}")
    return value


def _text(data: Any, key: str, where: str) -> str:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise InvalidWorkflow(f"{where}: {key!r} must be a string of 1 to {MAX_NAME_CHARS} characters")
    return value


def _flag(data: Mapping[str, Any], key: str, where: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise InvalidWorkflow(f"{where}: {key!r} must be true or false")
    return value


def _node_from_dict(data: Any, where: str) -> Node:
    name = _text(data, "name", where)
    kind = data.get("kind", "llm")
    if kind not in tuple(StepKind):
        raise InvalidWorkflow(f"{where}: 'kind' must be one of {_listing([str(kind) for kind in StepKind])}")
    return Node(name, StepKind(kind))


def _edge_from_dict(data: Any, where: str) -> Edge:
    return Edge(
        source=_text(data, "source", where),
        target=_text(data, "target", where),
        conditional=_flag(data, "conditional", where),
        fan_out=_flag(data, "fan_out", where),
        label=None if data.get("label") is None else _text(data, "label", where),
    )
