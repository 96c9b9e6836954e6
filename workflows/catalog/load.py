"""What do the agents look like under load? `python -m workflows.catalog.load` runs them at random until stopped."""

import argparse
import asyncio
import contextlib
import importlib
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import agentserve
from workflows.catalog import AGENTS

Run = Callable[[str], Awaitable[str]]
"""Runs one agent by name; what to say of the run."""


@dataclass(frozen=True, slots=True)
class Load:
    """`rate_per_s` runs on average, at random times; at most `at_once` together; `limit` in all, None: without end."""

    rate_per_s: float
    at_once: int = 8
    limit: int | None = None
    seed: int = 0


def arrivals(load: Load) -> Iterator[tuple[float, str]]:
    """The wait before each run, in seconds, and its agent: a Poisson process over the catalog."""
    draw = random.Random(load.seed)  # noqa: S311  # a load, not a secret
    count = 0
    while load.limit is None or count < load.limit:
        count += 1
        yield draw.expovariate(load.rate_per_s), draw.choice(AGENTS)


async def send(
    load: Load,
    run: Run,
    say: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Start runs as they arrive and say how each went. One that fails is told of; a full house skips an arrival."""
    going: set[asyncio.Task[None]] = set()

    async def one(agent: str) -> None:
        try:
            say(await run(agent))
        except Exception as error:  # noqa: BLE001  # a load goes on whatever an agent raises
            say(f"{agent}: failed: {type(error).__name__}: {str(error)[:200]}")

    async with asyncio.TaskGroup() as group:
        for wait_s, agent in arrivals(load):
            await sleep(wait_s)
            if len(going) >= load.at_once:
                say(f"{agent}: left out, {load.at_once} runs are going")
                continue
            task = group.create_task(one(agent))
            going.add(task)
            task.add_done_callback(going.discard)


def served_by(slo_s: float) -> Run:
    """Runs agents on the gateway that AGENTSERVE_GATEWAY names, each with its EXAMPLE as input."""
    served: dict[str, tuple[Any, object]] = {}

    async def run(agent: str) -> str:
        if agent not in served:
            module = importlib.import_module(f"workflows.catalog.{agent}")
            served[agent] = agentserve.serve(module.graph, slo_s=slo_s, name=agent), module.EXAMPLE
        graph, example = served[agent]
        result = await graph.arun(example)
        verdict = "inside its SLO" if result.attained else "past its SLO"
        return f"{agent}: {result.run_id}: {result.e2e_s:.2f} s, {verdict} of {slo_s:g} s"

    return run


def parsed(arguments: Sequence[str] | None = None) -> tuple[Load, float]:
    """The load and the SLO in seconds that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m workflows.catalog.load", description="Run the catalog's agents.")
    parser.add_argument("--rate", type=_positive, default=0.2, help="runs per second on average [0.2]")
    parser.add_argument("--slo", type=_seconds, default=30.0, help="end-to-end SLO of each run, such as 30s [30s]")
    parser.add_argument("--at-once", type=int, default=8, help="most runs at the same time [8]")
    parser.add_argument("--limit", type=int, default=None, help="end after so many runs [never]")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn [0]")
    given = parser.parse_args(arguments)
    return Load(given.rate, given.at_once, given.limit, given.seed), given.slo


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    return _positive(text.removesuffix("s"))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _until_stopped(load: Load, slo_s: float) -> None:
    sending = asyncio.current_task()
    if sending is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sending.cancel)
    await send(load, served_by(slo_s), _say)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_until_stopped(*parsed()))
