"""How does a whole cluster run on one machine? Every part as its own process, started in order, stopped together."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from agentserve.errors import Unauthorized, Unavailable
from agentserve.local.broker import find_broker_command
from agentserve.local.fleet import Fleet, Group
from agentserve.local.process import ChildProcess, free_port, http_ready, port_in_use, tcp_ready
from agentserve.local.redis import RedisServer
from agentserve.sdk.credentials import authorization

HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.05

Said = Callable[[str], None]


class LocalCluster:
    """Redis, broker, emulated engines with a worker agent each, and the gateway; an async context manager.

    `port` 0 picks a free one. `data_dir` keeps runs over restarts. `settings` are AGENTSERVE_* values of the gateway,
    without the prefix. `said` hears one line per part as it comes up. Raises Unavailable naming the part that failed.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        policy: str = "agentserve",
        port: int = 0,
        seed: int = 0,
        script: Path | None = None,
        chaos: bool = False,
        data_dir: Path | None = None,
        log_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        ready_timeout_s: float = 60.0,
        said: Said = lambda line: None,
    ) -> None:
        self.fleet = fleet
        self.policy = policy
        self._port = port
        self._seed = seed
        self._script = script
        self._chaos = chaos
        self._data_dir = data_dir
        self._log_dir = log_dir
        self._settings = dict(settings or {})
        self._ready_timeout_s = ready_timeout_s
        self._said = said
        self._stack = AsyncExitStack()
        self.engine_urls: dict[str, str] = {}
        self.parts: dict[str, ChildProcess] = {}
        """Every process but Redis, by name: `broker`, `gateway`, `engine-<worker>`, `worker-<worker>`."""

    @property
    def gateway_url(self) -> str:
        """Base URL of the gateway."""
        return f"http://{HOST}:{self._port}"

    @property
    def mqtt_url(self) -> str:
        """URL of the cluster's broker."""
        return f"mqtt://{HOST}:{self._broker_port}"

    @property
    def redis_url(self) -> str:
        """URL of the cluster's Redis."""
        return self._redis.url

    @property
    def ends(self) -> Mapping[str, Callable[[], Awaitable[int]]]:
        """What waits for the end of each process, Redis too, and gives its exit code; by name."""
        return {"redis": self._redis.wait, **{name: part.wait for name, part in self.parts.items()}}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def restart_gateway(self, *, kill: bool = False) -> None:
        """Stop the gateway (at once with `kill`, as a crash would) and start it again on the same port."""
        gateway = self.parts["gateway"]
        await (gateway.kill() if kill else gateway.stop())
        await gateway.start()

    async def _start(self) -> None:
        if self._port and port_in_use(HOST, self._port):
            raise Unavailable(f"port {self._port} on {HOST} is in use: choose another one with --port")
        self._port = self._port or free_port()
        if self._log_dir is None:
            self._log_dir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="agentserve-logs-")))
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._redis = RedisServer(data_dir=self._data_dir, log_path=self._log_dir / "redis.log")
        self._broker_port = free_port()
        self.parts["broker"] = self._child(
            "broker", find_broker_command(self._broker_port), tcp_ready(HOST, self._broker_port)
        )
        await _together(self._start_redis(), self._start_part("broker"))
        self._plan_engines()
        self.parts["gateway"] = self._gateway()
        await _together(*(self._start_part(name) for name in self.parts if name != "broker"))
        await self._all_joined()
        self._said(f"gateway at {self.gateway_url} with policy {self.policy}")

    async def _start_redis(self) -> None:
        await self._redis.start()
        self._said(f"Redis at {self._redis.url}")

    async def _start_part(self, name: str) -> None:
        await self.parts[name].start()
        self._said(f"{name} is up")

    def _plan_engines(self) -> None:
        for name, group in self.fleet.named():
            port = free_port()
            url = f"http://{HOST}:{port}"
            self.engine_urls[name] = url
            engine = f"engine-{name}"
            self.parts[engine] = self._child(
                engine, _agentserve("emulator", *self._emulator_flags(group, port)), http_ready(f"{url}/health")
            )
            worker = f"worker-{name}"
            self.parts[worker] = self._child(worker, _agentserve("worker", *self._worker_flags(name, group, url)), None)

    def _emulator_flags(self, group: Group, port: int) -> list[str]:
        flags: dict[str, Any] = {
            "port": port,
            "gpu": group.gpu,
            "model": self.fleet.model,
            "role": group.role.value,
            "speed": self.fleet.speed,
            "stream-interval": self.fleet.stream_interval,
            "max-num-seqs": group.max_num_seqs,
            "max-batched-tokens": group.max_batched_tokens,
            "kv-capacity-tokens": group.kv_capacity_tokens,
            "kv-link-bytes-per-s": group.kv_link_bytes_per_s,
            "scheduling-policy": "priority",
            "seed": self._seed,
            "script": self._script,
        }
        return [*_flags(flags), *self._profile_flags(), *(["--chaos"] if self._chaos else [])]

    def _worker_flags(self, name: str, group: Group, url: str) -> list[str]:
        flags: dict[str, Any] = {
            "id": name,
            "engine": url,
            "gpu": group.gpu,
            "model": self.fleet.model,
            "role": group.role.value,
            "speed": self.fleet.speed,
            "max-num-seqs": group.max_num_seqs,
            "max-batched-tokens": group.max_batched_tokens,
            "kv-capacity-tokens": group.kv_capacity_tokens,
            "kv-link-bytes-per-s": group.kv_link_bytes_per_s,
        }
        return [*_flags(flags), *self._profile_flags()]

    def _profile_flags(self) -> list[str]:
        return [part for path in self.fleet.profiles for part in ("--profiles", str(path.absolute()))]

    def _gateway(self) -> ChildProcess:
        return self._child(
            "gateway",
            _agentserve("gateway", "--port", str(self._port), "--policy", self.policy, *self._profile_flags()),
            http_ready(f"{self.gateway_url}/healthz"),
            self._settings,
        )

    def _child(self, name: str, argv: list[str], probe: Any, settings: Mapping[str, str] | None = None) -> ChildProcess:
        assert self._log_dir is not None  # noqa: S101  # for the type checker: _start has set it
        given = {"MQTT_URL": self.mqtt_url, **(settings or {})}
        if name == "gateway":
            given["REDIS_URL"] = self._redis.url
        env = {**os.environ, **{f"AGENTSERVE_{key}": value for key, value in given.items()}}
        return ChildProcess(
            name,
            argv,
            probe=probe,
            env=env,
            log_path=self._log_dir / f"{name}.log",
            ready_timeout_s=self._ready_timeout_s,
        )

    async def _all_joined(self) -> None:
        """Wait until every worker of the fleet is a candidate."""
        wanted = {name for name, _ in self.fleet.named()}
        joined: set[str] = set()
        async with httpx.AsyncClient(trust_env=False, timeout=5.0, headers=authorization()) as client:
            try:
                async with asyncio.timeout(self._ready_timeout_s):
                    while not wanted <= joined:
                        self._ended()
                        await asyncio.sleep(_POLL_S)
                        answer = await client.get(f"{self.gateway_url}/v1/cluster")
                        if answer.status_code == httpx.codes.UNAUTHORIZED:
                            raise Unauthorized(
                                "AGENTSERVE_TENANTS_FILE is set: set AGENTSERVE_API_KEY to one of its keys"
                            )
                        joined = {str(instance["instance_id"]) for instance in answer.json()["instances"]}
            except (TimeoutError, httpx.HTTPError):
                missing = ", ".join(sorted(wanted - joined))
                raise Unavailable(f"workers that did not join within {self._ready_timeout_s:g} s: {missing}") from None

    def _ended(self) -> None:
        for name, part in self.parts.items():
            if not part.running:
                raise Unavailable(f"{name} ended with exit code {part.returncode}; its last output:\n{part.output()}")

    async def _stop(self) -> None:
        late = [part for name, part in self.parts.items() if name != "broker"]
        await asyncio.gather(*(part.stop() for part in late if part.returncode is None))
        if "broker" in self.parts:
            await self.parts["broker"].stop()
        if hasattr(self, "_redis"):
            await self._redis.stop()
        await self._stack.aclose()


async def _together(*starts: Any) -> None:
    """Run them side by side; the first failure stops the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except* Unavailable as failures:
        raise failures.exceptions[0] from None


def _agentserve(command: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "agentserve", command, *flags]


def _flags(values: Mapping[str, Any]) -> list[str]:
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
