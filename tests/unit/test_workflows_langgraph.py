"""A compiled LangGraph graph is read as it is, without running it and without being written twice."""

import operator
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send

from workflows.errors import InvalidWorkflow
from workflows.graph import Edge, Workflow
from workflows.langgraph import workflow_from_graph
from workflows.run import StepKind


class State(TypedDict, total=False):
    topic: str
    found: Annotated[list[str], operator.add]


def work(state: State) -> State:
    return {}


def graph_of(nodes: str, *edges: tuple[Any, Any], state: Any = State) -> StateGraph[Any]:
    builder: StateGraph[Any] = StateGraph(state)
    for name in nodes.split():
        builder.add_node(name, work)
    for source, target in edges:
        builder.add_edge(source, target)
    return builder


def read(builder: StateGraph[Any]) -> Workflow:
    return workflow_from_graph(builder.compile(), "w")


def outcomes(workflow: Workflow, source: str) -> set[tuple[str, ...]]:
    return set(workflow.outcomes[source])


def test_plain_edges_forks_and_waiting_joins() -> None:
    builder = graph_of("a b c d", (START, "a"), ("a", "b"), ("a", "c"), (["b", "c"], "d"), ("d", END))
    workflow = read(builder)
    assert [node.name for node in workflow.nodes] == ["a", "b", "c", "d"]
    assert workflow.edges == (
        Edge(START, "a"),
        Edge("a", "b"),
        Edge("a", "c"),
        Edge("b", "d"),
        Edge("c", "d"),
        Edge("d", END),
    )


def test_reading_twice_gives_the_same_workflow() -> None:
    builder = graph_of("a b c d", (START, "a"), ("a", "d"), ("a", "c"), ("a", "b"), *((n, END) for n in "bcd"))
    graph = builder.compile()
    assert workflow_from_graph(graph, "w") == workflow_from_graph(graph, "w")


def test_conditional_edges_keep_their_labels_and_close_loops() -> None:
    builder = graph_of("edit test", (START, "edit"), ("edit", "test"))
    builder.add_conditional_edges("test", lambda state: "red", {"red": "edit", "green": END})
    assert read(builder).edges_from["test"] == (
        Edge("test", "edit", conditional=True, label="red"),
        Edge("test", END, conditional=True, label="green"),
    )


def test_literal_return_types_declare_destinations() -> None:
    def route(state: State) -> Literal["b", "__end__"]:
        return "b"

    builder = graph_of("a b", (START, "a"), ("b", END))
    builder.add_conditional_edges("a", route)
    assert outcomes(read(builder), "a") == {("b",), (END,)}


def test_unknown_destinations_are_every_node_and_the_end() -> None:
    builder = graph_of("a b c", (START, "a"), ("b", END), ("c", "a"))
    builder.add_conditional_edges("a", lambda state: "b")
    assert outcomes(read(builder), "a") == {("a",), ("b",), ("c",), (END,)}


def test_conditional_entry_point() -> None:
    builder = graph_of("a b", ("a", END), ("b", END))
    builder.add_conditional_edges(START, lambda state: "a", ["a", "b"])
    assert outcomes(read(builder), START) == {("a",), ("b",)}


def test_command_destinations_from_the_return_type_and_by_hand() -> None:
    def triage(state: State) -> Command[Literal["b", "c"]]:
        return Command(goto="b")

    builder = graph_of("b c", (START, "a"), ("b", END))
    builder.add_node("a", triage)
    builder.add_node("d", work, destinations={"b": "again", END: "done"})
    builder.add_edge("c", "d")
    workflow = read(builder)
    assert outcomes(workflow, "a") == {("b",), ("c",)}
    assert {edge.label for edge in workflow.edges_from["d"]} == {"again", "done"}


def test_send_is_a_fan_out_seen_in_the_code_or_in_the_return_type() -> None:
    def spread(state: State):  # type: ignore[no-untyped-def]  # what a user may write
        return [Send("search", {"topic": word}) for word in state["topic"]]

    def spread_annotated(state: State) -> list[Send]:
        return []

    for function in (spread, spread_annotated):
        builder = graph_of("plan search write", (START, "plan"), ("search", "write"), ("write", END))
        builder.add_conditional_edges("plan", function, ["search"])
        assert read(builder).edges_from["plan"] == (Edge("plan", "search", fan_out=True),)


def test_send_or_end() -> None:
    def spread(state: State) -> list[Send] | str:
        return END

    builder = graph_of("plan search", (START, "plan"), ("search", END))
    builder.add_conditional_edges("plan", spread, ["search", END])
    assert read(builder).edges_from["plan"] == (
        Edge("plan", "search", conditional=True, fan_out=True),
        Edge("plan", END, conditional=True),
    )


def test_two_branches_of_one_node_combine() -> None:
    builder = graph_of("a b c d", (START, "a"), *((name, END) for name in "bcd"))
    builder.add_conditional_edges("a", lambda state: "b", ["b", "c"])
    builder.add_conditional_edges("a", work, ["d", END])
    assert outcomes(read(builder), "a") == {("b", "d"), (END, "b"), ("c", "d"), (END, "c")}


def test_too_many_combinations_are_taken_each_for_itself() -> None:
    names = "bcdefghij"
    builder = graph_of("a " + " ".join(names), (START, "a"), *((name, END) for name in names))
    builder.add_conditional_edges("a", lambda state: "b", list(names))
    builder.add_conditional_edges("a", work, list(names))
    assert outcomes(read(builder), "a") == {(name,) for name in names}


def test_tool_nodes_and_declared_kinds() -> None:
    class Chat(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    @tool
    def clock() -> str:
        """The time."""
        return "noon"

    builder: StateGraph[Any] = StateGraph(Chat)
    builder.add_node("agent", work)
    builder.add_node("tools", ToolNode([clock]))
    builder.add_node("store", work, metadata={"agentserve.kind": "tool"})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", work, ["tools", "store"])
    builder.add_edge("tools", "agent")
    workflow = read(builder)
    assert {node.name: node.kind for node in workflow.nodes} == {
        "agent": StepKind.LLM,
        "tools": StepKind.TOOL,
        "store": StepKind.TOOL,
    }
    assert workflow.edges_from["store"] == (Edge("store", END),)


def test_unknown_declared_kind_is_refused() -> None:
    builder = graph_of("", (START, "a"), ("a", END))
    builder.add_node("a", work, metadata={"agentserve.kind": "oracle"})
    with pytest.raises(InvalidWorkflow, match=r"node 'a' has agentserve.kind 'oracle', it must be llm or tool"):
        read(builder)


def test_sub_graphs_are_flattened_with_what_led_in_and_out() -> None:
    inner = graph_of("x y z", (START, "x"), (START, "y"), ("x", END), ("y", "z"))
    inner.add_conditional_edges("z", lambda state: "y", {"more": "y", "enough": END})
    outer = graph_of("a b", (START, "a"), ("team", "b"), ("b", END))
    outer.add_node("team", inner.compile())
    outer.add_conditional_edges("a", lambda state: "team", ["team", END])
    workflow = read(outer)
    assert [node.name for node in workflow.nodes] == ["a", "b", "team:x", "team:y", "team:z"]
    assert outcomes(workflow, "a") == {("team:x", "team:y"), (END,)}
    assert outcomes(workflow, "team:x") == {("b",)}
    assert outcomes(workflow, "team:z") == {("team:y",), ("b",)}


def test_sub_graphs_in_sub_graphs_and_loops_around_them() -> None:
    inmost = graph_of("p", (START, "p"))
    inmost.add_conditional_edges("p", lambda state: "p", ["p", END])
    inner = graph_of("", (START, "deep"), ("deep", END))
    inner.add_node("deep", inmost.compile())
    outer = graph_of("", (START, "team"))
    outer.add_node("team", inner.compile())
    outer.add_conditional_edges("team", lambda state: "team", ["team", END])
    workflow = read(outer)
    assert [node.name for node in workflow.nodes] == ["team:deep:p"]
    assert outcomes(workflow, "team:deep:p") == {("team:deep:p",), (END,)}


def test_a_fan_out_to_a_sub_graph_fans_out_to_its_first_node() -> None:
    def spread(state: State) -> list[Send]:
        return []

    inner = graph_of("x", (START, "x"), ("x", END))
    outer = graph_of("plan write", (START, "plan"), ("team", "write"))
    outer.add_node("team", inner.compile())
    outer.add_conditional_edges("plan", spread, ["team"])
    assert read(outer).edges_from["plan"] == (Edge("plan", "team:x", fan_out=True),)


def test_a_choice_of_which_one_is_part_of_another_keeps_both() -> None:
    inner = graph_of("x y", ("x", END), ("y", END))
    inner.add_conditional_edges(START, lambda state: "x", ["x", "y"])
    outer = graph_of("a b", (START, "a"), ("a", "b"), ("b", END), ("team", END))
    outer.add_node("team", inner.compile())
    outer.add_conditional_edges("a", lambda state: "team", {"more": "team", "none": "b"})
    assert outcomes(read(outer), "a") == {("b",), ("b", "team:x"), ("b", "team:y")}


def test_choices_with_one_label_are_told_apart() -> None:
    builder = graph_of("a b c", (START, "a"), ("b", END), ("c", END))
    builder.add_conditional_edges("a", work, {"go": "b", END: END})
    builder.add_conditional_edges("a", lambda state: "c", ["c", END])
    workflow = read(builder)
    assert outcomes(workflow, "a") == {("b", "c"), (END, "b"), (END, "c"), (END,)}
    assert Workflow.from_dict(workflow.to_dict()) == workflow


def test_a_graph_that_a_function_calls_stays_inside_of_its_node() -> None:
    inner = graph_of("x", (START, "x"), ("x", END)).compile()

    def call(state: State) -> State:
        return inner.invoke(state)  # type: ignore[return-value]  # LangGraph types it as a plain dict

    outer = graph_of("", (START, "a"), ("a", END))
    outer.add_node("a", call)
    assert [node.name for node in read(outer).nodes] == ["a"]


def test_error_handlers_may_follow_their_node() -> None:
    def handle(state: State) -> State:
        return {}

    builder = graph_of("b", (START, "a"), ("a", "b"))
    builder.add_node("a", work, error_handler=handle)
    assert outcomes(read(builder), "a") == {("b",), ("__error_handler__a", "b")}


def test_a_lone_node_with_an_error_handler_usually_ends() -> None:
    def handle(state: State) -> State:
        return {}

    builder = graph_of("", (START, "a"))
    builder.add_node("a", work, error_handler=handle)
    assert outcomes(read(builder), "a") == {(END,), ("__error_handler__a",)}


def test_functional_graphs_are_read_from_their_drawing() -> None:
    @entrypoint()
    def flow(topic: str) -> str:
        return topic

    workflow = workflow_from_graph(flow, "w")
    assert [(node.name, node.kind) for node in workflow.nodes] == [("flow", StepKind.LLM)]
    assert outcomes(workflow, "flow") == {(END,)}


def test_a_node_that_only_an_undeclared_command_reaches_is_named_with_the_remedy() -> None:
    builder = graph_of("a b", (START, "a"))
    with pytest.raises(InvalidWorkflow, match=r"cannot be reached from START: 'b'; if a Command leads there, .*destin"):
        read(builder)


def test_a_loop_without_exit_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match="no path leads to END from 'a', 'b'"):
        read(graph_of("a b", (START, "a"), ("a", "b"), ("b", "a")))


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match=r"workflow 'w': dict is not a compiled LangGraph graph"):
        workflow_from_graph({}, "w")


def test_too_many_nodes_are_refused_before_anything_else() -> None:
    names = [f"n{index}" for index in range(501)]
    builder = graph_of(" ".join(names), *((START, name) for name in names))
    with pytest.raises(InvalidWorkflow, match="has 501 nodes, the limit is 500"):
        read(builder)


def test_too_many_edges_are_refused() -> None:
    names = [f"n{index}" for index in range(90)]
    builder = graph_of(" ".join(names), (START, "n0"))
    for name in names:
        builder.add_conditional_edges(name, lambda state: "n0")
    with pytest.raises(InvalidWorkflow, match="more than 5000 edges"):
        read(builder)


def test_sub_graphs_nested_too_deep_are_refused() -> None:
    graph = graph_of("x", (START, "x"), ("x", END)).compile()
    for _ in range(17):
        outer = graph_of("", (START, "o"), ("o", END))
        outer.add_node("o", graph)
        graph = outer.compile()
    with pytest.raises(InvalidWorkflow, match="nested more than 16 deep"):
        workflow_from_graph(graph, "w")
