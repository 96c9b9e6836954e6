"""What does a compiled LangGraph graph say? Its nodes, branches, loops, fan-outs and sub-graphs as a Workflow.

Read from what the user wrote, without running it: the builder's nodes, edges, waiting edges, conditional edges (their
`path_map` or `Literal`), `Command` destinations and error handlers. A node that is itself a compiled graph is replaced
by its nodes, `outer:inner`. A graph made without a builder (the functional interface) is read from its drawing.

What cannot be known before a run is learned from runs: how often a `Send` is sent, whether a node calls a model (unless
it is a ToolNode or its metadata has `{"agentserve.kind": "tool"}`), which way a branch goes. A conditional edge without
declared destinations may lead to every node and to END, as LangGraph takes it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import CodeType
from typing import Any

from workflows.errors import InvalidWorkflow
from workflows.graph import END, MAX_EDGES, MAX_NODES, START, Edge, Node, Workflow
from workflows.run import StepKind
from workflows.shape import reachable

KIND_KEY = "agentserve.kind"
RETRYABLE_KEY = "agentserve.retryable"
"""A node's metadata says by it whether a durable run may execute the node again after its process died."""
MAX_COMBINATIONS = 64
"""Ways in which several conditional edges of one node may combine; beyond these each is taken for itself."""
MAX_DEPTH = 16
MAX_LABEL_CHARS = 40

Targets = dict[str, bool]
"""What follows a node together: target → whether it is a fan-out."""
Choice = list[tuple[Targets, str | None]]
"""The ends of one conditional edge, each with its label."""


@dataclass
class _Level:
    """One graph of the nest: what follows its start and its nodes, by full name; END is the end of this level."""

    follows: dict[str, list[Targets]]
    labels: dict[tuple[str, frozenset[str]], str] = field(default_factory=dict)
    kinds: dict[str, StepKind] = field(default_factory=dict)


def workflow_from_graph(compiled: Any, name: str) -> Workflow:
    """The valid workflow of a compiled LangGraph graph; raises InvalidWorkflow naming what cannot be served."""
    level = _read(compiled, "", name, 0)
    _check_reached(level, name)
    edges: list[Edge] = []
    for source, outcomes in level.follows.items():
        edges += _edges(source, outcomes, level.labels)
        if len(edges) > MAX_EDGES:
            raise InvalidWorkflow(f"workflow {name!r}: more than {MAX_EDGES} edges, the last from {source!r}")
    nodes = tuple(Node(node, kind) for node, kind in level.kinds.items())
    workflow = Workflow(name, nodes, tuple(edges))
    workflow.validate()
    return workflow


def _read(compiled: Any, prefix: str, name: str, depth: int) -> _Level:
    if depth > MAX_DEPTH:
        raise InvalidWorkflow(f"workflow {name!r}: sub-graphs are nested more than {MAX_DEPTH} deep at {prefix[:-1]!r}")
    builder = getattr(compiled, "builder", None)
    if builder is None or not hasattr(builder, "branches"):
        return _read_drawing(compiled, prefix, name)
    level = _Level(follows={START: [], **{f"{prefix}{node}": [] for node in builder.nodes}})
    if len(level.follows) > MAX_NODES + 1:
        raise InvalidWorkflow(f"workflow {name!r}: has {len(builder.nodes)} nodes, the limit is {MAX_NODES}")
    for source in list(level.follows):
        level.follows[source] = _outcomes_of(builder, source.removeprefix(prefix), source, prefix, level)
    for node, spec in builder.nodes.items():
        full = f"{prefix}{node}"
        if _is_graph(spec.runnable):
            _replace(level, full, _read(spec.runnable, f"{full}:", name, depth + 1))
        else:
            level.kinds[full] = _kind(full, spec.runnable, spec.metadata, name)
    return level


def _outcomes_of(builder: Any, node: str, full: str, prefix: str, level: _Level) -> list[Targets]:
    """The sets of targets that may follow a node: its plain edges with one end of each of its conditional ones."""
    order = {name: place for place, name in enumerate((*builder.nodes, END))}
    waiting = [(source, target) for sources, target in builder.waiting_edges for source in sources]
    plain = sorted({target for source, target in (*builder.edges, *waiting) if source == node}, key=order.__getitem__)
    always: Targets = {_full(target, prefix): False for target in plain}
    choices = [_choice(builder, branch, prefix) for branch in builder.branches.get(node, {}).values()]
    spec = builder.nodes.get(node)
    if spec is not None and spec.ends:
        named = spec.ends.items() if isinstance(spec.ends, Mapping) else ((end, None) for end in spec.ends)
        choices.append([({_full(end, prefix): False}, None if label is None else str(label)) for end, label in named])
    if spec is not None and spec.error_handler_node in builder.nodes:
        usual = [({}, None)] if always or choices else [({END: False}, None)]
        choices.append([*usual, ({_full(spec.error_handler_node, prefix): False}, "error")])
    if not choices:
        return [always or {END: False}]
    return _combined(full, always, choices, level)


def _choice(builder: Any, branch: Any, prefix: str) -> Choice:
    """The declared ends of a conditional edge; without such, every node and END."""
    fans = _sends(branch.path)
    ends = branch.ends or {name: name for name in (*builder.nodes, END)}
    return [
        ({_full(end, prefix): fans and end != END}, None if label == end else str(label)) for label, end in ends.items()
    ]


def _combined(full: str, always: Targets, choices: Sequence[Choice], level: _Level) -> list[Targets]:
    ways: Iterable[Sequence[tuple[Targets, str | None]]] = product(*choices)
    if _count(choices) > MAX_COMBINATIONS:
        ways = [(end,) for choice in choices for end in choice]
    found: dict[frozenset[str], Targets] = {}
    for way in ways:
        together = dict(always)
        for targets, _ in way:
            for target, fan in targets.items():
                together[target] = together.get(target, False) or fan
        key = frozenset(together)
        found.setdefault(key, together or {END: False})
        if label := " ".join(label for _, label in way if label):
            level.labels.setdefault((full, key), label[:MAX_LABEL_CHARS])
    return list(found.values())


def _count(choices: Sequence[Choice]) -> int:
    count = 1
    for choice in choices:
        count *= len(choice)
    return count


def _replace(level: _Level, outer: str, inner: _Level) -> None:
    """Put a sub-graph in its node's place: what led to it leads to its first nodes, its END to what followed."""
    after = level.follows.pop(outer)
    for source, outcomes in level.follows.items():
        level.follows[source] = _substituted(outcomes, outer, inner.follows[START])
    after = _substituted(after, outer, inner.follows[START])
    for source, outcomes in inner.follows.items():
        if source != START:
            level.follows[source] = _substituted(outcomes, END, after)
    level.labels.update(inner.labels)
    level.kinds.update(inner.kinds)


def _substituted(outcomes: Sequence[Targets], name: str, ways: Sequence[Targets]) -> list[Targets]:
    """The outcomes with `name` replaced by each of the sets of targets in `ways`."""
    found: dict[frozenset[str], Targets] = {}
    for outcome in outcomes:
        if name not in outcome:
            found.setdefault(frozenset(outcome), outcome)
            continue
        others = {target: fan for target, fan in outcome.items() if target != name}
        for way in ways:
            together = dict(others)
            for target, fan in way.items():
                together[target] = together.get(target, False) or fan or outcome[name]
            found.setdefault(frozenset(together), together)
    return list(found.values())


def _edges(
    source: str, outcomes: Sequence[Targets], labels: Mapping[tuple[str, frozenset[str]], str]
) -> Iterator[Edge]:
    """Outcomes as edges: plain what is in all of them, conditional the rest, with one label for what goes together."""
    common = set.intersection(*(set(outcome) for outcome in outcomes)) if outcomes else set()
    if len(outcomes) > 1 and any(common == set(outcome) for outcome in outcomes):
        common = set()
    fans = {target for outcome in outcomes for target, fan in outcome.items() if fan}
    for target in dict.fromkeys(target for outcome in outcomes for target in outcome if target in common):
        yield Edge(source, target, fan_out=target in fans)
    taken: set[str] = set()
    for place, outcome in enumerate(outcomes):
        chosen = [target for target in outcome if target not in common]
        label = labels.get((source, frozenset(outcome)))
        if label is None and len(chosen) > 1:
            label = " + ".join(target.rpartition(":")[2] for target in chosen)[:MAX_LABEL_CHARS]
        if label is not None and label in taken:
            label = f"{label} ({place + 1})"
        taken |= set() if label is None else {label}
        for target in chosen:
            yield Edge(source, target, conditional=True, fan_out=target in fans, label=label)


def _full(target: str, prefix: str) -> str:
    return END if target == END else f"{prefix}{target}"


def _is_graph(runnable: Any) -> bool:
    """Whether a node is a compiled graph itself; one that a node's function calls stays inside of that node."""
    return hasattr(runnable, "get_subgraphs") and hasattr(runnable, "nodes")


def _kind(node: str, runnable: Any, metadata: Mapping[str, Any] | None, name: str) -> StepKind:
    said = (metadata or {}).get(KIND_KEY)
    if said is not None:
        if said not in tuple(StepKind):
            raise InvalidWorkflow(f"workflow {name!r}: node {node!r} has {KIND_KEY} {said!r}, it must be llm or tool")
        return StepKind(said)
    return StepKind.TOOL if isinstance(getattr(runnable, "tools_by_name", None), Mapping) else StepKind.LLM


def _sends(path: Any) -> bool:
    """Whether the function of a conditional edge makes `Send`s: its code or its return annotation names them."""
    functions = [getattr(path, name, None) for name in ("func", "afunc")]
    for function in functions:
        function = getattr(function, "__func__", function)
        annotations = getattr(function, "__annotations__", {})
        if "Send" in str(annotations.get("return", "")):
            return True
        code = getattr(function, "__code__", None)
        if code is not None and any("Send" in one.co_names for one in _codes(code)):
            return True
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _read_drawing(compiled: Any, prefix: str, name: str) -> _Level:
    """A graph that was not made by a builder, from LangGraph's own picture of it."""
    if not hasattr(compiled, "get_graph"):
        raise InvalidWorkflow(f"workflow {name!r}: {type(compiled).__name__} is not a compiled LangGraph graph")
    drawing = compiled.get_graph()
    nodes = [node for node in drawing.nodes.values() if node.id not in (START, END)]
    follows: dict[str, list[Targets]] = {START: [], **{f"{prefix}{node.id}": [] for node in nodes}}
    for source in follows:
        edges = [edge for edge in drawing.edges if edge.source == source.removeprefix(prefix)]
        always = {_full(edge.target, prefix): False for edge in edges if not edge.conditional}
        chosen = [_full(edge.target, prefix) for edge in edges if edge.conditional]
        follows[source] = [{**always, target: False} for target in chosen] or [always or {END: False}]
    kinds = {f"{prefix}{node.id}": _kind(node.id, node.data, node.metadata, name) for node in nodes}
    return _Level(follows, kinds=kinds)


def _check_reached(level: _Level, name: str) -> None:
    successors = {
        source: [target for outcome in outcomes for target in outcome] for source, outcomes in level.follows.items()
    }
    reached = reachable(START, successors)
    if lost := [node for node in level.kinds if node not in reached]:
        shown = ", ".join(map(repr, lost[:8]))
        raise InvalidWorkflow(
            f"workflow {name!r}: cannot be reached from START: {shown}; if a Command leads there, say so in the graph: "
            "add_node(..., destinations=(...)) or a return type Command[Literal[...]]"
        )
