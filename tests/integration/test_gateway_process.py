"""The gateway as a process: its port, its store, and a stop that lets calls end."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.errors import BadInput, Unavailable
from agentserve.gateway.serve import run_gateway
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.settings import Settings
from agentserve.tenants.file import add_key
from tests.integration.gateway_parts import MODEL, engine_process, until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "[[reply tokens=300]]"}], "max_tokens": 1000}


async def test_a_port_in_use_and_a_missing_redis_are_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use"):
            await run_gateway(Settings(port=port, mqtt_url=None))
    settings = Settings(port=free_port(), mqtt_url=None, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1"):
        await run_gateway(settings)
    with pytest.raises(BadInput, match="AGENTSERVE_POLICY='odd'"):
        await run_gateway(Settings(port=free_port(), mqtt_url=None, policy="odd"))


async def test_it_serves_without_a_broker_and_stops_when_cancelled() -> None:
    async with RedisServer() as redis:
        ready = asyncio.Event()
        settings = Settings(port=free_port(), redis_url=redis.url, mqtt_url=f"mqtt://127.0.0.1:{free_port()}")
        serving = asyncio.create_task(
            run_gateway(settings, on_ready=lambda _: ready.set(), handle_signals=False), name="gateway"
        )
        await asyncio.wait_for(ready.wait(), 15)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", trust_env=False) as client:
            assert (await client.get("/healthz")).status_code == 200
        serving.cancel()
        await asyncio.wait({serving})
        assert serving.cancelled()


async def test_an_open_address_without_keys_is_refused_unless_told_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0\.0\.0\.0 is reached from other machines.*agentserve keys new"):
        await run_gateway(Settings(host="0.0.0.0", port=free_port(), mqtt_url=None))
    elsewhere = f"redis://127.0.0.1:{free_port()}/0"
    tenants = tmp_path / "tenants.toml"
    add_key(tenants, "a")
    for allowed in ({"allow_anonymous": True}, {"tenants_file": tenants}):
        settings = Settings(host="0.0.0.0", port=free_port(), mqtt_url=None, redis_url=elsewhere, **allowed)
        with pytest.raises(Unavailable, match="Redis"):
            await run_gateway(settings)


async def test_sigterm_ends_the_pages_that_are_open() -> None:
    config = EmulatorConfig(gpu="h100", speed=1)
    async with RedisServer(port=0) as redis, engine_process(config) as engine, _process(redis.url, engine.url) as gate:
        url, process = gate
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            async with client.stream("GET", "/v1/live") as page:
                lines = page.aiter_lines()
                while not (await anext(lines)).startswith("data: "):
                    pass
                process.send_signal(signal.SIGTERM)
                assert "event: bye" in [line async for line in lines]
            assert await asyncio.wait_for(process.wait(), 15) == 0


async def test_sigterm_lets_the_call_in_flight_end_and_takes_no_more() -> None:
    config = EmulatorConfig(gpu="h100", speed=1)
    async with RedisServer(port=0) as redis, engine_process(config) as engine, _process(redis.url, engine.url) as gate:
        url, process = gate
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            call = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))

            async def under_way() -> bool:
                return bool((await client.get("/v1/cluster")).json()["live_calls"])

            await until(under_way)
            process.send_signal(signal.SIGTERM)

            async def is_stopping() -> bool:
                return (await client.post("/v1/chat/completions", json=CHAT)).status_code == 503

            await until(is_stopping)
            answer = await call
            assert answer.json()["usage"]["completion_tokens"] == 300
        assert await asyncio.wait_for(process.wait(), 15) == 0


@asynccontextmanager
async def _process(redis_url: str, engine_url: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "agentserve", "gateway", "--port", str(port), "--redis", redis_url, "--mqtt", ""]
    process = await asyncio.create_subprocess_exec(*command, "--engine", f"{engine_url},h100", env=dict(os.environ))
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

            async def is_ready() -> bool:
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until(is_ready, 30)
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
