"""A gateway with emulated engines and a real Redis-protocol server, all in one event loop, for the gateway's tests."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from opentelemetry.sdk.trace import SpanProcessor

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.gateway.app import create_app
from agentserve.gateway.fleet import Fleet
from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.local.redis import RedisServer
from agentserve.orchestrator import Orchestrator
from agentserve.orchestrator.eventlog import EventLog
from agentserve.settings import Settings
from agentserve.telemetry.messages import Announce
from agentserve.telemetry.metrics import MetricSink
from agentserve.telemetry.metrics_page import MetricsPage
from agentserve.telemetry.mode_figures import ModeCounts
from agentserve.telemetry.open_runs import OpenRuns
from agentserve.telemetry.tracing import SpanSink
from agentserve.tenants.book import TenantBook
from agentserve.tracker.redis import RedisStore
from agentserve.tracker.sink import StoreSink
from scheduler import decisions, events
from scheduler.core import make_scheduler

MODEL = "llama-3.1-8b"


class ForcedScheduler:
    """Places every call on the first instance and moves it where and when the test says.

    `moves[i]`: once the call has emitted so many tokens, it moves for the i-th time, to the next instance in turn.
    `split`: prefill on the first instance, decode on the second.
    """

    policy_name = "forced"

    def __init__(self, moves: tuple[int, ...] = (), *, split: bool = False) -> None:
        self.moves = moves
        self.split = split
        self.first = 0
        self.live: list[str] = []
        self.at: dict[str, str] = {}
        self.moved: dict[str, int] = {}
        self.seen: list[events.Event] = []

    def handle(self, event: events.Event, now_s: float) -> list[decisions.Decision]:
        self.seen.append(event)
        match event:
            case events.InstanceJoined():
                if event.instance.instance_id not in self.live:
                    self.live.append(event.instance.instance_id)
            case events.InstanceLost():
                self.live.remove(event.instance_id)
            case events.RequestArrived():
                return [self._dispatch(event.event_id, event.request_id, 1, self.live[self.first])]
            case events.RequestFailed() if event.retryable:
                others = [name for name in self.live if name != event.instance_id]
                return [self._dispatch(event.event_id, event.request_id, 2, others[0])]
            case events.RequestFailed():
                return [self._reject(event)]
            case events.FirstToken() | events.Progress():
                tokens = event.output_tokens if isinstance(event, events.Progress) else 1
                return self._move(event.event_id, event.request_id, tokens)
        return []

    def snapshot(self) -> dict[str, Any]:
        return {"instances": [{"instance_id": name} for name in self.live]}

    def _move(self, cause: str, request_id: str, tokens: int) -> list[decisions.Decision]:
        done = self.moved.get(request_id, 0)
        if done >= len(self.moves) or tokens < self.moves[done]:
            return []
        self.moved[request_id] = done + 1
        source = self.at[request_id]
        target = self.live[(self.live.index(source) + 1) % len(self.live)]
        self.at[request_id] = target
        return [
            decisions.Migrate(
                cause_id=cause,
                request_id=request_id,
                attempt=done + 2,
                source=source,
                target=target,
                priority=0,
                cause=decisions.MigrationCause.LATE,
                predicted_gain_s=1.0,
                predicted_cost_s=0.1,
                reason=_REASON,
            )
        ]

    def _dispatch(self, cause: str, request_id: str, attempt: int, name: str) -> decisions.Decision:
        decode = self.live[1] if self.split and attempt == 1 else name
        self.at[request_id] = decode
        return decisions.Dispatch(
            cause_id=cause,
            request_id=request_id,
            attempt=attempt,
            prefill_instance=name,
            decode_instance=decode,
            priority=0,
            reason=_REASON,
        )

    def _reject(self, event: events.RequestFailed) -> decisions.Decision:
        return decisions.Reject(
            cause_id=event.event_id,
            request_id=event.request_id,
            refusal=decisions.Refusal.NOT_RETRYABLE,
            message=event.error,
            reason=_REASON,
        )


_REASON = decisions.Explanation(policy="forced", rule="the test says so")


@dataclass
class Gateway:
    """A running gateway, and the means to look into it and to break it."""

    client: httpx.AsyncClient
    orchestrator: Orchestrator
    app: Any
    store: RedisStore
    redis: RedisServer
    urls: list[str]

    async def chat(self, text: str, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        """A chat call of one user message."""
        content = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
        return await self.client.post("/v1/chat/completions", json=content, headers=headers)

    async def engine_load(self, index: int) -> float:
        """Requests running or waiting on an engine."""
        text = (await self.client.get(f"{self.urls[index]}/metrics")).text
        wanted = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(wanted))


@asynccontextmanager
async def gateway(
    *engines: EmulatorConfig,
    scheduler: Any = None,
    policy: str = "round_robin",
    redis: RedisServer | None = None,
    urls: list[str] | None = None,
    log: EventLog | None = None,
    announce: Callable[[str, str], Announce] | None = None,
    span_processor: SpanProcessor | None = None,
    tenants: TenantBook | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A gateway in front of `engines` (or those that listen at `urls` already), ready for calls.

    `announce(worker_id, url)` tells what the engines are; without it, what the emulator is.
    """
    async with AsyncExitStack() as stack:
        server = redis or await stack.enter_async_context(RedisServer())
        configured = Settings(redis_url=server.url, mqtt_url=None, policy=policy, **settings)
        addresses = list(urls or ())
        addresses.extend([await stack.enter_async_context(running(config)) for config in engines])
        store = await RedisStore.connect(configured)
        stack.push_async_callback(store.close)
        sink = await stack.enter_async_context(StoreSink(store))
        spans, open_runs, metrics = SpanSink(span_processor), OpenRuns(), MetricSink()
        mode_counts = ModeCounts()
        core = scheduler or make_scheduler(policy)
        sinks = (sink, open_runs, spans, metrics, mode_counts)
        orchestrator = Orchestrator(core, configured, sinks=sinks, event_log=log, traceparent=spans.traceparent)
        fleet = Fleet(configured, orchestrator)
        app = create_app(
            configured,
            store=store,
            orchestrator=orchestrator,
            render_metrics=MetricsPage(metrics.registry).render,
            restore=spans.restore,
            blame=open_runs.blame,
            foresee=open_runs.foresee,
            mode_counts=mode_counts,
            on_mode=metrics.in_mode,
            background=(fleet.run,),
            tenants=tenants,
            on_refused=metrics.refused,
        )
        url = await stack.enter_async_context(serving(app))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, trust_env=False))
        made = Gateway(client, orchestrator, app, store, server, addresses)
        for i, address in enumerate(addresses):
            fleet.registry.add_static((announce or announcement)(f"e{i}", address), time.time())
        yield made


def announcement(worker_id: str, url: str) -> Announce:
    """What a worker would find out about an emulated engine."""
    return Announce(
        worker_id=worker_id,
        boot_id="b",
        engine_url=url,
        engine="vllm",
        model=MODEL,
        gpu="h100",
        kv_capacity_tokens=400_000,
        block_tokens=16,
        max_num_seqs=256,
        max_batched_tokens=8192,
        kv_bytes_per_token=131_072,
        kv_link_bytes_per_s=50e9,
        supports_replay=True,
    )


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        listener.setblocking(False)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
        )
        server.capture_signals = _no_signals  # type: ignore[method-assign]  # the test process keeps its handlers
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started or task.done())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@dataclass
class Engine:
    """An emulated engine in a process of its own, which can be killed."""

    url: str
    kill: Callable[[], Awaitable[None]]


@asynccontextmanager
async def engine_process(config: EmulatorConfig) -> AsyncIterator[Engine]:
    """Run an emulated engine as `agentserve emulator` does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "agentserve", "emulator", "--gpu", config.gpu, "--speed", str(config.speed)]
    child = ChildProcess("engine", [*command, "--port", str(port)], probe=http_ready(f"{url}/health"))
    await child.start()
    try:
        yield Engine(url, child.kill)
    finally:
        await child.stop()


async def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    """Wait until `condition()`, which may be a coroutine function, is true."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.01)


def chunks(text: str) -> list[dict[str, Any]]:
    """The JSON of every event of a stream, without the end mark, which must be there."""
    events_ = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert events_[-1] == "[DONE]"
    return [json.loads(event) for event in events_[:-1]]


def said(parts: list[dict[str, Any]]) -> str:
    """The text of a chat stream."""
    return "".join(c["delta"].get("content") or "" for part in parts for c in part["choices"])


class _no_signals:  # noqa: N801  # stands in for a method
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None
