"""How does a contract test run a server of its own over real HTTP, and see what reached it?"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette

from agentserve.engines.adapter import Delta, EngineAdapter, EngineCall
from agentserve.orchestrator.request import CallRequest, migration_refusal
from agentserve.orchestrator.stream import JoinedStream

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Seen:
    """What a server got, in order, and which of its calls the client left."""

    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def body(self, path: str) -> dict[str, Any]:
        return [body for at, body in self.requests if at == path][-1]

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited lives in a server, which knows of no event
            await asyncio.sleep(0.002)


def call(path: str, body: dict[str, Any], **how: Any) -> EngineCall:
    return EngineCall(path=path, body={"model": "m"} | body, request_id=how.pop("request_id", "call-1"), **how)


async def deltas(adapter: EngineAdapter, one: EngineCall) -> list[Delta]:
    return [delta async for delta in adapter.stream(one)]


def joined(path: str, body: dict[str, Any]) -> JoinedStream:
    body = {"model": "m"} | body
    names = dict.fromkeys(("request_id", "run_id", "step_id", "workflow", "node"), "x")
    return JoinedStream(CallRequest(path=path, body=body, model="m", **names), migration_refusal(path, body))


async def play(
    adapter: EngineAdapter, stream: JoinedStream, one: EngineCall, leave_after: int | None = None
) -> tuple[str, bool]:
    """The text that a client gets of one attempt, and whether the attempt was left after so many deltas."""
    text = ""
    attempt = adapter.stream(one)
    count = 0
    async for delta in attempt:
        piece = stream.feed(delta)
        text += piece.text if piece is not None else ""
        count += 1
        if count == leave_after and stream.finish_reason is None:
            await attempt.aclose()
            return text, True
    return text, False


async def cut_and_go_on(
    first: EngineAdapter, second: EngineAdapter, path: str, body: dict[str, Any], leave_after: int
) -> tuple[str, JoinedStream]:
    """What a client gets whose call is moved after so many deltas, as the gateway moves it."""
    stream = joined(path, body)
    text, was_left = await play(first, stream, call(path, body), leave_after)
    if not was_left:
        return text, stream
    assert stream.can_go_on, stream.refusal
    stream.cut()
    while (ids := stream.doubtful_ids) is not None:
        decoded = await first.detokenize("m", ids)
        assert decoded is not None
        if stream.judge(decoded):
            break
    replay = call(path, body, replay_ids=stream.replay_ids, max_tokens=stream.max_tokens_left, request_id="call-2")
    rest, _ = await play(second, stream, replay)
    return text + rest, stream
