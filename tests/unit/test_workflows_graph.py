"""A workflow says what is wrong with it, and survives being written down."""

import itertools

import pytest

from workflows.errors import InvalidWorkflow
from workflows.graph import END, MAX_EDGES, MAX_NODES, START, Edge, Node, Workflow, declare, single_step, unknown_shape
from workflows.run import StepKind


def workflow(*edges: Edge, nodes: str = "a b") -> Workflow:
    return Workflow("w", tuple(Node(name) for name in nodes.split()), edges)


def test_single_step_is_one_valid_call() -> None:
    lone = single_step()
    lone.validate()
    assert lone.edges == (Edge(START, "call"), Edge("call", END))


def test_declared_graph_has_the_nodes_its_edges_name_in_order() -> None:
    made = declare(
        "research",
        [(START, "plan"), ("search", "write"), ("write", END)],
        fan_out={"plan": "search"},
        tools=["search"],
    )
    assert [(node.name, node.kind) for node in made.nodes] == [
        ("plan", StepKind.LLM),
        ("search", StepKind.TOOL),
        ("write", StepKind.LLM),
    ]
    assert Edge("plan", "search", conditional=True, fan_out=True) in made.edges


def test_declared_tool_that_no_edge_names_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match="the tools 'oracle' are in no edge"):
        declare("w", [(START, "a"), ("a", END)], tools=["oracle"])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (workflow(nodes=""), "has no nodes"),
        (workflow(Edge("a", END), nodes="a"), "nothing follows START"),
        (workflow(Edge(START, "a"), Edge("a", END), Edge("b", END)), "cannot be reached from START: 'b'"),
        (workflow(Edge(START, "a"), Edge("a", "b")), "nothing follows 'b'; add an edge to END"),
        (workflow(Edge(START, "a"), Edge("a", "c"), nodes="a"), "'a' -> 'c' leads to a node that does not exist"),
        (workflow(Edge(START, "a"), Edge("x", "a"), nodes="a"), "'x' -> 'a' leaves a node that does not exist"),
        (workflow(Edge(START, "a"), Edge("a", "b"), Edge("b", "a")), "no path leads to END from 'a', 'b'"),
        (
            workflow(Edge(START, "a"), Edge("a", "b"), Edge("b", "a"), Edge("a", END)),
            "a loop without exit: 'a', 'b' can only run for ever",
        ),
        (workflow(Edge(START, "a"), Edge("a", END), nodes="a a"), "nodes with the same name: 'a'"),
        (workflow(Edge(START, "a"), nodes="a __end__"), "a node cannot be called '__end__'"),
        (Workflow("", (Node("a"),), ()), "the workflow name '' must have 1 to 128"),
        (Workflow("w", (Node("a" * 129),), ()), "must have 1 to 128 characters"),
        (Workflow("w", tuple(Node(f"n{i}") for i in range(MAX_NODES + 1)), ()), "has 501 nodes, the limit is 500"),
        (Workflow("w", (Node("a"),), (Edge(START, "a"),) * (MAX_EDGES + 1)), "has 5001 edges, the limit is 5000"),
    ],
)
def test_invalid_graph_is_refused_with_the_nodes_at_fault(broken: Workflow, message: str) -> None:
    with pytest.raises(InvalidWorkflow, match=message):
        broken.validate()


def test_message_about_many_nodes_names_the_first_and_counts_the_rest() -> None:
    many = Workflow("w", tuple(Node(f"n{i:02}") for i in range(20)), (Edge(START, "n00"), Edge("n00", END)))
    with pytest.raises(InvalidWorkflow, match=r"'n01', .*'n08' and 11 more"):
        many.validate()


def test_loop_with_a_conditional_exit_is_valid() -> None:
    declare("coder", [(START, "edit"), ("edit", "test")], choices={"test": ["edit", END]})


def test_long_path_and_wide_fork_are_valid() -> None:
    names = [f"n{i}" for i in range(MAX_NODES)]
    declare("path", [(START, names[0]), *itertools.pairwise(names), (names[-1], END)])
    declare("fork", [(START, names), *((name, END) for name in names)])


def test_outcomes_are_all_plain_targets_with_one_choice() -> None:
    made = declare("w", [(START, "a"), ("a", "log"), ("b", END), ("log", END)], choices={"a": ["b", END]})
    assert set(made.outcomes["a"]) == {("b", "log"), (END, "log")}


def test_conditional_edges_with_one_label_are_taken_together() -> None:
    made = Workflow(
        "w",
        (Node("a"), Node("b"), Node("c")),
        (
            Edge(START, "a"),
            Edge("a", "b", conditional=True, label="deep"),
            Edge("a", "c", conditional=True, label="deep"),
            Edge("a", END, conditional=True, label="shallow"),
            Edge("b", END),
            Edge("c", END),
        ),
    )
    made.validate()
    assert set(made.outcomes["a"]) == {("b", "c"), (END,)}


def test_fingerprint_depends_on_the_shape_alone() -> None:
    one = declare("one", [(START, "a"), ("b", END)], choices={"a": ["b", END]})
    other = Workflow("other", one.nodes[::-1], one.edges[::-1])
    tool = declare("one", [(START, "a"), ("b", END)], choices={"a": ["b", END]}, tools=["b"])
    fork = declare("one", [(START, "a"), ("a", ["b", END]), ("b", END)])
    assert one.fingerprint == other.fingerprint
    assert len({one.fingerprint, tool.fingerprint, fork.fingerprint}) == 3


def test_workflow_survives_being_written_down() -> None:
    nodes = (Node("a"), Node("b", StepKind.TOOL))
    edges = (Edge(START, "a"), Edge("a", "b", conditional=True, fan_out=True, label="yes"), Edge("b", END))
    made = Workflow("w", nodes, edges)
    assert Workflow.from_dict(made.to_dict()) == made


def plain(**changes: object) -> dict[str, object]:
    return {**declare("w", [(START, "a"), ("a", END)]).to_dict(), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a workflow is an object with name, nodes and edges, not list"),
        (plain(name=7), "the workflow: 'name' must be a string of 1 to 128 characters"),
        (plain(nodes={}), "'nodes' must be a list"),
        (plain(nodes=[{}] * (MAX_NODES + 1)), "has 501 nodes, the limit is 500"),
        (plain(edges=[{}] * (MAX_EDGES + 1)), "has 5001 edges, the limit is 5000"),
        (plain(nodes=["a"]), r"nodes\[0\]: 'name' must be a string"),
        (plain(nodes=[{"name": "a", "kind": "oracle"}]), r"nodes\[0\]: 'kind' must be one of 'llm', 'tool'"),
        (plain(nodes=[{"name": "a", "kind": ["llm"]}]), r"nodes\[0\]: 'kind' must be one of"),
        (plain(edges=[{"source": "a"}]), r"edges\[0\]: 'target' must be a string"),
        (plain(edges=[{"source": "a", "target": "b", "conditional": 1}]), r"'conditional' must be true or false"),
        (plain(edges=[{"source": START, "target": "a", "label": 3}]), r"edges\[0\]: 'label' must be a string"),
        (plain(edges=[]), "nothing follows START"),
    ],
)
def test_plain_data_that_is_no_workflow_is_refused_with_the_place(data: object, message: str) -> None:
    with pytest.raises(InvalidWorkflow, match=message):
        Workflow.from_dict(data)  # type: ignore[arg-type]  # what a client may send


def test_workflow_of_unknown_shape_has_no_nodes() -> None:
    assert unknown_shape("w").outcomes == {START: ()}
