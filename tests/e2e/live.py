"""How the end-to-end tests look at a live cluster: poll a condition, ask an engine directly, run the command line."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
MODEL = "llama-3.1-8b"


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    """Return once the condition holds; fail the test if it does not in time."""
    end_s = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        await asyncio.sleep(0.05)


def scripted(topic: str, tokens: int) -> dict[str, Any]:
    """A chat body whose reply is exactly so many tokens, and the same on every emulator."""
    message = {"role": "user", "content": f"Tell me of {topic}. [[reply tokens={tokens}]]"}
    return {"model": MODEL, "messages": [message], "max_tokens": 4096}


async def told_by_engine(engine_url: str, body: dict[str, Any]) -> str:
    """The reply that one engine gives when nobody interrupts it."""
    async with httpx.AsyncClient(base_url=engine_url, timeout=60) as client:
        answer = await client.post("/v1/chat/completions", json=body)
        return str(answer.json()["choices"][0]["message"]["content"])


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[str]:
    """The text pieces of a streamed chat; an error event in the stream fails the test."""
    request = {**body, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=request, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def agentserve(*args: str, cwd: Path = ROOT, within_s: float = 60.0, **env: str) -> Finished:
    """Run the command line to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agentserve",
        *args,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "160", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())
