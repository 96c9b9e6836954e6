"""Steps of real LangGraph executions: their names, nodes and parents."""

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy, Send

from agentserve.sdk.steps import StepLedger
from agentserve.sdk.tracking import StepTracker
from workflows.graph import Edge, Node, Workflow


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    rounds: int


def note(word: str) -> Any:
    def node(state: State) -> State:
        return {"seen": [word]}

    return node


def follow(graph: StateGraph[Any, Any, Any, Any], workflow: Workflow) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    tracker = StepTracker(StepLedger(workflow), lambda event: events.append(dict(event)), clock=lambda: 7.0)
    graph.compile().invoke({"seen": [], "rounds": 0}, {"callbacks": [tracker]})
    return events


def started(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {event["step_id"]: event["parents"] for event in sorted(events, key=str) if event["event"] == "started"}


def workflow(*edges: tuple[str, str]) -> Workflow:
    names = dict.fromkeys(end for edge in edges for end in edge if not end.startswith("__"))
    return Workflow("test", tuple(Node(name) for name in names), tuple(Edge(*edge) for edge in edges))


def fan_out_graph() -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(State)
    for name in ("plan", "search", "join"):
        graph.add_node(name, note(name))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send("search", {}), Send("search", {})], ["search"])
    graph.add_edge("search", "join")
    graph.add_edge("join", END)
    return graph


FAN_OUT = workflow((START, "plan"), ("plan", "search"), ("search", "join"), ("join", END))


def test_each_send_is_a_step_and_the_join_waits_for_all() -> None:
    assert started(follow(fan_out_graph(), FAN_OUT)) == {
        "plan.1": [],
        "search.2.0": ["plan.1"],
        "search.2.1": ["plan.1"],
        "join.3": ["search.2.0", "search.2.1"],
    }


def test_a_second_execution_names_the_same_steps() -> None:
    assert started(follow(fan_out_graph(), FAN_OUT)) == started(follow(fan_out_graph(), FAN_OUT))


def test_every_started_step_finishes_with_its_time_and_status() -> None:
    events = follow(fan_out_graph(), FAN_OUT)
    finished = [event for event in events if event["event"] == "finished"]
    assert sorted(event["step_id"] for event in finished) == ["join.3", "plan.1", "search.2.0", "search.2.1"]
    assert {(event["status"], event["at_s"]) for event in finished} == {("succeeded", 7.0)}


def test_a_loop_gives_each_pass_its_own_steps_and_the_pass_before_as_parent() -> None:
    graph = StateGraph(State)
    graph.add_node("draft", note("draft"))
    graph.add_node("write", lambda state: {"rounds": state["rounds"] + 1})
    graph.add_node("review", note("review"))
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "write")
    graph.add_edge("write", "review")
    graph.add_conditional_edges("review", lambda state: "write" if state["rounds"] < 2 else END, ["write", END])
    shape = workflow((START, "draft"), ("draft", "write"), ("write", "review"), ("review", "write"), ("review", END))
    assert started(follow(graph, shape)) == {
        "draft.1": [],
        "write.2": ["draft.1"],
        "review.3": ["write.2"],
        "write.4": ["review.3"],
        "review.5": ["write.4"],
    }


def test_an_edge_that_waits_for_branches_of_unequal_length_has_all_of_them_as_parents() -> None:
    graph = StateGraph(State)
    for name in ("short", "long", "longer", "join"):
        graph.add_node(name, note(name))
    graph.add_edge(START, "short")
    graph.add_edge(START, "long")
    graph.add_edge("long", "longer")
    graph.add_edge(["short", "longer"], "join")
    graph.add_edge("join", END)
    shape = workflow(
        (START, "short"), (START, "long"), ("long", "longer"), ("short", "join"), ("longer", "join"), ("join", END)
    )
    assert started(follow(graph, shape))["join.3"] == ["short.1", "longer.2"]


def nested_graph() -> StateGraph[Any, Any, Any, Any]:
    inner = StateGraph(State)
    inner.add_node("draft", note("draft"))
    inner.add_node("edit", note("edit"))
    inner.add_edge(START, "draft")
    inner.add_edge("draft", "edit")
    inner.add_edge("edit", END)
    graph = StateGraph(State)
    graph.add_node("plan", note("plan"))
    graph.add_node("team", inner.compile())
    graph.add_node("join", note("join"))
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "team")
    graph.add_edge("team", "join")
    graph.add_edge("join", END)
    return graph


def test_steps_of_a_nested_graph_are_named_by_both_nodes_and_linked_across_its_border() -> None:
    shape = workflow(
        (START, "plan"), ("plan", "team:draft"), ("team:draft", "team:edit"), ("team:edit", "join"), ("join", END)
    )
    events = follow(nested_graph(), shape)
    assert started(events) == {
        "plan.1": [],
        "team.2/draft.1": ["plan.1"],
        "team.2/edit.2": ["team.2/draft.1"],
        "join.3": ["team.2/edit.2"],
    }
    assert {event["node"] for event in events} == {"plan", "team:draft", "team:edit", "join"}


def test_nodes_that_the_workflow_does_not_show_belong_to_the_step_around_them() -> None:
    shape = workflow((START, "plan"), ("plan", "team"), ("team", "join"), ("join", END))
    assert started(follow(nested_graph(), shape)) == {"plan.1": [], "team.2": ["plan.1"], "join.3": ["team.2"]}


def test_a_retried_node_is_a_new_step() -> None:
    attempts: list[int] = []

    def flaky(state: State) -> State:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError
        return {"seen": ["flaky"]}

    graph = StateGraph(State)
    retry = RetryPolicy(initial_interval=0.0, backoff_factor=1.0, jitter=False)
    graph.add_node("flaky", flaky, retry_policy=retry)
    graph.add_edge(START, "flaky")
    graph.add_edge("flaky", END)
    events = follow(graph, workflow((START, "flaky"), ("flaky", END)))
    told = [(event["step_id"], event.get("status"), event.get("error")) for event in events]
    assert told == [
        ("flaky.1", None, None),
        ("flaky.1", "failed", "ConnectionError"),
        ("flaky.1#2", None, None),
        ("flaky.1#2", "succeeded", None),
    ]


def test_a_failing_node_reports_the_errors_type_and_nothing_of_its_text() -> None:
    def fail(state: State) -> State:
        raise ValueError("a secret of the prompt")

    graph = StateGraph(State)
    graph.add_node("fail", fail)
    graph.add_edge(START, "fail")
    graph.add_edge("fail", END)
    events: list[Any] = []
    tracker = StepTracker(StepLedger(workflow((START, "fail"), ("fail", END))), events.append)
    with pytest.raises(ValueError, match="secret"):
        graph.compile().invoke({}, {"callbacks": [tracker]})
    assert events[-1]["status"] == "failed"
    assert events[-1]["error"] == "ValueError"
    assert "secret" not in str(events)


@pytest.mark.parametrize("name", ["web search", "zürich", "a,b"])
def test_step_ids_are_plain_ascii_whatever_the_node_is_called(name: str) -> None:
    graph = StateGraph(State)
    graph.add_node(name, note("x"))
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    (step_id,) = started(follow(graph, workflow((START, name), (name, END))))
    assert step_id.isascii()
    assert not set(step_id) & set(" ,")
