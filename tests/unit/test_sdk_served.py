"""A served graph behaves as the graph does, and tells the gateway of its runs and steps."""

import operator
import threading
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import httpx
import orjson
import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

import agentserve
from agentserve import headers
from agentserve.errors import BadInput, Conflict, Unavailable
from agentserve.sdk.chat import ChatModel
from agentserve.sdk.context import current_run
from agentserve.sdk.patience import Patience
from agentserve.sdk.reporter import StepReporter
from agentserve.sdk.rest import GatewayClient
from agentserve.sdk.served import RunResult, ServedGraph, serve
from agentserve.sdk.transport import uninstrument
from workflows.errors import InvalidWorkflow
from workflows.run import RunStatus

GATEWAY = "http://gateway.test"
IMPATIENT = Patience(total_s=0.0, unseen_s=0.0, clock=lambda: 0.0, sleep=lambda _: None)


class State(TypedDict, total=False):
    word: str
    seen: Annotated[list[str], operator.add]


class Gateway:
    """Takes REST calls and chat completions, and remembers them."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.fail: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        with self._lock:
            self.requests.append(request)
        for part, failure in self.fail.items():
            if part in request.url.path:
                if isinstance(failure, Exception):
                    raise failure
                return httpx.Response(failure, json={"error": {"message": "no", "code": "x"}})
        if request.url.path.endswith("/finish"):
            return httpx.Response(200, json={"submitted_s": 100.0, "finished_s": 103.0, "slo_s": 5.0})
        if request.url.path.endswith("/completions"):
            return httpx.Response(200, json={"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})
        return httpx.Response(200, json={})

    async def acall(self, request: httpx.Request) -> httpx.Response:
        return self(request)

    def sent(self, ending: str) -> list[Any]:
        return [orjson.loads(each.content) for each in self.requests if each.url.path.endswith(ending)]

    def steps(self, event: str) -> list[dict[str, Any]]:
        return [step for body in self.sent("/steps") for step in body["steps"] if step["event"] == event]

    def model(self) -> ChatModel:
        sync, asynchronous = httpx.MockTransport(self), httpx.MockTransport(self.acall)
        return ChatModel(model="m", gateway=GATEWAY, transport=sync, async_transport=asynchronous)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    yield Gateway()
    uninstrument()


def served(gateway: Gateway, graph: StateGraph[Any, Any, Any, Any], **more: Any) -> ServedGraph:
    client = GatewayClient(GATEWAY, transport=httpx.MockTransport(gateway), patience=IMPATIENT)
    return serve(graph, slo_s=5.0, client=client, **more)


def chat_graph(gateway: Gateway) -> StateGraph[Any, Any, Any, Any]:
    """plan (silent) → two parallel `ask` (one call each) → END."""
    model = gateway.model()

    def ask(state: State) -> State:
        return {"seen": [f"{state['word']}: {model.invoke(state['word']).content}"]}

    async def aask(state: State) -> State:
        return {"seen": [f"{state['word']}: {(await model.ainvoke(state['word'])).content}"]}

    graph = StateGraph(State)
    graph.add_node("plan", lambda state: {"seen": []})
    graph.add_node("ask", RunnableLambda(ask, aask))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send("ask", {"word": w}) for w in ("a", "b")], ["ask"])
    graph.add_edge("ask", END)
    return graph


def one_node(node: Any) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(State)
    graph.add_node("only", node)
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    return graph


def test_invoke_gives_the_graphs_output_and_reports_the_run(gateway: Gateway) -> None:
    graph = served(gateway, chat_graph(gateway), name="chat")
    assert sorted(graph.invoke({"word": "x"})["seen"]) == ["a: hi", "b: hi"]
    assert [request.method for request in gateway.requests][:2] == ["PUT", "POST"]
    (created,) = gateway.sent("/v1/runs")
    assert created == {"run_id": created["run_id"], "workflow": "chat", "slo_s": 5.0}
    assert sorted(step["step_id"] for step in gateway.steps("finished")) == ["ask.2.0", "ask.2.1", "plan.1"]
    assert gateway.sent("/finish") == [{"status": "succeeded"}]
    assert gateway.requests[-1].url.path == f"/v1/runs/{created['run_id']}/finish"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_calls_of_parallel_nodes_carry_their_own_steps(gateway: Gateway, asynchronous: bool) -> None:
    graph = served(gateway, chat_graph(gateway))
    if asynchronous:
        await graph.ainvoke({"word": "x"}, run_id="run-7")
    else:
        graph.invoke({"word": "x"}, run_id="run-7")
    calls = [request for request in gateway.requests if request.url.path.endswith("/completions")]
    said = {orjson.loads(call.content)["messages"][0]["content"]: call.headers for call in calls}
    assert {word: heads[headers.STEP_ID] for word, heads in said.items()} == {"a": "ask.2.0", "b": "ask.2.1"}
    for heads in said.values():
        assert heads[headers.RUN_ID] == "run-7"
        assert heads[headers.NODE] == "ask"
        assert heads[headers.PARENTS] == "plan.1"
        assert heads[headers.WORKFLOW] == graph.workflow.name


def test_a_node_that_called_no_model_counts_as_a_tool_from_the_second_run_on(gateway: Gateway) -> None:
    graph = served(gateway, chat_graph(gateway))
    graph.invoke({})
    graph.invoke({})
    kinds = [(step["node"], step["kind"]) for step in gateway.steps("started")]
    assert sorted(kinds[:3]) == [("ask", "llm"), ("ask", "llm"), ("plan", "llm")]
    assert sorted(kinds[3:]) == [("ask", "llm"), ("ask", "llm"), ("plan", "tool")]


def test_the_workflow_is_registered_once_and_again_only_if_the_gateway_forgot_it(gateway: Gateway) -> None:
    graph = served(gateway, one_node(lambda state: {"seen": ["x"]}))
    graph.invoke({})
    graph.invoke({})
    assert [request.method for request in gateway.requests].count("PUT") == 1
    gateway.fail["/v1/runs"] = 404
    with pytest.raises(agentserve.sdk.rest.NotFound):
        graph.invoke({})
    assert [request.method for request in gateway.requests].count("PUT") == 2


def test_run_says_how_the_run_went(gateway: Gateway) -> None:
    result = served(gateway, one_node(lambda state: {"seen": ["x"]})).run({"seen": []}, run_id="r")
    assert result == RunResult(output={"seen": ["x"]}, run_id="r", e2e_s=3.0, slo_s=5.0, attained=True)


def test_a_failing_graph_raises_its_own_error_and_fails_the_run_by_type_only(gateway: Gateway) -> None:
    def fail(state: State) -> State:
        raise ValueError("a secret")

    graph = served(gateway, one_node(fail))
    with pytest.raises(ValueError, match="a secret"):
        graph.invoke({})
    assert gateway.sent("/finish") == [{"status": "failed", "error": "ValueError"}]
    assert graph.last_run is not None
    assert graph.last_run.attained is False
    assert not any(b"secret" in request.content for request in gateway.requests)


def test_leaving_a_stream_early_cancels_the_run(gateway: Gateway) -> None:
    parts = served(gateway, chat_graph(gateway)).stream({}, stream_mode="updates")
    assert next(parts) == {"plan": {"seen": []}}
    assert current_run() is None
    parts.close()
    assert gateway.sent("/finish") == [{"status": "cancelled", "error": "GeneratorExit"}]


async def test_an_asynchronous_stream_gives_every_part_and_ends_the_run(gateway: Gateway) -> None:
    graph = served(gateway, chat_graph(gateway))
    parts = [part async for part in graph.astream({}, stream_mode="updates")]
    assert [next(iter(part)) for part in parts] == ["plan", "ask", "ask"]
    assert gateway.sent("/finish") == [{"status": "succeeded"}]


def test_current_run_is_known_inside_nodes_and_tools_only(gateway: Gateway) -> None:
    found: list[Any] = []

    def node(state: State) -> State:
        RunnableLambda(lambda _: found.append(current_run())).invoke(None, {"metadata": {"own": "metadata"}})
        return {"seen": []}

    served(gateway, one_node(node)).invoke({}, run_id="r")
    (run,) = found
    assert (run.run_id, run.step_id, run.node, run.slo_s) == ("r", "only.1", "only", 5.0)
    assert current_run() is None


def test_a_served_graph_inside_a_run_is_part_of_it(gateway: Gateway) -> None:
    inner = served(gateway, one_node(lambda state: {"seen": [current_run().run_id]}))  # type: ignore[union-attr]
    outer = served(gateway, one_node(lambda state: inner.invoke({})), name="outer")
    assert outer.invoke({}, run_id="r")["seen"] == ["r"]
    assert len(gateway.sent("/v1/runs")) == 1


def test_lost_reports_do_not_touch_the_graph(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.fail = {"/steps": 500, "/finish": httpx.ConnectError("refused")}
    graph = served(gateway, one_node(lambda state: {"seen": ["x"]}))
    assert graph.invoke({})["seen"] == ["x"]
    assert graph.last_run is not None
    assert graph.last_run.status is RunStatus.SUCCEEDED
    assert "step reports" in caplog.text


def test_the_id_of_a_run_that_has_ended_is_refused_before_the_graph_begins(gateway: Gateway) -> None:
    class Ended(Gateway):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            super().__call__(request)
            return httpx.Response(200, json={"run_id": "order-17", "status": "succeeded"})

    began: list[State] = []
    ended = Ended()
    with pytest.raises(Conflict, match="run order-17 has ended"):
        served(ended, one_node(began.append)).invoke({}, run_id="order-17")
    assert (began, ended.sent("/finish")) == ([], [])


def test_a_refused_report_does_not_take_others_of_its_batch_with_it(gateway: Gateway) -> None:
    class Refusing(Gateway):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            response = super().__call__(request)
            if request.url.path.endswith("/steps") and b"plan.1" in request.content:
                return httpx.Response(409, json={"error": {"message": "has ended"}})
            return response

    refusing = Refusing()
    served(refusing, chat_graph(refusing)).invoke({})
    alone = [body["steps"][0]["step_id"] for body in refusing.sent("/steps") if len(body["steps"]) == 1]
    assert {"ask.2.0", "ask.2.1"} <= {step["step_id"] for step in refusing.steps("finished")}
    assert "plan.1" in alone


@pytest.mark.parametrize("slo_s", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_slo_is_refused_before_anything_is_sent(gateway: Gateway, slo_s: float) -> None:
    with pytest.raises(BadInput, match="slo_s"):
        serve(one_node(lambda state: {}), slo_s=slo_s)
    with pytest.raises(BadInput, match="slo_s"):
        served(gateway, one_node(lambda state: {})).invoke({}, slo_s=slo_s)
    assert gateway.requests == []


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(BadInput, match="not str"):
        serve("graph", slo_s=1.0)


def test_a_graph_without_exit_is_refused_at_once() -> None:
    graph = StateGraph(State)
    graph.add_node("a", lambda state: state)
    graph.add_node("b", lambda state: state)
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_edge("b", "a")
    with pytest.raises(InvalidWorkflow, match="no path leads to END"):
        serve(graph, slo_s=1.0)


@pytest.mark.parametrize("url", ["gateway:8080", "ftp://gateway", "http://", "http://host:port"])
def test_a_gateway_that_is_no_url_is_refused_by_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="gateway="):
        serve(one_node(lambda state: {}), slo_s=1.0, gateway=url)
    monkeypatch.setenv("AGENTSERVE_GATEWAY", url)
    with pytest.raises(BadInput, match="AGENTSERVE_GATEWAY="):
        serve(one_node(lambda state: {}), slo_s=1.0)


def test_without_a_gateway_the_error_says_how_to_get_one(gateway: Gateway) -> None:
    gateway.fail["/v1"] = httpx.ConnectError("refused")
    with pytest.raises(Unavailable, match="agentserve up"):
        served(gateway, one_node(lambda state: {})).invoke({})


def test_a_refusal_is_raised_as_our_error_with_the_gateways_words(gateway: Gateway) -> None:
    gateway.fail["/v1/runs"] = 409
    with pytest.raises(Conflict, match=r"\(409\): no"):
        served(gateway, one_node(lambda state: {})).invoke({})


def test_unnamed_graphs_get_names_from_their_shapes(gateway: Gateway) -> None:
    one, two = served(gateway, one_node(lambda state: {})), served(gateway, chat_graph(gateway))
    assert one.name is not None
    assert one.name.startswith("graph-")
    assert one.name != two.name


def test_other_attributes_are_the_graphs_own(gateway: Gateway) -> None:
    graph = served(gateway, one_node(lambda state: {}))
    assert "only" in graph.get_graph().nodes
    assert graph.channels is graph.graph.channels


def test_reports_that_come_after_the_client_was_closed_are_given_up(caplog: pytest.LogCaptureFixture) -> None:
    client = GatewayClient("http://gateway.test", transport=httpx.MockTransport(lambda _: httpx.Response(200, json={})))
    reporter = StepReporter(client)
    client.close()
    reporter.report("r", {"event": "started"})
    assert reporter.flush("r")
    assert "was closed" in caplog.text
