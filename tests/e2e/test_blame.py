"""A run made late on purpose, on a live cluster, gets the right blame: in its journal, its trace and the terminal."""

import asyncio
import json
import operator
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, TypedDict

import httpx
import pytest
import pytest_asyncio
from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel, serve
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from agentserve.sdk.served import ServedGraph
from agentserve.telemetry import names
from tests.e2e.live import agentserve, scripted, until
from tests.integration.otlp_receiver import Receiver

PLAN_TOKENS, LONG_TOKENS, TOOL_S = 120, 1200, 0.05
LESSONS = 8
SEATS = 2


class State(TypedDict, total=False):
    plan_tokens: int
    tool_s: float
    said: Annotated[list[str], operator.add]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest_asyncio.fixture
async def cluster(receiver: Receiver) -> AsyncIterator[LocalCluster]:
    fleet = Fleet(model="llama-3.1-8b", speed=4, stream_interval=2, workers=(Group(gpu="h100", max_num_seqs=SEATS),))
    async with LocalCluster(fleet, chaos=True, settings={"OTLP_ENDPOINT": receiver.url}) as running:
        yield running


def served(cluster: LocalCluster) -> ServedGraph:
    """plan → look up → write, of which the plan's length and the tool's time are given."""
    model = ChatModel(model="llama-3.1-8b", gateway=cluster.gateway_url)

    async def plan(state: State) -> State:
        return {"said": [(await model.ainvoke(f"Plan. [[reply tokens={state['plan_tokens']}]]")).text]}

    async def look_up(state: State) -> State:
        await asyncio.sleep(state["tool_s"])
        return {"said": ["found"]}

    async def write(state: State) -> State:
        return {"said": [(await model.ainvoke(f"Write. [[reply tokens={PLAN_TOKENS}]]")).text]}

    graph = StateGraph(State).add_node(plan).add_node(look_up).add_node(write)
    graph = graph.add_edge(START, "plan").add_edge("plan", "look_up").add_edge("look_up", "write")
    return serve(graph.add_edge("write", END).compile(), slo_s=60, name="late", gateway=cluster.gateway_url)


async def taught(agent: ServedGraph) -> float:
    """Run the agent until lengths, durations and speeds are known; returns how long it takes undisturbed."""
    took = [(await agent.arun({"plan_tokens": PLAN_TOKENS, "tool_s": TOOL_S})).e2e_s for _ in range(LESSONS)]
    return min(took)


async def late_run(agent: ServedGraph, usual_s: float, **state: Any) -> str:
    """A run with half as long again as it usually takes; it must be late."""
    given = {"plan_tokens": PLAN_TOKENS, "tool_s": TOOL_S, **state}
    result = await agent.arun(given, slo_s=1.5 * usual_s)
    assert result.attained is False
    return result.run_id


async def blamed(cluster: LocalCluster, receiver: Receiver, run_id: str) -> tuple[str, str]:
    """The reason and node that journal, trace and terminal agree on."""
    async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
        events = (await client.get(f"/v1/runs/{run_id}/events")).json()["data"]
    said = next(one["data"]["blame"] for one in events if one["kind"] == "run.finished")
    traced = await agentserve("trace", run_id, "--json", "--gateway", cluster.gateway_url)
    assert json.loads(traced.out)["blame"] == said
    drawn = await agentserve("trace", run_id, "--gateway", cluster.gateway_url)
    assert f"to blame: {said['node']}" in drawn.out
    assert f"({said['reason']})" in drawn.out

    async def arrived() -> bool:
        return root_of(receiver, run_id) is not None

    await until(arrived)
    known = root_of(receiver, run_id)
    assert known[names.BLAME].string_value == said["reason"]
    assert known[names.BLAME_STEP].string_value == said["step_id"]
    assert known[names.BLAME_NODE].string_value == said["node"]
    assert known[names.BLAME_LOST_S].double_value == pytest.approx(said["lost_s"])
    return said["reason"], said["node"]


def root_of(receiver: Receiver, run_id: str) -> dict[str, Any] | None:
    for span in list(receiver.spans):
        known = {a.key: a.value for a in span.attributes}
        if span.name.startswith("invoke_workflow") and known[names.RUN_ID].string_value == run_id:
            return known
    return None


async def test_a_slow_worker_is_blamed(cluster: LocalCluster, receiver: Receiver) -> None:
    agent = served(cluster)
    usual_s = await taught(agent)
    async with httpx.AsyncClient(base_url=cluster.engine_urls["h100-1"]) as engine:
        assert (await engine.post("/emulator/slow", json={"factor": 8})).status_code == 200
    run_id = await late_run(agent, usual_s)
    assert await blamed(cluster, receiver, run_id) == ("slow_instance", "plan")


async def test_a_long_tool_is_blamed(cluster: LocalCluster, receiver: Receiver) -> None:
    agent = served(cluster)
    usual_s = await taught(agent)
    run_id = await late_run(agent, usual_s, tool_s=TOOL_S + 2 * usual_s)
    assert await blamed(cluster, receiver, run_id) == ("tool", "look_up")


async def test_a_wrong_prediction_is_blamed(cluster: LocalCluster, receiver: Receiver) -> None:
    agent = served(cluster)
    usual_s = await taught(agent)
    run_id = await late_run(agent, usual_s, plan_tokens=LONG_TOKENS)
    assert await blamed(cluster, receiver, run_id) == ("wrong_length", "plan")


async def test_a_full_queue_is_blamed(cluster: LocalCluster, receiver: Receiver) -> None:
    """Every seat of the only engine is taken by long calls without an SLO when the run comes."""
    agent = served(cluster)
    usual_s = await taught(agent)
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client, asyncio.TaskGroup() as group:
        for number in range(SEATS):
            body = scripted(f"filler {number}", 2 * LONG_TOKENS)
            group.create_task(client.post("/v1/chat/completions", json=body))

        async def is_full() -> bool:
            metrics = (await client.get(f"{cluster.engine_urls['h100-1']}/metrics")).text
            running = next(line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running"))
            return float(running.rsplit(" ", 1)[1]) == SEATS

        await until(is_full)
        run_id = await late_run(agent, usual_s)
    assert await blamed(cluster, receiver, run_id) == ("queue_wait", "plan")
