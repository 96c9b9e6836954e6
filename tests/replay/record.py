"""Records the event logs in `data/`: python -m tests.replay.record

A live cluster serves real coding-agent turns, one engine turns slow and another dies in mid-stream, so that the log
holds dispatches, splits, holds, migrations and failures. Record anew when a policy or an event changes on purpose.
"""

import asyncio
import gzip
import tempfile
from pathlib import Path

import httpx

from agentserve.lab.replay import SoloScaleSlo, replay
from agentserve.lab.workloads import BUNDLED_ARRIVALS, BUNDLED_SESSIONS, WorkloadOptions, load_workload
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet

DATA = Path(__file__).parent / "data"
SPEED = 10.0
RUNS_BEFORE_TROUBLE = 6


async def record(policy: str) -> None:
    """One log of a short live run under `policy`."""
    options = WorkloadOptions(
        prompt_scale=0.1, max_steps=5, max_tool_gap_s=3, arrivals=BUNDLED_ARRIVALS, rate_per_s=3, limit=24, seed=3
    )
    workload = load_workload(BUNDLED_SESSIONS, options)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.jsonl"
        fleet = default_fleet(speed=SPEED, stream_interval=10)
        settings = {"EVENT_LOG": str(log)}
        async with LocalCluster(fleet, policy=policy, chaos=True, settings=settings) as cluster:
            under_way = asyncio.Event()
            trouble = asyncio.create_task(_trouble(cluster, under_way))
            await replay(
                workload,
                cluster.gateway_url,
                model=fleet.model,
                speed=SPEED,
                slo=SoloScaleSlo(2.0),
                seed=3,
                on_progress=lambda done: under_way.set() if done.runs_done >= RUNS_BEFORE_TROUBLE else None,
            )
            await trouble
            await cluster.parts["gateway"].stop()
        (DATA / f"{policy}.jsonl.gz").write_bytes(gzip.compress(log.read_bytes(), mtime=0))


async def _trouble(cluster: LocalCluster, under_way: asyncio.Event) -> None:
    """Once runs have ended, slow a weak and the strongest instance twentyfold, then kill a busy engine."""
    await under_way.wait()
    async with httpx.AsyncClient(timeout=10) as client:
        for name in ("a100-80g-2", "h200-1"):
            await client.post(f"{cluster.engine_urls[name]}/emulator/slow", json={"factor": 20})
    await asyncio.sleep(0.3)
    await cluster.parts["engine-h100-1"].kill()


if __name__ == "__main__":
    for name in ("agentserve", "goodserve"):
        asyncio.run(record(name))
