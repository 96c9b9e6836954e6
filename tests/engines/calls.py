"""What does an engine itself answer? Calls straight to it, to compare with what came through the gateway."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.engines.servers import EngineServer, sample


@dataclass(frozen=True)
class Answer:
    """A whole answer; `chunks` are the texts of a stream's parts, `handoff` the KV transfer's parameters if any."""

    ids: tuple[int, ...]
    text: str
    finish: str | None
    handoff: dict[str, Any] | None = None
    chunks: tuple[str, ...] = ()


def client_of(server: EngineServer) -> httpx.AsyncClient:
    """Long timeouts: with both cores busy, a first token can take seconds."""
    return httpx.AsyncClient(base_url=server.url, timeout=120.0, trust_env=False)


async def complete(server: EngineServer, prompt: list[int] | str, max_tokens: int, **extra: Any) -> Answer:
    """A greedy completion in one piece."""
    body = _body(server, prompt, max_tokens) | extra
    async with client_of(server) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.is_success, response.text
    answer = response.json()
    (choice,) = answer["choices"]
    return Answer(tuple(choice["token_ids"]), choice["text"], choice["finish_reason"], answer.get("kv_transfer_params"))


async def stream(server: EngineServer, prompt: list[int] | str, max_tokens: int, **extra: Any) -> Answer:
    """A greedy completion, streamed and put together."""
    ids: list[int] = []
    texts: list[str] = []
    finish = handoff = None
    async for chunk in events(server, "/v1/completions", _body(server, prompt, max_tokens) | extra):
        handoff = chunk.get("kv_transfer_params", handoff)
        for choice in chunk["choices"]:
            ids += choice["token_ids"] or ()
            texts.append(choice["text"])
            finish = choice["finish_reason"] or finish
    return Answer(tuple(ids), "".join(texts), finish, handoff, tuple(texts))


async def events(server: EngineServer, path: str, body: dict[str, Any], *, marks_end: bool = True):
    """The decoded chunks of a streamed call; the end mark must come last, or never from a server that sends none."""
    done = False
    async with client_of(server) as client, client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.is_success, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                assert not done
                payload = line.removeprefix("data: ")
                done = payload == "[DONE]"
                if not done:
                    yield json.loads(payload)
    assert done is marks_end


async def until_metrics(server: EngineServer, holds: Callable[[str], bool], timeout_s: float = 30.0) -> str:
    """The page of metrics on which a condition first holds; vLLM publishes them only now and then."""
    async with asyncio.timeout(timeout_s):
        while not holds(page := await server.metrics()):  # noqa: ASYNC110  # the engine tells nobody when they change
            await asyncio.sleep(0.1)
    return page


def is_idle(page: str) -> bool:
    """Whether nothing runs or waits, by a page of vLLM's metrics."""
    return sample(page, "vllm:num_requests_running") == 0 and sample(page, "vllm:num_requests_waiting") == 0


def _body(server: EngineServer, prompt: list[int] | str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "return_token_ids": True,
    }
