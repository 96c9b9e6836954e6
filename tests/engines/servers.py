"""How are real engines started for the tests, known to serve, killed, and never left behind?

The engines run in an environment of their own (`make engines-env`), the tests in the project's. Every server has its
own process group and writes to `out/engines/NAME-PORT.log`.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from agentserve.errors import Unavailable
from agentserve.local.process import ChildProcess, Probe, free_port

ROOT: Final = Path(__file__).resolve().parents[2]
OUTPUT: Final = ROOT / "out" / "engines"
CACHE: Final = OUTPUT / "cache"
PYTHON: Final = "AGENTSERVE_ENGINES_PYTHON"
MODEL: Final = "tiny"
"""The name under which vLLM and llama.cpp serve the tiny model."""

BLOCK_TOKENS: Final = 32
KV_BLOCKS: Final = 256
ANSWER_TOKENS: Final = 320
"""Most tokens of an answer: vLLM holds calls with a limit of their own to this one, too."""

_HOST: Final = "127.0.0.1"
_READY_S: Final = 480.0
_FIRST_TOKEN_S: Final = 60.0
_GRACE_S: Final = 10.0


@dataclass(frozen=True)
class EngineServer:
    """One real engine: where it listens, what it serves, and the process that it is."""

    kind: str
    url: str
    model: str
    """What a request's `model` must be."""
    dtype: str
    log_path: Path
    process: ChildProcess

    def kill(self) -> None:
        """SIGKILL the server and all of its own processes; it does not come back."""
        os.killpg(self.process.pid, signal.SIGKILL)

    async def metrics(self) -> str:
        """The text of `/metrics` now."""
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            return (await client.get(f"{self.url}/metrics")).raise_for_status().text


def sample(page: str, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples that have these labels, on a page of `/metrics`; None if there is none."""
    found = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith((name + "{", name + " "))
        and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]
    return sum(found) if found else None


def engines_python() -> Path:
    """The Python that has the engines; raises Unavailable, with the command that makes it, if there is none."""
    python = Path(os.environ.get(PYTHON) or ROOT / ".venv-engines" / "bin" / "python")
    if not python.is_file():
        raise Unavailable(f"no engines at {python}: run `make engines-env`, or name a Python that has them in {PYTHON}")
    return python


async def make_model(python: Path, folder: Path) -> None:
    """Have the engines' Python write the tiny model into a folder."""
    await _make(python, "tiny_model.py", folder)


async def make_gguf(python: Path, model_dir: Path, file: Path) -> None:
    """Have the engines' Python write the tiny model, which is in a folder already, into one file for llama.cpp."""
    await _make(python, "tiny_gguf.py", model_dir, file)


async def _make(python: Path, script: str, *paths: Path) -> None:
    maker = await asyncio.create_subprocess_exec(
        python,
        Path(__file__).with_name(script),
        *paths,
        env=_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await maker.communicate()
    if maker.returncode != 0:
        raise Unavailable(f"the tiny model cannot be made:\n{said.decode(errors='replace')}")


def vllm(
    model_dir: Path,
    *,
    python: Path | None = None,
    port: int | None = None,
    dtype: str = "bfloat16",
    nixl: bool = False,
    otlp_endpoint: str | None = None,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
    extra: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> EngineServer:
    """A vLLM server, not yet started. `nixl`: it can be either side of a KV transfer.

    `otlp_endpoint` is a full URL that takes OTLP over HTTP. `extra` arguments and `env` come last, so they win.
    """
    port = free_port() if port is None else port
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir), "--served-model-name", MODEL]
    argv += [
        "--host",
        _HOST,
        "--port",
        str(port),
        "--dtype",
        dtype,
        "--enforce-eager",
        "--scheduling-policy",
        "priority",
    ]
    argv += ["--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(KV_BLOCKS)]
    # Agents set no limit of their own, and the tiny model seldom ends by itself.
    argv += ["--override-generation-config", json.dumps({"max_new_tokens": ANSWER_TOKENS})]
    argv += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if nixl:
        argv += ["--kv-transfer-config", json.dumps(_NIXL)]
    if otlp_endpoint is not None:
        argv += ["--otlp-traces-endpoint", otlp_endpoint]
    if tool_parser is not None:
        argv += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser]
    if reasoning_parser is not None:
        argv += ["--reasoning-parser", reasoning_parser]
    settings = _VLLM_ENVIRONMENT | ({"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())} if nixl else {})
    return _server("vllm", MODEL, dtype, port, python, [*argv, *extra], settings | dict(env or {}))


def transformers_serve(model_dir: Path, *, python: Path | None = None, port: int | None = None) -> EngineServer:
    """A `transformers serve`, not yet started: an OpenAI-compatible server without token ids, priority or metrics.

    It refuses fields it does not know (422), lists only models of the hub's cache, and sends no `[DONE]`.
    """
    port = free_port() if port is None else port
    argv = ["-m", "transformers.cli.transformers", "serve", str(model_dir), "--host", _HOST, "--port", str(port)]
    return _server("transformers", str(model_dir), "float32", port, python, [*argv, "--dtype", "float32"], {})


def llamacpp(
    gguf: Path, *, python: Path | None = None, port: int | None = None, slots: int = 4, context_tokens: int = 4096
) -> EngineServer:
    """llama.cpp's server, not yet started: token ids, metrics and slots, but neither priority nor KV transfer."""
    port = free_port() if port is None else port
    argv = [str(Path(__file__).with_name("serve_llamacpp.py")), str(gguf), MODEL, str(port)]
    return _server("llamacpp", MODEL, "float32", port, python, [*argv, str(slots), str(context_tokens)], {})


@asynccontextmanager
async def running(*servers: EngineServer) -> AsyncIterator[tuple[EngineServer, ...]]:
    """Start servers side by side; all serve when the body begins, and none is left when it ends."""
    try:
        async with asyncio.TaskGroup() as starting:
            for server in servers:
                starting.create_task(server.process.start())
        yield servers
    except* Unavailable as failures:
        logs = ", ".join(str(server.log_path) for server in servers)
        raise Unavailable("\n".join(map(str, failures.exceptions)) + f"\nlogs: {logs}") from None
    finally:
        async with asyncio.TaskGroup() as stopping:
            for server in servers:
                stopping.create_task(server.process.stop())


@asynccontextmanager
async def vllm_server(model_dir: Path, **options: Any) -> AsyncIterator[EngineServer]:
    """One running vLLM; the options are those of `vllm`."""
    async with running(vllm(model_dir, **options)) as (server,):
        yield server


_NIXL: Final = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
    "kv_load_failure_policy": "fail",
}

_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_CACHE": str(CACHE / "hub"),
    "OMP_NUM_THREADS": "1",
    "KMP_BLOCKTIME": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(Path(__file__).with_name("two_cores")),
}

_VLLM_ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CACHE_ROOT": str(CACHE),
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": _HOST,
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}


def _environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    ambient = {
        name: value for name, value in os.environ.items() if not name.startswith(("AGENTSERVE_", "VLLM_", "OTEL_"))
    }
    return ambient | _QUIET | dict(settings or {})


def _server(
    kind: str,
    model: str,
    dtype: str,
    port: int,
    python: Path | None,
    argv: Sequence[str],
    settings: Mapping[str, str],
) -> EngineServer:
    url, log_path = f"http://{_HOST}:{port}", OUTPUT / f"{kind}-{port}.log"
    (CACHE / "hub").mkdir(parents=True, exist_ok=True)  # without it `transformers serve` cannot list its models
    log_path.unlink(missing_ok=True)
    process = ChildProcess(
        f"{kind} on port {port}",
        [str(python or engines_python()), *argv],
        probe=_serves(url, model),
        env=_environment(settings),
        log_path=log_path,
        ready_timeout_s=_READY_S,
        grace_s=_GRACE_S,
    )
    return EngineServer(kind, url, model, dtype, log_path, process)


def _serves(url: str, model: str) -> Probe:
    async def probe() -> bool:
        """Healthy, and it has answered: the first token may take far longer than the next ones."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        try:
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=_FIRST_TOKEN_S) as client:
                if not (await client.get("/health")).is_success:
                    return False
                return (await client.post("/v1/chat/completions", json=body)).is_success
        except httpx.HTTPError:
            return False

    return probe
