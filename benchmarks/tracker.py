"""How many transitions and journal events per second does the tracker store? On the embedded server of this machine.

    python -m benchmarks.tracker [--json] [--seconds 3] [--seed 0] [--socket]

A transition is one `RedisStore.apply` (step started, deadlines derived, step finished, in turn), each stored before the
next of the same run begins. An event is one journal line of about 600 bytes.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from agentserve.journal import Kind, RunEvent
from agentserve.local.redis import RedisServer, bundled_binary, find_binary
from agentserve.records import quantile
from agentserve.tracker.connection import Connection
from agentserve.tracker.redis import RedisStore
from agentserve.tracker.sink import StoreSink
from workflows.run import DeadlinesDerived, StepFinished, StepKind, StepStarted, StepStatus, new_run

STEPS_PER_RUN = 30
BATCH = 64


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. Times are of a single call, at the client."""

    what: str
    clients: int
    per_s: float
    p50_ms: float | None
    p99_ms: float | None


class Clock:
    """Collects how long calls took until the time is over."""

    def __init__(self, seconds: float) -> None:
        self.began = time.perf_counter()
        self.until = self.began + seconds
        self.took_s: list[float] = []

    @property
    def running(self) -> bool:
        """Whether there is time left."""
        return time.perf_counter() < self.until

    async def time(self, call: Awaitable[object]) -> None:
        """Await a call and keep how long it took."""
        began = time.perf_counter()
        await call
        self.took_s.append(time.perf_counter() - began)

    def figure(self, what: str, clients: int, each: int = 1) -> Figure:
        """What was measured; a call did `each` of the things that are counted."""
        elapsed_s = time.perf_counter() - self.began
        p50_s, p99_s = quantile(self.took_s, 0.5), quantile(self.took_s, 0.99)
        return Figure(
            what,
            clients,
            round(len(self.took_s) * each / elapsed_s, 1),
            None if p50_s is None else round(1e3 * p50_s, 4),
            None if p99_s is None else round(1e3 * p99_s, 4),
        )


def an_event(run_id: str, n: int, dice: random.Random) -> RunEvent:
    """A decision with eight candidates, as the gateway writes it."""
    candidates = [{"instance": f"h100-{i}", "finish_s": dice.random(), "why": "just enough"} for i in range(8)]
    return RunEvent(run_id=run_id, kind=Kind.CALL_DECIDED, at_s=float(n), step_id="s", data={"candidates": candidates})


async def live(store: RedisStore, clock: Clock, name: str) -> None:
    """Run after run, step after step, until the time is over."""
    n = 0
    while clock.running:
        run_id = f"{name}-{n}"
        n += 1
        await store.create(new_run(run_id, "bench", float(n), slo_s=20.0))
        for step in range(STEPS_PER_RUN):
            step_id = f"s{step}"
            for transition in (
                StepStarted(step_id=step_id, node="n", kind=StepKind.LLM, at_s=1.0),
                DeadlinesDerived(deadlines={step_id: (2.0, 3.0)}),
                StepFinished(step_id=step_id, status=StepStatus.SUCCEEDED, at_s=2.0),
            ):
                if not clock.running:
                    return
                await clock.time(store.apply(run_id, transition))


async def transitions(store: RedisStore, seconds: float, clients: int, dice: random.Random) -> Figure:
    """Transitions per second of `clients` runs at a time."""
    clock = Clock(seconds)
    async with asyncio.TaskGroup() as tasks:
        for client in range(clients):
            tasks.create_task(live(store, clock, f"{clients}-{client}-{dice.random()}"))
    return clock.figure("transitions", clients)


async def appends(store: RedisStore, seconds: float, clients: int, batch: int, dice: random.Random) -> Figure:
    """Events per second of `clients` writers that append `batch` at a time."""
    clock = Clock(seconds)

    async def append(client: int) -> None:
        events = [an_event(f"append-{clients}-{client}", n, dice) for n in range(batch)]
        while clock.running:
            await clock.time(store.append(events))

    async with asyncio.TaskGroup() as tasks:
        for client in range(clients):
            tasks.create_task(append(client))
    return clock.figure(f"events, appended by {batch}", clients, batch)


async def sink(store: RedisStore, seconds: float, dice: random.Random) -> Figure:
    """Events through the buffered writer: as many as it passes on without dropping any."""
    events = [an_event(f"sink-{n % 50}", n, dice) for n in range(1000)]
    clock = Clock(seconds)
    async with StoreSink(store) as writer:
        while clock.running:
            for event in events:
                clock.took_s.append(_timed(writer.record, event))
            await writer.flush()
        if writer.dropped:
            raise SystemExit(f"{writer.dropped} events were dropped")
    return clock.figure("events, recorded", 1)


def _timed(record: Callable[[RunEvent], None], event: RunEvent) -> float:
    began = time.perf_counter()
    record(event)
    return time.perf_counter() - began


async def measure(seconds: float, seed: int, *, socket: bool) -> tuple[dict[str, object], list[Figure]]:
    """Every figure, and where it was taken."""
    dice = random.Random(seed)
    async with RedisServer(binary=bundled_binary() or find_binary(), port=None if socket else 0) as server:
        connection = Connection(server.url)
        info = await connection.command("INFO", "server")
        await connection.close()
        assert server.binary is not None
        store = RedisStore(server.url, "bench")
        figures = [
            *[await transitions(store, seconds, clients, dice) for clients in (1, 64)],
            *[await appends(store, seconds, *how, dice) for how in ((1, 1), (64, 1), (1, BATCH))],
            await sink(store, seconds, dice),
        ]
        await store.close()
    return {
        "benchmark": "tracker",
        "machine": machine(),
        "server": f"{server.binary.name} {info.get('valkey_version') or info.get('redis_version')}",
        "transport": "unix socket" if socket else "loopback TCP",
        "command": shlex.join(["python", "-m", "benchmarks.tracker", *sys.argv[1:]]),
        "seed": seed,
        "seconds_each": seconds,
    }, figures


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def table(result: dict[str, object], figures: list[Figure]) -> str:
    """The result as text."""
    named = (f"{name}: {result[name]}" for name in ("machine", "server", "transport", "command", "seed"))
    lines = [f"{'':24}{'clients':>8}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}"]
    lines += [f"{f.what:24}{f.clients:8}{f.per_s:12,.0f}{f.p50_ms or 0:9.4f}{f.p99_ms or 0:9.4f}" for f in figures]
    return "\n".join((*named, "", *lines))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each line is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--socket", action="store_true", help="a unix socket, as `agentserve up` uses, instead of TCP")
    arguments = parser.parse_args()
    result, figures = asyncio.run(measure(arguments.seconds, arguments.seed, socket=arguments.socket))
    if arguments.json:
        print(json.dumps(result | {"figures": [asdict(figure) for figure in figures]}, indent=2))
    else:
        print(table(result, figures))


if __name__ == "__main__":
    main()
