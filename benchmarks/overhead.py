"""What does it cost to watch the gateway? Throughput, latency and CPU with tracing, metrics and page on, against off.

    python -m benchmarks.overhead [--json] [--rounds 10] [--runs 60] [--clients 8] [--speed 30] [--seed 0]

Three gateways stand before the same emulated engines. One is the whole product: every run's spans go to an OTLP
endpoint, its metrics are scraped once a second, and a page listens to its live stream where it has one. Another is the
same with AGENTSERVE_TRACE_SHARE=0.1: of runs that end in time the spans of a tenth are sent. The third is
`benchmarks/bare_gateway.py`: no spans, no metrics, nobody who listens. All keep their journal in the same Redis.

A round is the same load on each, one after the other, in turns which is first. A load is `--runs` turns of the bundled
coding-agent sessions (streamed, a chunk per token, an SLO; answers as long as they were, prompts a twentieth, at most
four calls of a turn), `--clients` at a time, and a tenth as many one at a time. Every round gives a ratio on / off;
their median is the figure, and the medians of the lower and of the upper half its spread.
A ratio compares what lies seconds apart, so a machine that others use too swings it less than it swings the figures.

Throughput is calls per second of the busy part; latency is the median time of a call from its first to its last byte,
in the busy part and in the part of lone calls; CPU is what the gateway's process used for a call, with the export that
follows. Sink, scraper, page, engines and load share the machine with the gateway, as nothing does in production.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentserve.lab.plans import RunPlan
from agentserve.lab.workloads import BUNDLED_SESSIONS, WorkloadOptions, load_workload
from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.local.redis import RedisServer
from benchmarks.http_load import Connection, Sink, listening
from benchmarks.tracker import machine

MODEL = "llama-3.1-8b"
GPUS = ("h100", "h100")
PROMPT_SCALE = 0.05
MAX_CALLS = 4
MAX_OUTPUT_TOKENS = 2048
TOKENS_PER_WORD = 2
SLO_S = 120.0
SHARES = (1.0, 0.1)
SETTLE_S = 1.5
"""Spans are exported every second: what a load left behind is sent before the next one begins."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one load on one gateway."""

    calls_per_s: float
    busy_p50_s: float
    lone_p50_s: float
    cpu_per_call_s: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """On / off of one figure over all rounds."""

    share: float
    """Of the runs in time whose spans are sent."""
    what: str
    median: float
    low: float
    high: float
    off: float
    on: float


@dataclass(slots=True)
class Gateway:
    """One of the two, and what watches it while it has load."""

    url: str
    process: ChildProcess
    watchers: tuple[Callable[[str], "contextlib.AbstractAsyncContextManager[None]"], ...] = ()

    def cpu_s(self) -> float:
        """CPU seconds of its process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(options: argparse.Namespace) -> tuple[list[dict[float | None, Figures]], dict[str, object]]:
    """Every round's figures by share of traced runs (None: off), after one that only warms up; what watchers got."""
    rounds: list[dict[float | None, Figures]] = []
    async with AsyncExitStack() as stack:
        sink = Sink()
        engines = [await stack.enter_async_context(engine(gpu, options.speed)) for gpu in GPUS]
        redis = await stack.enter_async_context(RedisServer(port=0))
        traces = await stack.enter_async_context(listening(sink))
        off = await stack.enter_async_context(gateway("off", "benchmarks.bare_gateway", engines, redis.url))
        gateways: dict[float | None, Gateway] = {None: off}
        has_page = False
        for share in SHARES:
            settings = {"OTLP_ENDPOINT": traces, "TRACE_SHARE": str(share)}
            on = await stack.enter_async_context(gateway(f"on-{share}", "agentserve", engines, redis.url, **settings))
            has_page = await answers(on.url, "/v1/live")
            on.watchers = (scraping, *((listening_to_page,) if has_page else ()))
            gateways[share] = on
        for number in range(options.rounds + 1):
            first = number % len(gateways)
            turns = [*gateways.items()][first:] + [*gateways.items()][:first]
            figures = {share: await load(one, options, number) for share, one in turns}
            if number:
                rounds.append(figures)
        if not sink.requests:
            raise SystemExit("no spans came: nothing was measured")
    return rounds, {"exports": sink.requests, "exported_bytes": sink.received_bytes, "live_page": has_page}


async def load(one: Gateway, options: argparse.Namespace, number: int) -> Figures:
    """The same runs for both gateways in round `number`."""
    dice = random.Random(f"{options.seed}-{number}")
    lone = max(2, options.runs // 10)
    plans = [plan(turn, dice) for turn in turns(options.runs + lone, f"{options.seed}-{number}")]
    async with AsyncExitStack() as watching:
        for watcher in one.watchers:
            await watching.enter_async_context(watcher(one.url))
        cpu_s, began_s = one.cpu_s(), time.perf_counter()
        busy_s = await play(one.url, plans[lone:], options.clients, f"{number}-busy")
        elapsed_s = time.perf_counter() - began_s
        lone_s = await play(one.url, plans[:lone], 1, f"{number}-lone")
    await asyncio.sleep(SETTLE_S)
    return Figures(
        calls_per_s=len(busy_s) / elapsed_s,
        busy_p50_s=statistics.median(busy_s),
        lone_p50_s=statistics.median(lone_s),
        cpu_per_call_s=(one.cpu_s() - cpu_s) / (len(busy_s) + len(lone_s)),
    )


def plan(turn: RunPlan, dice: random.Random) -> list[bytes]:
    """The bodies of a turn's calls: answers as long as they were, prompts a twentieth, each going on from the last."""
    words: list[str] = []
    bodies = []
    for step in turn.steps:
        words.extend(str(dice.randrange(10_000)) for _ in range(step.prompt_tokens // TOKENS_PER_WORD - len(words)))
        content = f"{' '.join(words)} [[reply tokens={min(MAX_OUTPUT_TOKENS, step.output_tokens)}]]"
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": content}]}
        bodies.append(json.dumps(body).encode())
    return bodies


async def play(url: str, plans: Sequence[list[bytes]], clients: int, name: str) -> list[float]:
    """Every run, `clients` at a time; how long each call took."""
    took_s: list[float] = []
    waiting = list(enumerate(plans))

    async def client() -> None:
        async with Connection.to(url) as connection:
            while waiting:
                number, bodies = waiting.pop()
                took_s.extend(await play_run(connection, f"run-{name}-{number}", bodies))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    return took_s


async def play_run(connection: Connection, run_id: str, bodies: Sequence[bytes]) -> list[float]:
    """Its calls one after the other, then its end; how long each call took."""
    took_s, before = [], ""
    for number, body in enumerate(bodies):
        name = f"turn.{number}"
        step = {"node": "turn", "step-id": name, "slo-s": str(SLO_S), "workflow": "overhead", "parent-steps": before}
        headers = {f"x-agentserve-{key}": value for key, value in {"run-id": run_id, **step}.items() if value}
        began_s = time.perf_counter()
        await connection.ask("POST", "/v1/chat/completions", body, headers)
        took_s.append(time.perf_counter() - began_s)
        before = name
    await connection.ask("POST", f"/v1/runs/{run_id}/finish", b'{"status": "succeeded"}')
    return took_s


def turns(count: int, seed: str) -> Sequence[RunPlan]:
    """Some of the recorded turns."""
    options = WorkloadOptions(
        prompt_scale=PROMPT_SCALE, max_steps=MAX_CALLS, limit=count, seed=random.Random(seed).randrange(2**31)
    )
    return load_workload(BUNDLED_SESSIONS, options).plans


async def answers(url: str, path: str) -> bool:
    """Whether the gateway has this stream."""
    async with Connection.to(url) as connection:
        return await connection.begin("GET", path) == 200


@asynccontextmanager
async def scraping(url: str) -> AsyncIterator[None]:
    """Reads the page of metrics once a second."""

    async def scrape() -> None:
        async with Connection.to(url) as connection:
            while True:
                await connection.ask("GET", "/metrics")
                await asyncio.sleep(1.0)

    async with beside(scrape()):
        yield


@asynccontextmanager
async def listening_to_page(url: str) -> AsyncIterator[None]:
    """Holds the stream open that a live page reads."""

    async def listen() -> None:
        async with Connection.to(url) as connection:
            await connection.ask("GET", "/v1/live")

    async with beside(listen()):
        yield


@asynccontextmanager
async def beside(work: object) -> AsyncIterator[None]:
    """Run a coroutine until the block ends; if it fails, so does the block."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)  # type: ignore[arg-type]
        yield
        task.cancel()


@asynccontextmanager
async def engine(gpu: str, speed: float) -> AsyncIterator[str]:
    """An emulated engine in a process of its own; as `--engine` names it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = {"port": port, "gpu": gpu, "model": MODEL, "speed": speed, "scheduling-policy": "priority"}
    argv = [sys.executable, "-m", "agentserve", "emulator", *(f"--{name}={value}" for name, value in flags.items())]
    async with ChildProcess(f"engine {url}", argv, probe=http_ready(f"{url}/health"), ready_timeout_s=60.0):
        yield f"{url},{gpu},{MODEL}"


@asynccontextmanager
async def gateway(
    name: str, module: str, engines: Sequence[str], redis_url: str, **settings: str
) -> AsyncIterator[Gateway]:
    """A gateway on these engines, without a broker, once it can serve."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = {"PORT": str(port), "REDIS_URL": redis_url, "MQTT_URL": "", "CLUSTER": name, "LOG_LEVEL": "warning"}
    env = {**os.environ, **{f"AGENTSERVE_{key}": value for key, value in {**given, **settings}.items()}}
    flags = [part for one in engines for part in ("--engine", one)]
    argv = [sys.executable, "-m", module, *(["gateway", *flags] if module == "agentserve" else engines)]
    probe = http_ready(f"{url}/readyz")
    async with ChildProcess(f"gateway {name}", argv, probe=probe, env=env, ready_timeout_s=60.0) as process:
        yield Gateway(urlsplit(url).geturl(), process)


def ratios(rounds: Sequence[dict[float | None, Figures]]) -> list[Ratio]:
    """Each figure's ratio on / off: its median, and the medians of the lower and the upper half."""
    named = {
        "throughput": "calls_per_s",
        "p50 latency, busy": "busy_p50_s",
        "p50 latency, lone calls": "lone_p50_s",
        "gateway CPU per call": "cpu_per_call_s",
    }
    return [
        _ratio(share, what, [(getattr(one[None], name), getattr(one[share], name)) for one in rounds])
        for share in SHARES
        for what, name in named.items()
    ]


def _ratio(share: float, what: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    found = sorted(on / off for off, on in pairs)
    half = (len(found) + 1) // 2
    return Ratio(
        share,
        what,
        statistics.median(found),
        statistics.median(found[:half]),
        statistics.median(found[-half:]),
        statistics.median(off for off, _ in pairs),
        statistics.median(on for _, on in pairs),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=60, help="runs of a round, for each gateway")
    parser.add_argument("--clients", type=int, default=8, help="runs at a time")
    parser.add_argument("--speed", type=float, default=30.0, help="how much faster the engines are than an H100")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rounds, watched = asyncio.run(measure(options))
    told = {
        "benchmark": "overhead",
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.overhead", *sys.argv[1:]]),
        "seed": options.seed,
        **watched,
    }
    found = ratios(rounds)
    if options.json:
        print(json.dumps(told | {"ratios": [asdict(one) for one in found]}, indent=2))
        return
    print("\n".join(f"{name}: {value}" for name, value in told.items()))
    print(f"\n{'':26}{'traced':>8}{'on / off':>9}{'halves':>15}{'off':>11}{'on':>11}")
    for one in found:
        print(
            f"{one.what:26}{one.share:8.0%}{one.median:9.3f}{one.low:8.3f}–{one.high:.3f}{one.off:11.4f}{one.on:11.4f}"
        )


if __name__ == "__main__":
    main()
