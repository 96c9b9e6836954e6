"""Agents on a live cluster, as their users run them: by command line, as in the README, by the openai client."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet
from tests.e2e.live import MODEL, ROOT, agentserve
from workflows.catalog import SCRIPTS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(default_fleet(speed=10, stream_interval=4), script=SCRIPTS) as running:
        yield running


async def run_of(cluster: LocalCluster, run_id: str) -> dict:
    async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
        return (await client.get(f"/v1/runs/{run_id}")).json()


def shows_deadlines_and_reasons(explained: dict) -> None:
    llm_steps = [step for step in explained["steps"] if step["kind"] == "llm"]
    assert llm_steps
    for step in llm_steps:
        assert step["target_deadline_s"] is not None
        assert step["latest_deadline_s"] is not None
        for call in step["calls"]:
            assert call["why"]["rule"]
            assert call["why"]["candidates"]


@pytest.mark.parametrize("agent", ["support_triage", "researcher", "coder", "text_to_sql", "debate"])
async def test_catalog_agent_runs_and_its_trace_says_every_deadline_and_choice(
    cluster: LocalCluster, agent: str
) -> None:
    ran = await agentserve(
        "run", f"workflows.catalog.{agent}:graph", "--slo", "60s", "--json", "--gateway", cluster.gateway_url
    )
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["attained"] is True
    traced = await agentserve("trace", result["run_id"], "--json", "--gateway", cluster.gateway_url)
    assert traced.code == 0, traced.err
    shows_deadlines_and_reasons(json.loads(traced.out))
    drawn = await agentserve("trace", result["run_id"], "--gateway", cluster.gateway_url)
    assert drawn.code == 0, drawn.err
    assert result["run_id"] in drawn.out
    from_redis = await agentserve("trace", result["run_id"], "--redis", cluster.redis_url)
    assert from_redis.out == drawn.out


async def test_the_readme_example_runs_as_it_stands(cluster: LocalCluster, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "my_agent.py").write_text(code[1])
    question = json.dumps({"question": "Which GPU should decode?"})
    flags = ("--slo", "20s", "--input", question, "--json", "--gateway", cluster.gateway_url)
    ran = await agentserve("run", "my_agent:graph", *flags, cwd=tmp_path)
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["output"]["answer"]
    run = await run_of(cluster, result["run_id"])
    assert [step["node"] for step in run["steps"]] == ["plan", "answer"]
    assert run["status"] == "succeeded"


async def test_the_plain_openai_client_takes_part_by_headers(cluster: LocalCluster) -> None:
    run_id = "from-openai"
    async with openai.AsyncOpenAI(base_url=f"{cluster.gateway_url}/v1", api_key="none") as client:
        for node in ("plan", "answer"):
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"{node} please [[reply tokens=20]]"}],
                extra_headers={
                    "x-agentserve-run-id": run_id,
                    "x-agentserve-slo-s": "30",
                    "x-agentserve-node": node,
                    "x-agentserve-workflow": "by-hand",
                },
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 20
    run = await run_of(cluster, run_id)
    assert [step["node"] for step in run["steps"]] == ["plan", "answer"]
    traced = await agentserve("trace", run_id, "--json", "--gateway", cluster.gateway_url)
    shows_deadlines_and_reasons(json.loads(traced.out))


async def test_ps_lists_every_instance(cluster: LocalCluster) -> None:
    listed = await agentserve("ps", "--json", "--gateway", cluster.gateway_url)
    state = json.loads(listed.out)
    names = [instance["instance_id"] for instance in state["instances"]]
    assert names == ["a100-80g-1", "a100-80g-2", "h100-1", "h200-1"]
    drawn = await agentserve("ps", "--gateway", cluster.gateway_url)
    assert "h200-1" in drawn.out
