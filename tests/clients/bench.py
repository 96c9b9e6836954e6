"""Where do the clients' cases run? A gateway process over an emulated engine and a recording one, in a thread's loop.

Its limits are set low, so that cases can reach them.
"""

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.local.redis import RedisServer
from tests.clients.recorder import Recorder
from tests.integration.gateway_parts import MODEL, serving, until

RECORDED: Final = "qwen3-32b"
"""The model that the recording engine serves; the emulator serves MODEL."""
MAX_BODY_BYTES: Final = 2 * 2**20
MAX_LIVE_CALLS: Final = 8
MAX_MODEL_LEN: Final = 4096
STALL_S: Final = 1.5
WEATHER: Final = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}}}}}  # fmt: skip
"""The tool that the emulator's script calls, with this argument:"""
CITY: Final = "Zürich 🙂"
_READY_S: Final = 60.0
_SCRIPT: Final = [
    {"match": "weather of (.+)\\?", "tool_calls": [{"name": "weather", "arguments": {"city": "$1"}}]},
    {"match": "say unicode", "reply": "é漢🙂 – ملح"},
]


@dataclass(frozen=True, slots=True)
class Bench:
    """What cases need: the gateway's base URL and the recording engine's memory."""

    url: str
    recorder: Recorder

    def live_calls(self) -> int:
        """Calls in flight in the gateway."""
        return int(self.get("/v1/cluster")["live_calls"])

    async def until_idle(self) -> None:
        """Wait until no call is in flight in the gateway or on the recording engine."""
        await until(lambda: self.recorder.running == 0 and self.live_calls() == 0)

    def get(self, path: str) -> Any:
        """The JSON of a route of the gateway."""
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            return client.get(path).json()


@contextmanager
def running_bench() -> Iterator[Bench]:
    """A bench, ready for calls."""
    ready, stop, made = threading.Event(), asyncio.Event(), list[Bench | BaseException]()
    loop = asyncio.new_event_loop()

    def hold() -> None:
        try:
            loop.run_until_complete(_hold(made, ready, stop))
        except BaseException as error:  # noqa: BLE001  # told to the thread that waits for the bench
            made.insert(0, error)
        finally:
            ready.set()

    thread = threading.Thread(target=hold, name="bench")
    thread.start()
    try:
        ready.wait(2 * _READY_S)
        if not made or isinstance(made[0], BaseException):
            raise RuntimeError("the bench did not start") from (made[0] if made else None)
        yield made[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


async def _hold(made: list[Bench | BaseException], ready: threading.Event, stop: asyncio.Event) -> None:
    recorder = Recorder(RECORDED)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.jsonl"
        script.write_bytes(b"\n".join(orjson.dumps(rule) for rule in _SCRIPT))
        config = EmulatorConfig(gpu="h100", model=MODEL, speed=50, script=script, max_model_len=MAX_MODEL_LEN)
        async with RedisServer(port=0) as redis, running(config) as emulated, serving(recorder.app()) as recorded:
            url, gateway = _gateway(redis.url, (f"{emulated},h100", f"{recorded},h100"))
            async with gateway:
                await _until_both_serve(url)
                made.append(Bench(url, recorder))
                ready.set()
                await stop.wait()


def _gateway(redis_url: str, engines: tuple[str, ...]) -> tuple[str, ChildProcess]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = [part for engine in engines for part in ("--engine", engine)]
    env = {
        **os.environ,
        "AGENTSERVE_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        "AGENTSERVE_MAX_LIVE_CALLS": str(MAX_LIVE_CALLS),
        "AGENTSERVE_STALL_TIMEOUT_S": str(STALL_S),
    }

    command = [sys.executable, "-m", "agentserve", "gateway", "--port", str(port), "--redis", redis_url, "--mqtt", ""]
    probe = http_ready(f"{url}/healthz")
    return url, ChildProcess("gateway", [*command, *given], env=env, probe=probe, ready_timeout_s=_READY_S)


async def _until_both_serve(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=_READY_S) as client:

        async def both() -> bool:
            listed = (await client.get("/v1/models")).json()["data"]
            return {one["id"] for one in listed} == {MODEL, RECORDED}

        await until(both, _READY_S)
