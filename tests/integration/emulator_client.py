"""What the emulator's HTTP tests share: an engine with a client, streams read to their end, metrics, waiting."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running

FAST = {"speed": 50.0}


@asynccontextmanager
async def client_of(**settings) -> AsyncIterator[httpx.AsyncClient]:
    config = EmulatorConfig(**(FAST | settings))
    async with running(config) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        yield client


def chat(text: str, **extra) -> dict:
    return {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": text}]} | extra


async def stream(client: httpx.AsyncClient, path: str, body: dict) -> list[dict]:
    """Chunks of a stream, without its end mark, which must come last."""
    chunks = []
    async with client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: ")
                chunks.append(line.removeprefix("data: "))
    assert chunks.pop() == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


async def metric(client: httpx.AsyncClient, name: str) -> float:
    page = (await client.get("/metrics")).text
    values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(name + "{")]
    assert len(values) == 1, f"{name} stands {len(values)} times on the page"
    return float(values[0])


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  # the engine is asked over HTTP, it has no event to wait for
            await asyncio.sleep(0.01)
