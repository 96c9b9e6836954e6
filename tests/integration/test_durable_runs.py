"""A durable run outlives its process: killed anywhere, it goes on in another; finished steps are not executed again."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from agentserve.sdk.durable import LEASE_S, DurableStore
from agentserve.sdk.redis_link import RedisLink
from tests.e2e.live import ROOT, Finished, agentserve, until
from tests.integration.durable_agent import TOKENS, told

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGENT = "tests.integration.durable_agent"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    fleet = Fleet(model="llama-3.1-8b", speed=8, stream_interval=2, workers=(Group(gpu="h100"), Group(gpu="a100")))
    async with LocalCluster(fleet) as running:
        yield running


class Killed:
    """A run whose process was killed at `place`; what its nodes did is in the diary."""

    def __init__(self, cluster: LocalCluster, diary: Path, graph: str, run_id: str) -> None:
        self.run_id = run_id
        self._cluster = cluster
        self._diary = diary
        self._graph = graph
        self.env = {"AGENTSERVE_GATEWAY": cluster.gateway_url, "AGENTSERVE_REDIS_URL": cluster.redis_url}
        self.env |= {"DIARY": str(diary)}

    async def die(self, place: str) -> None:
        process = await self.start(place)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == -signal.SIGKILL, out.decode()

    async def start(self, place: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", AGENT, self._graph, self.run_id),
            cwd=ROOT,
            env={**os.environ, **self.env, "DIE_AT": place},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def resumed(self, *flags: str) -> Finished:
        """What `agentserve resume` says once the dead process's lease is over."""

        store = DurableStore(RedisLink(self._cluster.redis_url, "default"))

        async def free() -> bool:
            return not any(run.driven for run in store.unfinished() if run.about.run_id == self.run_id)

        await until(free, within_s=LEASE_S + 20)
        store.link.close()
        return await agentserve("resume", self.run_id, "--json", *flags, **self.env)

    def executions(self) -> Counter[str]:
        return Counter(self._diary.read_text().split())

    async def shown(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self._cluster.gateway_url) as client:
            answer: dict[str, Any] = (await client.get(f"/v1/runs/{self.run_id}")).json()
            return answer


async def made_tokens(cluster: LocalCluster) -> int:
    """Tokens that all engines made so far."""
    total = 0.0
    async with httpx.AsyncClient() as client:
        for url in cluster.engine_urls.values():
            for line in (await client.get(f"{url}/metrics")).text.splitlines():
                if line.startswith("vllm:generation_tokens_total"):
                    total += float(line.rpartition(" ")[2])
    return round(total)


async def story(cluster: LocalCluster) -> str:
    """What the model tells when nobody dies."""
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": told("rivers")}]}
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:
        answer = await client.post("/v1/chat/completions", json=body)
        return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("graph", "place", "twice"),
    [
        ("graph", "between", None),
        ("retryable", "search", "search"),
        ("graph", "write", "write"),
    ],
)
async def test_a_run_goes_on_in_another_process(
    cluster: LocalCluster, tmp_path: Path, graph: str, place: str, twice: str | None
) -> None:
    run = Killed(cluster, tmp_path / "diary", graph, f"durable-{graph}-{place}")
    await run.die(place)
    before, made = await run.shown(), await made_tokens(cluster)
    assert before["status"] == "running"
    resumed = await run.resumed()
    assert resumed.code == 0, resumed.err
    if place == "write":  # the stream went on behind what the dead process had got
        assert await made_tokens(cluster) - made < TOKENS - 20
    assert orjson.loads(resumed.out)["output"]["story"] == await story(cluster)
    assert run.executions() == Counter({"plan": 1, "search": 1, "write": 1}) + Counter([twice] if twice else [])
    after = await run.shown()
    assert (after["status"], after["deadline_s"]) == ("succeeded", before["deadline_s"])
    assert [step["status"] for step in after["steps"]] == ["succeeded"] * 3


async def test_a_step_that_may_not_be_executed_again_stops_the_run_with_one_error(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    run = Killed(cluster, tmp_path / "diary", "graph", "durable-refused")
    await run.die("search")
    refused = await run.resumed()
    assert refused.code == 3
    assert "search was under way" in refused.err
    assert "--retry search" in refused.err
    assert run.executions() == Counter({"plan": 1, "search": 1})
    assert (await run.shown())["status"] == "running"
    listed = await agentserve("ps", "--unfinished", "--json", **run.env)
    assert [(each["run_id"], each["driven"]) for each in orjson.loads(listed.out)] == [(run.run_id, False)]
    allowed = await run.resumed("--retry", "search")
    assert allowed.code == 0, allowed.err
    assert run.executions() == Counter({"plan": 1, "search": 2, "write": 1})
    assert (await run.shown())["status"] == "succeeded"
    ended = await agentserve("resume", run.run_id, **run.env)
    assert (ended.code, "not kept" in ended.err) == (2, True), ended.err
