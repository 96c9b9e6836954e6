"""What breaks in mid-stream: a worker, the gateway, the broker. No token is lost or doubled, and the runs end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest_asyncio

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet
from agentserve.sdk.transport import async_http_client
from tests.e2e.live import agentserve, scripted, streamed, told_by_engine, until

TOKENS = 600


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    log = {"EVENT_LOG": str(tmp_path / "events.jsonl")}
    async with LocalCluster(default_fleet(speed=2, stream_interval=2), settings=log, log_dir=tmp_path) as running:
        yield running


async def busiest(cluster: LocalCluster) -> str:
    async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
        instances = (await client.get("/v1/cluster")).json()["scheduler"]["instances"]
    return max(instances, key=lambda instance: (instance["bound"], instance["instance_id"]))["instance_id"]


async def online(client: httpx.AsyncClient) -> list[str]:
    """Instances that take work."""
    listed = (await client.get("/v1/cluster")).json()["instances"]
    return [instance["instance_id"] for instance in listed if instance["state"] == "online"]


class Streams:
    """Chats streamed side by side through the gateway, each in a run of its own."""

    def __init__(self, cluster: LocalCluster, client: httpx.AsyncClient, count: int) -> None:
        self.texts = [""] * count
        self._client = client
        self._engine = next(iter(cluster.engine_urls.values()))
        self._bodies = [scripted(f"subject {index}", TOKENS) for index in range(count)]

    async def survive(self, trouble: Callable[[], Awaitable[None]]) -> None:
        """Stream all, make trouble once all are under way, and compare with what an undisturbed engine says."""
        wanted = await asyncio.gather(*(told_by_engine(self._engine, body) for body in self._bodies))
        running = asyncio.create_task(self._all())
        await until(self._under_way)
        await trouble()
        await running
        assert self.texts == wanted

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._bodies)):
                group.create_task(self._one(index))

    async def _one(self, index: int) -> None:
        headers = {"x-agentserve-run-id": f"run-{index}", "x-agentserve-slo-s": "60"}
        async for piece in streamed(self._client, self._bodies[index], headers):
            self.texts[index] += piece

    async def _under_way(self) -> bool:
        return all(len(text) > 200 for text in self.texts)


async def test_streams_of_a_killed_engine_go_on_elsewhere_token_exact(cluster: LocalCluster, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:
        victim = ""

        async def trouble() -> None:
            nonlocal victim
            victim = await busiest(cluster)
            await cluster.parts[f"engine-{victim}"].kill()

        await Streams(cluster, client, 12).survive(trouble)
        assert victim not in await online(client)
    await cluster.parts["gateway"].stop()
    verified = await agentserve("verify-log", str(tmp_path / "events.jsonl"))
    assert verified.code == 0, verified.err
    assert "identical" in verified.out


async def test_streams_of_a_killed_worker_agent_go_on_and_it_leaves_the_candidates(cluster: LocalCluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:

        async def trouble() -> None:
            victim = await busiest(cluster)
            await cluster.parts[f"worker-{victim}"].kill()

            async def gone() -> bool:
                return victim not in await online(client)

            await until(gone, within_s=5)

        await Streams(cluster, client, 6).survive(trouble)


async def test_sdk_streams_survive_a_killed_gateway_token_exact(cluster: LocalCluster) -> None:
    async with async_http_client(gateway=cluster.gateway_url) as client:
        client.base_url = httpx.URL(cluster.gateway_url)
        await Streams(cluster, client, 6).survive(lambda: cluster.restart_gateway(kill=True))
        for index in range(6):
            run = (await client.get(f"/v1/runs/run-{index}")).json()
            assert [step["status"] for step in run["steps"]] == ["succeeded"]


async def test_the_cluster_serves_on_without_its_broker_and_still_notices_a_dead_engine(cluster: LocalCluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:

        async def trouble() -> None:
            await cluster.parts["broker"].kill()
            await cluster.parts[f"engine-{await busiest(cluster)}"].kill()

        await Streams(cluster, client, 6).survive(trouble)
        answer = await client.post("/v1/chat/completions", json=scripted("what is left", 20))
        assert answer.json()["usage"]["completion_tokens"] == 20
