"""What do agentserve and its peers add to a call? Requests and chunks per second, time to tokens, CPU and memory.

    python -m benchmarks.peers [--routers NAME,…] [--rounds 3] [--seconds 5] [--out benchmarks/results/peers.json]

`make bench-peers` installs the peers first, each in an environment of its own. All routers run all the time, in front
of the same two bare engines (`engine.py`); one at a time has load, from one lean client (`load.py`). In every round
each router, and an engine without any router (`direct`), gets every load, in an order that turns with the rounds:

- burst: streams of 64 chunks that an engine writes at once, at 1, 32 and 256 at a time: requests/s, chunks/s, CPU;
- paced: the same streams, a chunk every 10 ms, at 1 and 32 at a time: what the router adds to the time to the first
  token and to the time between tokens: its quantile less that of `direct` in the same round.

Ratios are of what was measured in one round; shown are their median and their range over the rounds. agentserve
schedules, tracks every run in Redis, counts its metrics and sends the spans of 1 % of the runs; peers do round robin.
Client, engines and router share the machine.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from agentserve.local.process import ChildProcess, free_port, http_ready
from benchmarks.peers import load
from benchmarks.peers.engine import MODEL
from benchmarks.peers.routers import ROUTERS, Router, version
from benchmarks.tracker import machine

CHUNKS = 64
GAP_S = 0.01
BURST = {1: 200, 32: 1500, 256: 1500}
"""Calls at most, by how many at a time."""
PACED = {1: 8, 32: 96}
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one load on one router in one round; of what a load does not tell, None."""

    router: str
    round: int
    load: str
    concurrency: int
    calls: int
    requests_per_s: float
    chunks_per_s: float
    cpu_ms_per_call: float
    memory_bytes: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None


async def measure(options: argparse.Namespace) -> list[Figures]:
    """Every load on every router, in every round."""
    found: list[Figures] = []
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine()) for _ in range(2)]
        started = [await stack.enter_async_context(ROUTERS[name](engines)) for name in options.routers]
        routers = [Router(DIRECT, engines[0]), *started]
        for router in routers:
            await play(router, 8, 64, 0.0, options.seconds)
        for number in range(options.rounds):
            turn = number % len(routers)
            for router in (*routers[turn:], *routers[:turn]):
                for figures in await one_round(router, number, options.seconds):
                    found.append(figures)
                    say(figures)
    return found


async def one_round(router: Router, number: int, seconds: float) -> list[Figures]:
    """All loads on one router."""
    found = []
    for kind, sizes, gap_s in (("burst", BURST, 0.0), ("paced", PACED, GAP_S)):
        for concurrency, calls in sizes.items():
            cpu_s = router.cpu_s()
            timings = await play(router, concurrency, calls, gap_s, seconds)
            found.append(figures_of(router, number, kind, concurrency, timings, router.cpu_s() - cpu_s))
    return found


async def play(router: Router, concurrency: int, calls: int, gap_s: float, seconds: float) -> load.Timings:
    """One load."""
    one = load.request(router.url, MODEL, CHUNKS, gap_s)
    return await load.play(router.url, one, concurrency=concurrency, calls=calls, gap_s=gap_s, seconds=seconds)


def figures_of(
    router: Router, number: int, kind: str, concurrency: int, timings: load.Timings, cpu_s: float
) -> Figures:
    """What a load told."""
    return Figures(
        router=router.name,
        round=number,
        load=kind,
        concurrency=concurrency,
        calls=timings.calls,
        requests_per_s=round(timings.calls / timings.elapsed_s, 2),
        chunks_per_s=round(timings.chunks / timings.elapsed_s, 1),
        cpu_ms_per_call=round(1e3 * cpu_s / timings.calls, 3),
        memory_bytes=router.memory_bytes(),
        ttft_p50_ms=quantile_ms(timings.ttft_s, 0.5),
        ttft_p99_ms=quantile_ms(timings.ttft_s, 0.99),
        gap_p50_ms=quantile_ms(timings.gaps_s, 0.5),
        gap_p99_ms=quantile_ms(timings.gaps_s, 0.99),
    )


def quantile_ms(values: Sequence[float], q: float) -> float | None:
    """The nearest value from below, in milliseconds; None of nothing."""
    return round(1e3 * sorted(values)[int(q * (len(values) - 1))], 3) if values else None


def say(figures: Figures) -> None:
    """One line, as it comes."""
    print(
        f"round {figures.round}  {figures.router:14} {figures.load:6}{figures.concurrency:4} at a time "
        f"{figures.requests_per_s:9.1f} req/s {figures.cpu_ms_per_call:9.3f} ms CPU/call  "
        f"TTFT {figures.ttft_p50_ms} / {figures.ttft_p99_ms} ms  gap {figures.gap_p50_ms} / {figures.gap_p99_ms} ms",
        flush=True,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


def compare(found: Sequence[Figures]) -> dict[str, dict[str, dict[str, float]]]:
    """By what is compared and by router: agentserve's requests/s as a multiple of the peer's, and what each adds."""
    at = {(one.router, one.round, one.load, one.concurrency): one for one in found}
    names = list(dict.fromkeys(one.router for one in found))
    rounds = sorted({one.round for one in found})
    told: dict[str, dict[str, dict[str, float]]] = {}
    for concurrency in BURST:
        told[f"agentserve / it, requests/s, {concurrency} at a time"] = {
            name: spread(
                [
                    at["agentserve", n, "burst", concurrency].requests_per_s
                    / at[name, n, "burst", concurrency].requests_per_s
                    for n in rounds
                ]
            )
            for name in names
            if name != "agentserve" and "agentserve" in names
        }
        told[f"CPU ms per call, {concurrency} at a time"] = {
            name: spread([at[name, n, "burst", concurrency].cpu_ms_per_call for n in rounds])
            for name in names
            if name != DIRECT
        }
    for concurrency in PACED:
        for what in ("ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms", "gap_p99_ms"):
            told[f"added {what}, {concurrency} at a time"] = {
                name: spread([added(at, name, n, concurrency, what) for n in rounds])
                for name in names
                if name != DIRECT
            }
    told["resident MiB"] = {
        name: spread([one.memory_bytes / 2**20 for one in found if one.router == name])
        for name in names
        if name != DIRECT
    }
    return told


def added(at: dict[tuple[str, int, str, int], Figures], name: str, number: int, concurrency: int, what: str) -> float:
    """A router's quantile less the engine's own in the same round."""
    own: float = getattr(at[name, number, "paced", concurrency], what)
    engines: float = getattr(at[DIRECT, number, "paced", concurrency], what)
    return own - engines


@asynccontextmanager
async def engine() -> AsyncIterator[str]:
    """A bare engine in a process of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "benchmarks.peers.engine", str(port), "--chunks", str(CHUNKS)]
    async with ChildProcess(f"engine {url}", argv, probe=http_ready(f"{url}/health"), ready_timeout_s=60.0):
        yield url


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=lambda text: text.split(","), default=list(ROUTERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="the longest that a load begins calls")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    options = parser.parse_args()
    found = uvloop.run(measure(options))
    told: dict[str, Any] = {
        "benchmark": "peers",
        "machine": machine(),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "versions": {name: version(name) for name in options.routers if name != "agentserve"},
        "compared": compare(found),
        "figures": [asdict(one) for one in found],
    }
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    for what, by_router in told["compared"].items():
        print(f"\n{what}")
        for name, one in by_router.items():
            print(f"  {name:14}{one['median']:10.3f}  ({one['low']:.3f}–{one['high']:.3f})")


if __name__ == "__main__":
    main()
