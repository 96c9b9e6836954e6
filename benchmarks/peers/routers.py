"""How is each router started in front of engines? Its command, its environment, and when it can be called."""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PathDistribution
from pathlib import Path
from tempfile import TemporaryDirectory

from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.local.redis import RedisServer
from benchmarks.http_load import Sink, listening
from benchmarks.peers.engine import MODEL

ENVIRONMENTS = Path(".venv-peers")
TRACE_SHARE = "0.01"
_READY_S = 180.0


@dataclass(frozen=True, slots=True)
class Router:
    """One that runs. `pid` None: nothing stands between the client and the engine."""

    name: str
    url: str
    pid: int | None = None

    def cpu_s(self) -> float:
        """CPU seconds of it and its children so far."""
        return sum(_cpu_s(pid) for pid in _family(self.pid))

    def memory_bytes(self) -> int:
        """Resident bytes of it and its children now."""
        return sum(_memory_bytes(pid) for pid in _family(self.pid))


def version(name: str) -> str | None:
    """Of an installed peer; None if it is not installed."""
    package = {"dynamo": "ai-dynamo"}.get(name, name).replace("-", "_")
    found = sorted((ENVIRONMENTS / name).glob(f"lib/python*/site-packages/{package}-*.dist-info"))
    return PathDistribution(found[0]).version if found else None


@asynccontextmanager
async def agentserve(engines: Sequence[str]) -> AsyncIterator[Router]:
    """The whole product: scheduling, tracking in Redis, metrics, and spans of a share of the runs."""
    port = free_port()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer(port=0))
        traces = await stack.enter_async_context(listening(Sink()))
        given = {"PORT": str(port), "REDIS_URL": redis.url, "MQTT_URL": "", "LOG_LEVEL": "warning"}
        given |= {"OTLP_ENDPOINT": traces, "TRACE_SHARE": TRACE_SHARE}
        flags = [part for url in engines for part in ("--engine", f"{url},h100,{MODEL}")]
        argv = [sys.executable, "-m", "agentserve", "gateway", *flags]
        env = {f"AGENTSERVE_{name}": value for name, value in given.items()}
        yield await stack.enter_async_context(_running("agentserve", argv, port, "/readyz", env))


@asynccontextmanager
async def vllm_router(engines: Sequence[str]) -> AsyncIterator[Router]:
    """The router of vLLM, a Rust program: round robin."""
    async with _rust("vllm-router", "vllm_router.launch_router", engines, "warning") as router:
        yield router


@asynccontextmanager
async def sglang_router(engines: Sequence[str]) -> AsyncIterator[Router]:
    """The router of SGLang, a Rust program: round robin."""
    async with _rust("sglang-router", "sglang_router.launch_router", engines, "warn") as router:
        yield router


@asynccontextmanager
async def litellm(engines: Sequence[str]) -> AsyncIterator[Router]:
    """LiteLLM's proxy, one worker, without a database."""
    port = free_port()
    with TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        lines = ["model_list:"]
        for url in engines:
            parameters = f"{{model: openai/{MODEL}, api_base: {url}/v1, api_key: none}}"
            lines.append(f"  - {{model_name: {MODEL}, litellm_params: {parameters}}}")
        config.write_text("\n".join(lines) + "\n")
        argv = [_python("litellm"), str(ENVIRONMENTS / "litellm/bin/litellm")]
        argv += ["--config", str(config), "--host", "127.0.0.1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        async with _running("litellm", [*argv, "--port", str(port)], port, "/health/liveliness", env) as router:
            yield router


ROUTERS = {
    "agentserve": agentserve,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
}
"""Those that stand in front of the same bare engines."""


@asynccontextmanager
async def _rust(name: str, module: str, engines: Sequence[str], quiet: str) -> AsyncIterator[Router]:
    port, metrics = free_port(), free_port()
    flags = {
        "host": "127.0.0.1",
        "port": port,
        "prometheus-port": metrics,
        "policy": "round_robin",
        "log-level": quiet,
    }
    argv = [_python(name), "-m", module, *(part for key, value in flags.items() for part in (f"--{key}", str(value)))]
    async with _running(name, [*argv, "--worker-urls", *engines], port, "/health", {}) as router:
        yield router


@asynccontextmanager
async def _running(name: str, argv: Sequence[str], port: int, ready: str, env: dict[str, str]) -> AsyncIterator[Router]:
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*", **env}
    probe = http_ready(f"{url}{ready}")
    async with ChildProcess(name, list(argv), probe=probe, env=environment, ready_timeout_s=_READY_S) as process:
        yield Router(name, url, process.pid)


def _python(name: str) -> str:
    return str(ENVIRONMENTS / name / "bin" / "python")


def _family(pid: int | None) -> list[int]:
    if pid is None:
        return []
    found = [pid]
    for one in found:  # grows while it is walked
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
