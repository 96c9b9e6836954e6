"""What breaks in mid-stream: a worker, the gateway, the broker. No token is lost or doubled, and the runs end."""

import asyncio
from collections.abc import AsyncIterator
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


async def expected(cluster: LocalCluster, bodies: list[dict]) -> list[str]:
    engine = next(iter(cluster.engine_urls.values()))
    return list(await asyncio.gather(*(told_by_engine(engine, body) for body in bodies)))


async def busiest(cluster: LocalCluster) -> str:
    async with httpx.AsyncClient(base_url=cluster.gateway_url) as client:
        instances = (await client.get("/v1/cluster")).json()["scheduler"]["instances"]
    return max(instances, key=lambda instance: (instance["bound"], instance["instance_id"]))["instance_id"]


class Streams:
    """Chats streamed side by side, each in a run of its own."""

    def __init__(self, cluster: LocalCluster, bodies: list[dict], client: httpx.AsyncClient) -> None:
        self.texts = ["" for _ in bodies]
        self._client = client
        self._bodies = bodies

    async def one(self, index: int) -> None:
        headers = {"x-agentserve-run-id": f"run-{index}", "x-agentserve-slo-s": "60"}
        async for piece in streamed(self._client, self._bodies[index], headers):
            self.texts[index] += piece

    async def all(self) -> list[str]:
        await asyncio.gather(*(self.one(index) for index in range(len(self._bodies))))
        return self.texts

    async def under_way(self) -> bool:
        return all(len(text) > 200 for text in self.texts)


async def test_streams_of_a_killed_engine_go_on_elsewhere_token_exact(cluster: LocalCluster, tmp_path: Path) -> None:
    bodies = [scripted(f"subject {index}", TOKENS) for index in range(12)]
    wanted = await expected(cluster, bodies)
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:
        streams = Streams(cluster, bodies, client)
        running = asyncio.create_task(streams.all())
        await until(streams.under_way)
        victim = await busiest(cluster)
        await cluster.parts[f"engine-{victim}"].kill()
        assert await running == wanted
        listed = (await client.get("/v1/cluster")).json()["instances"]
        assert victim not in [instance["instance_id"] for instance in listed if instance["state"] == "online"]
    await cluster.parts["gateway"].stop()
    verified = await agentserve("verify-log", str(tmp_path / "events.jsonl"))
    assert verified.code == 0, verified.err
    assert "identical" in verified.out


async def test_streams_of_a_killed_worker_agent_go_on_and_it_leaves_the_candidates(cluster: LocalCluster) -> None:
    bodies = [scripted(f"subject {index}", TOKENS) for index in range(6)]
    wanted = await expected(cluster, bodies)
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:
        streams = Streams(cluster, bodies, client)
        running = asyncio.create_task(streams.all())
        await until(streams.under_way)
        victim = await busiest(cluster)
        await cluster.parts[f"worker-{victim}"].kill()

        async def gone() -> bool:
            listed = (await client.get("/v1/cluster")).json()["instances"]
            return victim not in [instance["instance_id"] for instance in listed if instance["state"] == "online"]

        await until(gone, within_s=5)
        assert await running == wanted


async def test_sdk_streams_survive_a_killed_gateway_token_exact(cluster: LocalCluster) -> None:
    bodies = [scripted(f"subject {index}", TOKENS) for index in range(6)]
    wanted = await expected(cluster, bodies)
    async with async_http_client(gateway=cluster.gateway_url) as client:
        client.base_url = httpx.URL(cluster.gateway_url)
        streams = Streams(cluster, bodies, client)
        running = asyncio.create_task(streams.all())
        await until(streams.under_way)
        await cluster.restart_gateway(kill=True)
        assert await running == wanted
        for index in range(len(bodies)):
            run = (await client.get(f"/v1/runs/run-{index}")).json()
            assert [step["status"] for step in run["steps"]] == ["succeeded"]


async def test_the_cluster_serves_on_without_its_broker_and_still_notices_a_dead_engine(cluster: LocalCluster) -> None:
    bodies = [scripted(f"subject {index}", TOKENS) for index in range(6)]
    wanted = await expected(cluster, bodies)
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client:
        streams = Streams(cluster, bodies, client)
        running = asyncio.create_task(streams.all())
        await until(streams.under_way)
        await cluster.parts["broker"].kill()
        victim = await busiest(cluster)
        await cluster.parts[f"engine-{victim}"].kill()
        assert await running == wanted
        again = Streams(cluster, bodies, client)
        for index in range(len(bodies)):
            await again.one(index)
        assert again.texts == wanted
