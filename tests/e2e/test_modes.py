"""A live cluster goes through all four modes under load: every run ends, other gateways follow, a restart keeps it."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet
from agentserve.local.process import ChildProcess, free_port, http_ready
from tests.e2e.live import agentserve, scripted, until

MODES = ("observe", "route", "migrate", "split")
RUNS_IN_EACH = 4
AT_ONCE = 4


class Load:
    """Clients that each send one run of two calls after the other until they are told to stop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._numbers = itertools.count()
        self._is_stopping = False
        self.ended: dict[str, str] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._send())
            try:
                yield
            finally:
                self._is_stopping = True

    async def _send(self) -> None:
        while not self._is_stopping:
            name = f"run-{next(self._numbers)}"
            headers = {"x-agentserve-run-id": name, "x-agentserve-slo-s": "20"}
            for node, tokens in (("plan", 60), ("answer", 120)):
                answer = await self._client.post(
                    "/v1/chat/completions", json=scripted(name, tokens), headers={**headers, "x-agentserve-node": node}
                )
                assert answer.status_code == 200, answer.text
                assert answer.json()["usage"]["completion_tokens"] == tokens
            finished = await self._client.post(f"/v1/runs/{name}/finish", json={})
            self.ended[name] = finished.json()["status"]


async def mode_of(client: httpx.AsyncClient) -> dict[str, Any]:
    return dict((await client.get("/v1/mode")).json())


async def test_the_modes_one_after_the_other_on_a_live_cluster(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    fleet = default_fleet(speed=4, stream_interval=4)
    async with (
        LocalCluster(fleet, settings={"EVENT_LOG": str(log)}, log_dir=tmp_path) as cluster,
        httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60) as client,
    ):
        async with second_gateway(cluster, tmp_path) as other:
            load = Load(client)
            async with load.running():
                for mode in MODES:
                    await _led_to(mode, client, other)
            assert set(load.ended.values()) == {"succeeded"}
            assert len(load.ended) >= RUNS_IN_EACH * len(MODES)
        await _tells_the_difference(client)
        switched = await agentserve("mode", "route", "--json", "--gateway", cluster.gateway_url)
        assert switched.code == 0, switched.err
        assert json.loads(switched.out)["mode"] == "route"
        await cluster.restart_gateway(kill=True)
        told = await mode_of(client)
        assert told["mode"] == "route"
        assert told["figures"]["observe"]["runs"] >= RUNS_IN_EACH
        await cluster.parts["gateway"].stop()
    for each in (log, log.with_name("events-2.jsonl")):
        verified = await agentserve("verify-log", str(each))
        assert verified.code == 0, verified.err


async def _led_to(mode: str, client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """Switch, and stay until runs have begun and ended in that mode."""
    switched = await client.put("/v1/mode", json={"mode": mode})
    assert switched.json()["mode"] == mode

    async def enough() -> bool:
        return bool((await mode_of(client))["figures"][mode]["runs"] >= RUNS_IN_EACH)

    async def follows() -> bool:
        state = (await other.get("/v1/cluster")).json()
        return bool(state["mode"] == state["scheduler"]["mode"] == mode)

    await until(follows)
    await until(enough, within_s=40)


async def _tells_the_difference(client: httpx.AsyncClient) -> None:
    figures = (await mode_of(client))["figures"]
    assert all(figures[mode]["with_slo"] == figures[mode]["runs"] for mode in MODES)
    assert all(figures[mode]["e2e_p50_s"] > 0 for mode in MODES)
    assert figures["observe"]["migrations"] == figures["route"]["migrations"] == 0
    assert [figures[mode]["splits"] for mode in MODES[:3]] == [0, 0, 0]
    estimate = figures["observe"]["estimate"]
    assert estimate["runs"] == figures["observe"]["runs"]
    assert estimate["calls"] == 2 * estimate["runs"]
    assert all(figures[mode]["estimate"] is None for mode in MODES[1:])


@asynccontextmanager
async def second_gateway(cluster: LocalCluster, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Another gateway process over the same Redis and broker."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--port", str(port), "--redis", cluster.redis_url, "--mqtt", cluster.mqtt_url]
    child = ChildProcess(
        "second gateway",
        [sys.executable, "-m", "agentserve", "gateway", *flags],
        probe=http_ready(f"{url}/healthz"),
        log_path=folder / "second.log",
    )
    await child.start()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield client
    finally:
        await child.stop()
