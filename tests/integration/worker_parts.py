"""Real brokers, a tiny engine with the answers of vLLM, worker processes and a gateway's registry, for tests."""

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentserve.local.broker import find_broker_command
from agentserve.local.process import ChildProcess, free_port, tcp_ready
from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Announce, Report
from agentserve.workers.follow import follow
from agentserve.workers.kinds import Identity
from agentserve.workers.registry import Registry
from scheduler.events import InstanceSpec

HOST = "127.0.0.1"
MODEL = "llama-3.1-8b"
BROKERS = ["amqtt", *(["mosquitto"] if shutil.which("mosquitto") else [])]
WAIT_S = 20.0

_RUN_BROKER = """
import asyncio, sys
from agentserve.local.broker import BrokerConfig, run_broker
asyncio.run(run_broker(BrokerConfig(**eval(sys.argv[1]))))
"""
_RUN_WORKER = """
import asyncio, logging, sys
from agentserve.workers.agent import run_worker
from agentserve.workers.config import WorkerConfig
logging.basicConfig(level=logging.INFO)
asyncio.run(run_worker(WorkerConfig(**eval(sys.argv[1]))))
"""


async def first_listed(identity: Identity) -> str:
    """The model that a probe is to take."""
    return identity.names[0]


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Poll until it holds; fails after WAIT_S."""
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s, f"never happened: {what or condition}"
        await asyncio.sleep(0.01)


def broker_process(kind: str, port: int, **login: str) -> ChildProcess:
    if kind == "mosquitto":
        command = find_broker_command(port)
    else:
        command = [sys.executable, "-W", "error", "-c", _RUN_BROKER, repr({"port": port, **login})]
    return ChildProcess(f"{kind} broker", command, probe=tcp_ready(HOST, port))


def worker_process(engine_url: str, mqtt_url: str, **options: Any) -> ChildProcess:
    given = {"engine_url": engine_url, "mqtt_url": mqtt_url, "gpu": "h100", "worker_id": "w", **options}
    return ChildProcess("worker", [sys.executable, "-W", "error", "-c", _RUN_WORKER, repr(given)])


@dataclass
class FakeEngine:
    """Answers a worker's questions as vLLM does; what it says can be changed while it runs."""

    port: int = field(default_factory=free_port)
    models: list[str] = field(default_factory=lambda: [MODEL])
    unlisted: tuple[str, ...] = ()
    """Models that it serves and does not list."""
    version: str = "0.32.0"
    health: int = 200
    running: int = 0
    counters: dict[str, float] = field(default_factory=lambda: {"prompt_tokens": 100, "generation_tokens": 50})
    has_metrics: bool = True
    has_priority: bool = True
    has_token_ids: bool = True
    has_kv_transfer: bool = False
    owner: str = "vllm"
    root: str | None = "meta-llama/Llama-3.1-8B-Instruct"
    cache_dtype: str = "auto"
    has_chat: bool = True
    has_tool_parser: bool = True
    reports_cached_tokens: bool = True
    completions: int = 0
    priorities: list[int] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, HOST, self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> "FakeEngine":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.decode().split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = self.answer(method, path, json.loads(body) if body else {})
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def answer(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        if (method, path) == ("POST", "/v1/completions"):
            return self._complete(body)
        if (method, path) == ("POST", "/v1/chat/completions") and self.has_chat:
            return self._complete(body)
        if (method, path) == ("POST", "/tokenize"):
            return 200, b'{"count": 2, "max_model_len": 4096, "tokens": [7, 8]}'
        if (method, path) == ("POST", "/detokenize"):
            return 200, b'{"prompt": "p"}'
        if path == "/health":
            return self.health, b""
        if path == "/v1/models":
            return 200, json.dumps({"data": [self._card(name) for name in self.models]}).encode()
        if path == "/version":
            return 200, json.dumps({"version": self.version}).encode()
        if path == "/metrics" and self.has_metrics:
            return 200, self._metrics().encode()
        return 404, b"{}"

    def _metrics(self) -> str:
        lines = [
            f'vllm:num_requests_running{{engine="0"}} {self.running}',
            'vllm:num_requests_waiting{engine="0"} 0',
            'vllm:kv_cache_usage_perc{engine="0"} 0.25',
            f'vllm:cache_config_info{{block_size="32",cache_dtype="{self.cache_dtype}",num_gpu_blocks="1000"}} 1',
            *(["vllm:nixl_num_kv_expired_reqs_total 0"] if self.has_kv_transfer else []),
        ]
        return "\n".join([*lines, *(f"vllm:{name}_total {value}" for name, value in self.counters.items()), ""])

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "owned_by": self.owner, "root": self.root, "max_model_len": 4096}

    def _complete(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        self.completions += 1
        self.priorities.append(body.get("priority", 0))
        if body["model"] not in (*self.models, *self.unlisted) or (body.get("priority") and not self.has_priority):
            return 400, b'{"error": {}}'
        if body.get("tools") and not self.has_tool_parser:
            return 400, b'{"error": {"message": "\\"auto\\" tool choice requires --enable-auto-tool-choice"}}'
        choice: dict[str, Any] = {"index": 0, "text": "p", "delta": {"content": "p"}, "finish_reason": "length"}
        if "messages" not in body:
            del choice["delta"]
        if body.get("return_token_ids") and self.has_token_ids:
            choice |= {"prompt_token_ids": [7, 8], "token_ids": [9]}
        usage: dict[str, Any] = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        if self.reports_cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": 64 if self.completions > 1 else 0}
        if not body.get("stream"):
            return 200, json.dumps({"choices": [choice], "usage": usage}).encode()
        chunks = [{"choices": [choice]}, {"choices": [], "usage": usage}]
        return 200, b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


class Gateway:
    """A registry that follows a broker; `log` is what it called back, `reports` the last report of each worker.

    `readings`: the last one that brought figures; those between are signs of life.
    """

    def __init__(self, mqtt_url: str, lost_after_s: float = 1.5, secret: str | None = None) -> None:
        self.log: list[tuple[str, str]] = []
        self.specs: dict[str, InstanceSpec] = {}
        self.announced: dict[str, Announce] = {}
        self.reports: dict[str, Report] = {}
        self.readings: dict[str, Report] = {}
        self.bus = Bus(mqtt_url)
        self.registry = Registry(
            "default",
            lost_after_s,
            on_joined=self._joined,
            on_reported=self._reported,
            on_draining=lambda worker_id: self.log.append(("draining", worker_id)),
            on_lost=lambda worker_id, reason: self.log.append(("lost", worker_id)),
            secret=secret,
        )

    def _reported(self, report: Report) -> None:
        self.reports[report.worker_id] = report
        if report.running is not None:
            self.readings[report.worker_id] = report

    def _joined(self, spec: InstanceSpec, announce: Announce) -> None:
        self.specs[spec.instance_id], self.announced[spec.instance_id] = spec, announce
        self.log.append(("joined", spec.instance_id))

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator["Gateway"]:
        task = asyncio.create_task(follow(self.bus, self.registry, time.time))
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def is_silent(self) -> bool:
        """Whether nothing has been heard of `w` for much longer than makes a worker lost."""
        member = self.registry.get("w")
        heard_s = member.last_heard_s if member else None
        return heard_s is not None and time.time() - heard_s > 2 * self.registry.lost_after_s

    async def sees(self, *log: tuple[str, str]) -> None:
        """Wait until the log is exactly this."""
        wanted = list(log)
        await until(lambda: len(self.log) >= len(wanted), f"{wanted}; the log is {self.log}")
        assert self.log == wanted, f"{self.log} is not {wanted}"
