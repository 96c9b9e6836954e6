"""Served graphs on a real gateway with emulated engines: unchanged ChatOpenAI, our ChatModel, a dying gateway."""

import asyncio
import importlib
import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import httpx
import httpx2
import pytest
import pytest_asyncio
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import SecretStr

from agentserve import ChatModel, current_run, serve
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from agentserve.sdk.transport import uninstrument
from workflows.catalog import AGENTS, SCRIPTS

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENS = 300


class State(TypedDict, total=False):
    topic: str
    told: Annotated[list[str], operator.add]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    fleet = Fleet(model="llama-3.1-8b", speed=4, stream_interval=2, workers=(Group(gpu="h100"), Group(gpu="a100")))
    async with LocalCluster(fleet, script=SCRIPTS) as running:
        yield running
    uninstrument()


def prompt(topic: str) -> str:
    return f"Tell me of {topic}. [[reply tokens={TOKENS}]]"


def storytellers(model: Any, *, streamed: bool) -> StateGraph[Any, Any, Any, Any]:
    """plan → three stories at the same time → join."""

    def tell(state: State) -> State:
        if streamed:
            return {"told": ["".join(str(chunk.content) for chunk in model.stream(prompt(state["topic"])))]}
        return {"told": [str(model.invoke(prompt(state["topic"])).content)]}

    graph = StateGraph(State)
    graph.add_node("plan", lambda state: {"told": []})
    graph.add_node("tell", tell)
    graph.add_node("join", lambda state: {"topic": str(len(state["told"]))})
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: [Send("tell", {"topic": f"topic {i}"}) for i in range(3)], ["tell"])
    graph.add_edge("tell", "join")
    graph.add_edge("join", END)
    return graph


@pytest_asyncio.fixture(loop_scope="module")
async def openai_model(cluster: LocalCluster) -> AsyncIterator[ChatOpenAI]:
    """ChatOpenAI with stock clients of its own, so that their connections can be closed."""
    with httpx2.Client() as client:
        async with httpx2.AsyncClient() as async_client:
            yield ChatOpenAI(
                model="llama-3.1-8b",
                base_url=f"{cluster.gateway_url}/v1",
                api_key=SecretStr("none"),
                http_client=client,
                http_async_client=async_client,
            )


async def shown(cluster: LocalCluster, run_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
        answer: dict[str, Any] = (await client.get(f"/v1/runs/{run_id}")).json()
        return answer


async def stories(cluster: LocalCluster) -> list[str]:
    """What one engine tells when nobody interrupts it."""
    engine = next(iter(cluster.engine_urls.values()))
    told = []
    async with httpx.AsyncClient(base_url=engine, timeout=60) as client:
        for topic in range(3):
            messages = [{"role": "user", "content": prompt(f"topic {topic}")}]
            answer = await client.post("/v1/chat/completions", json={"model": "llama-3.1-8b", "messages": messages})
            told.append(answer.json()["choices"][0]["message"]["content"])
    return told


STEPS = ["join.3", "plan.1", "tell.2.0", "tell.2.1", "tell.2.2"]


@pytest.mark.parametrize("kind", ["openai", "own"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_parallel_calls_arrive_as_the_steps_they_are(
    cluster: LocalCluster, openai_model: ChatOpenAI, kind: str, streamed: bool
) -> None:
    model: Any = openai_model if kind == "openai" else ChatModel(model="llama-3.1-8b")
    graph = serve(storytellers(model, streamed=streamed), slo_s=60.0, name="stories", gateway=cluster.gateway_url)
    result = await asyncio.to_thread(graph.run, {"topic": "", "told": []})
    assert sorted(result.output["told"]) == sorted(await stories(cluster))
    assert result.attained is True
    run = await shown(cluster, result.run_id)
    assert run["status"] == "succeeded"
    assert sorted(step["step_id"] for step in run["steps"]) == STEPS
    assert {step["status"] for step in run["steps"]} == {"succeeded"}
    parents = {step["step_id"]: step["parents"] for step in run["steps"]}
    assert parents["join.3"] == ["tell.2.0", "tell.2.1", "tell.2.2"]
    assert parents["tell.2.1"] == ["plan.1"]
    graph.close()


async def test_asynchronous_nodes_on_one_loop_keep_their_steps_apart(
    cluster: LocalCluster, openai_model: ChatOpenAI
) -> None:
    found: list[Any] = []

    async def tell(state: State) -> State:
        told = [str(chunk.content) async for chunk in openai_model.astream(prompt(state["topic"]))]
        found.append(current_run())
        return {"told": ["".join(told)]}

    graph = StateGraph(State)
    graph.add_node("tell", tell)
    graph.add_conditional_edges(START, lambda _: [Send("tell", {"topic": f"topic {i}"}) for i in range(3)], ["tell"])
    graph.add_edge("tell", END)
    served = serve(graph, slo_s=60.0, gateway=cluster.gateway_url)
    result = await served.arun({})
    assert sorted(result.output["told"]) == sorted(await stories(cluster))
    assert sorted(run.step_id for run in found) == ["tell.1.0", "tell.1.1", "tell.1.2"]
    assert {run.run_id for run in found} == {result.run_id}
    served.close()


@pytest.mark.parametrize("agent", AGENTS)
async def test_catalog_agents_end_well_on_a_live_cluster(cluster: LocalCluster, agent: str) -> None:
    module = importlib.import_module(f"workflows.catalog.{agent}")
    served = serve(module.graph, slo_s=60.0, gateway=cluster.gateway_url)
    result = await served.arun(module.EXAMPLE)
    run = await shown(cluster, result.run_id)
    assert (run["status"], run["workflow"]) == ("succeeded", agent)
    assert run["steps"]
    assert result.attained is True
    answers = {"coder": ("passed", True), "debate": ("winner", "against"), "text_to_sql": ("rows", [("Rui", 36700)])}
    if agent in answers:
        key, value = answers[agent]
        assert result.output[key] == value
    served.close()


async def test_a_failed_graph_is_a_failed_run(cluster: LocalCluster) -> None:
    def fail(state: State) -> State:
        raise LookupError("not to be told")

    graph = StateGraph(State)
    graph.add_node("fail", fail)
    graph.add_edge(START, "fail")
    graph.add_edge("fail", END)
    served = serve(graph, slo_s=60.0, gateway=cluster.gateway_url)
    with pytest.raises(LookupError):
        await served.arun({}, run_id="failing")
    run = await shown(cluster, "failing")
    assert (run["status"], run["error"]) == ("failed", "LookupError")
    served.close()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_a_run_outlives_its_gateway_and_loses_no_token(
    cluster: LocalCluster, openai_model: ChatOpenAI, streamed: bool, kill: bool
) -> None:
    wanted = await stories(cluster)
    graph = storytellers(openai_model, streamed=streamed)
    served = serve(graph, slo_s=60.0, gateway=cluster.gateway_url)
    run_id = f"outlives-{streamed}-{kill}"
    running = asyncio.create_task(served.arun({"topic": "", "told": []}, run_id=run_id))

    async def calling() -> bool:
        async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
            run = (await client.get(f"/v1/runs/{run_id}")).json()
        steps = [step["node"] for step in run.get("steps", ())]
        return steps.count("tell") == 3

    async with asyncio.timeout(20):
        while not await calling():  # noqa: ASYNC110  # the gateway is asked over HTTP, it has no event to wait for
            await asyncio.sleep(0.02)
    await cluster.restart_gateway(kill=kill)
    result = await running
    assert sorted(result.output["told"]) == sorted(wanted)
    run = await shown(cluster, run_id)
    assert run["status"] == "succeeded"
    assert sorted(step["step_id"] for step in run["steps"]) == STEPS
    served.close()
