"""What does the live page cost? A gateway's CPU and the bytes of a stream with 1,000 live runs, and the browser's work.

`python -m benchmarks.page [--runs N] [--events-per-s N] [--browser]`. Another process, which stands for other gateways,
makes the runs: about `events-per-s` journal events a second, written as gateways write them. `--browser` needs the
packages of `make ui-test` and a Chromium.
"""

import argparse
import asyncio
import itertools
import time
from pathlib import Path

import httpx

from agentserve.journal import Kind, RunEvent
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from agentserve.tracker.redis import RedisStore
from workflows.run import new_run

SPAN_S = 15.0
SLO_S = 600.0
BATCH_S = 0.05
_STRIDE = 617  # so that the runs on one page of the list do not take turns at once


async def main(runs: int, events_per_s: float, with_browser: bool) -> None:
    """Measure and print."""
    fleet = Fleet(model="llama-3.1-8b", workers=(Group(gpu="h100"), Group(gpu="h200")))
    async with LocalCluster(fleet) as cluster:
        store = RedisStore(cluster.redis_url, "default")
        pid = cluster.parts["gateway"].pid
        for n in range(runs):
            await store.create(new_run(f"bench-{n:05}", "bench", time.time(), SLO_S, None, False))
        working = asyncio.create_task(work(store, runs, events_per_s))
        try:
            print(f"{runs} live runs, {events_per_s:g} journal events a second; {SPAN_S:g} s each\n")
            print(f"{'pages':>6}{'gateway CPU, ms/s':>20}{'KiB/s a page':>16}{'messages/s a page':>20}")
            for pages in (0, 1, 4, 16):
                cpu, size, messages = await measure(cluster.gateway_url, pid, pages)
                each = max(pages, 1)
                print(f"{pages:>6}{cpu * 1000:>20.1f}{size / each / 1024:>16.1f}{messages / each:>20.2f}")
            if with_browser:
                await browse(cluster.gateway_url, pid)
        finally:
            working.cancel()
            await asyncio.wait([working])
            await store.close()


async def work(store: RedisStore, runs: int, events_per_s: float) -> None:
    """Let the runs go on, one after the other by one event, in batches as the journal's writer makes them."""
    numbers = itertools.count()
    begun_s, done = time.monotonic(), 0
    for n in range(runs):
        data = {"workflow": "bench", "slo_s": SLO_S, "deadline_s": time.time() + SLO_S}
        await store.append([RunEvent(run_id=f"bench-{n:05}", kind=Kind.RUN_SUBMITTED, at_s=time.time(), data=data)])
    while True:
        due = int((time.monotonic() - begun_s) * events_per_s)
        batch = [event(next(numbers), runs) for _ in range(min(due - done, 256))]
        done = due
        await store.append(batch)
        await asyncio.sleep(BATCH_S)


def event(number: int, runs: int) -> RunEvent:
    """The next event of the next run: a step's whole life, over and over."""
    cycle, place = divmod(number, runs)
    run = place * _STRIDE % runs
    step, kind = f"s{cycle // len(_LIFE)}", _LIFE[cycle % len(_LIFE)]
    data = {
        Kind.STEP_STARTED: {"node": "agent", "kind": "llm", "parents": []},
        Kind.STEP_DEADLINES: {"node": "agent", "slack_s": 30.0 - run % 40},
        Kind.CALL_DECIDED: {"type": "dispatch", "prefill_instance": "h100-1", "decode_instance": "h100-1"},
        Kind.CALL_FIRST_TOKEN: {"instance": "h100-1"},
        Kind.CALL_FINISHED: {"outcome": "ok"},
        Kind.STEP_FINISHED: {"node": "agent", "outcome": "ok"},
    }[kind]
    request = step if kind.startswith("call.") else None
    return RunEvent(run_id=f"bench-{run:05}", kind=kind, at_s=time.time(), step_id=step, request_id=request, data=data)


_LIFE = (
    Kind.STEP_STARTED,
    Kind.STEP_DEADLINES,
    Kind.CALL_DECIDED,
    Kind.CALL_FIRST_TOKEN,
    Kind.CALL_FINISHED,
    Kind.STEP_FINISHED,
)


async def measure(url: str, pid: int, pages: int) -> tuple[float, float, float]:
    """CPU seconds of the gateway, bytes and messages of all pages, each by second."""
    sizes, counts = [0] * pages, [0] * pages

    async def look(number: int) -> None:
        async with (
            httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as client,
            client.stream("GET", "/v1/live") as response,
        ):
            response.raise_for_status()
            async for piece in response.aiter_raw():
                sizes[number] += len(piece)
                counts[number] += piece.count(b"data: ")

    readers = [asyncio.create_task(look(number)) for number in range(pages)]
    try:
        await asyncio.sleep(3)
        before, began_s = (cpu_s(pid), sum(sizes), sum(counts)), time.monotonic()
        await asyncio.sleep(SPAN_S)
        after, took_s = (cpu_s(pid), sum(sizes), sum(counts)), time.monotonic() - began_s
    finally:
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)
    cpu, size, messages = ((late - early) / took_s for early, late in zip(before, after, strict=True))
    return cpu, size, messages


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def browse(url: str, pid: int) -> None:
    """What a browser does for the page, by second."""
    from tests.ui.browser import chromium

    async with chromium() as browser:
        page = await browser.new_page(viewport={"width": 1440, "height": 1180})
        probe = await page.context.new_cdp_session(page)
        await probe.send("Performance.enable")
        await page.goto(f"{url}/ui")
        await page.wait_for_selector("#runs tbody tr")
        await page.wait_for_timeout(3000)

        async def figures() -> dict[str, float]:
            told = (await probe.send("Performance.getMetrics"))["metrics"]
            return {one["name"]: one["value"] for one in told}

        before, cpu = await figures(), cpu_s(pid)
        await page.wait_for_timeout(SPAN_S * 1000)
        after = await figures()
        print(f"\none page in Chromium: gateway CPU {(cpu_s(pid) - cpu) / SPAN_S * 1000:.1f} ms/s")
        for name in ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration"):
            print(f"  {name:<20}{(after[name] - before[name]) / SPAN_S * 1000:8.1f} ms/s")
        print(f"  {'JSHeapUsedSize':<20}{after['JSHeapUsedSize'] / 2**20:8.1f} MiB, {after['Nodes']:.0f} nodes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events-per-s", type=float, default=1000)
    parser.add_argument("--browser", action="store_true")
    given = parser.parse_args()
    asyncio.run(main(given.runs, given.events_per_s, given.browser))
