"""Does the simulator foretell a live cluster? Coding-agent turns over HTTP with emulated workers, and simulated.

    python -m benchmarks.validate.live [--runs N] [--rate R] [--speed K] [--seed N] [--policies a,b] [--out FILE.json]

Brings the embedded cluster up once per policy (2×A100, H100, H200 with Llama-3.1-8B, emulated K times faster), replays
the bundled sessions against it as `agentserve replay` does, then simulates the same runs on the same instances. Live
times are multiplied by K. Aims: attainment within 3 points, p50 and p90 of the runs' E2E within 5 %.

Two things are measured, not assumed. What a lone call costs over HTTP beyond its prefill is the simulator's
`relay_s` (K times as large in emulated time as it is on the wall). And since a few milliseconds decide which call comes
first, and with it where both go, the simulation is repeated with arrivals moved by up to 20 ms: its median is compared,
its range shows what one live replay may be off by chance. It also prints how far the emulators fell behind their
clocks: where that is not near 0, the machine was too busy for this K.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx

from agentserve.lab.options import SimulatedInstance, SimulationOptions
from agentserve.lab.plans import SoloScaleSlo, StepPlan, Workload
from agentserve.lab.replay import replay
from agentserve.lab.results import ReplayResult
from agentserve.lab.simulation import simulate
from agentserve.lab.workloads import BUNDLED_ARRIVALS, BUNDLED_SESSIONS, WorkloadOptions, load_workload
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, default_fleet
from agentserve.records import attainment, quantile
from scheduler.events import InstanceSpec
from scheduler.profiles import load_profile

BLOCK_TOKENS = 16
LONE_TOKENS = 4000
REPEATS = 9


def main() -> None:
    """Replay, simulate, compare, per policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.7, help="runs per second of the trace's time")
    parser.add_argument("--speed", type=float, default=2.0)
    parser.add_argument("--scale", type=float, default=2.0, help="SLO: so many times the solo time on an H100")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--policies", default="round_robin,agentserve")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    workload = turns(given.runs, given.rate, given.seed)
    fleet = default_fleet(speed=given.speed, stream_interval=max(1, round(given.speed)))
    rule = SoloScaleSlo(given.scale, model=fleet.model)
    print(f"{len(workload.plans)} turns, {sum(len(plan.steps) for plan in workload.plans)} calls; {rule.describe()}")
    told = {}
    for policy in given.policies.split(","):
        live, lags_s, relay_s = asyncio.run(over_http(workload, fleet, policy, rule, given.seed))
        foretold = [
            simulated(moved(workload, number), fleet, policy, rule, given.seed, relay_s) for number in range(REPEATS)
        ]
        told[policy] = compare(policy, figures(live, given.speed), foretold)
        print(f"relay {relay_s * 1e3:.0f} ms of emulated time, {relay_s / given.speed * 1e3:.0f} ms on the wall")
        late_s = [quantile(lags_s, q) or 0.0 for q in (0.5, 0.99)]
        print(f"slowest emulator behind its clock by {late_s[0]:.3f} s (p50), {late_s[1]:.3f} s (p99) of wall time")
        if live.errors:
            print(f"live errors: {dict(live.errors)}")
    if given.out is not None:
        given.out.write_text(json.dumps(told, indent=1))


def turns(runs: int, rate: float, seed: int) -> Workload:
    """Small turns of coding agents, which two cores can carry over HTTP."""
    options = WorkloadOptions(
        prompt_scale=0.25,
        max_prompt_tokens=16_000,
        max_steps=8,
        max_tool_gap_s=5.0,
        arrivals=BUNDLED_ARRIVALS,
        rate_per_s=rate,
        limit=runs,
        seed=seed,
    )
    return load_workload(BUNDLED_SESSIONS, options)


async def over_http(
    workload: Workload, fleet: Fleet, policy: str, rule: SoloScaleSlo, seed: int
) -> tuple[ReplayResult, list[float], float]:
    """The live result, how far the slowest emulator was behind (once a second), and what a lone call's relay takes."""
    async with LocalCluster(fleet, policy=policy, seed=seed, ready_timeout_s=120.0) as cluster:
        alone = await replay(lone_calls(workload), cluster.gateway_url, model=fleet.model, speed=fleet.speed, seed=seed)
        watch = asyncio.create_task(_watch_lag(list(cluster.engine_urls.values())))
        result = await replay(
            workload, cluster.gateway_url, model=fleet.model, speed=fleet.speed, slo=rule, policy=policy, seed=seed
        )
        watch.cancel()
        lags_s = await watch
    return result, lags_s, relay_of(alone, fleet)


def lone_calls(workload: Workload) -> Workload:
    """Calls of a usual prompt's length, each alone, to measure what HTTP, tokenizers, gateway and stores add."""
    plan = workload.plans[0]
    step = StepPlan(step_id="s0", node=plan.steps[0].node, prompt_tokens=LONE_TOKENS, output_tokens=2)
    plans = [
        replace(plan, run_id=f"lone{number}", session_id=f"lone{number}", arrival_s=2.0 * number, steps=(step,))
        for number in range(12)
    ]
    return replace(workload, plans=tuple(plans))


def relay_of(alone: ReplayResult, fleet: Fleet) -> float:
    """Median time to first token beyond the prefill where it was, in emulated seconds; the first calls only warm up."""
    gpus = {name: group.gpu for name, group in fleet.named()}
    place = {one.request_id: gpus[one.prefill_instance] for one in alone.placements}
    beyond_s = [
        call.ttft_s * fleet.speed - load_profile(place[call.request_id], fleet.model).prefill_s(call.prompt_tokens)
        for call in alone.calls
        if call.ttft_s is not None
    ]
    return max(0.0, quantile(beyond_s[4:], 0.5) or 0.0)


def moved(workload: Workload, number: int) -> Workload:
    """The workload with arrivals moved by up to 20 ms; as it is for number 0."""
    draw = random.Random(number)
    plans = [replace(plan, arrival_s=max(0.0, plan.arrival_s + (number > 0) * draw.uniform(-0.02, 0.02)))
             for plan in workload.plans]  # fmt: skip
    return replace(workload, plans=tuple(sorted(plans, key=lambda plan: plan.arrival_s)))


async def _watch_lag(urls: Sequence[str]) -> list[float]:
    """Once a second until cancelled, how far the slowest emulator is behind its clock."""
    seen: list[float] = []
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        try:
            while True:
                pages = await asyncio.gather(*(client.get(f"{url}/metrics") for url in urls))
                lines = [line for page in pages for line in page.text.splitlines()]
                seen.append(max(float(line.split()[-1]) for line in lines if line.startswith("emulator:lag_seconds{")))
                await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            return seen


def simulated(
    workload: Workload, fleet: Fleet, policy: str, rule: SoloScaleSlo, seed: int, relay_s: float
) -> dict[str, float]:
    """The same runs on the same instances in virtual time, at speed 1."""
    instances = []
    for name, group in fleet.named():
        profile = load_profile(group.gpu, fleet.model)
        spec = InstanceSpec(
            instance_id=name,
            model=fleet.model,
            gpu=group.gpu,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            block_tokens=BLOCK_TOKENS,
            max_num_seqs=group.max_num_seqs,
            max_batched_tokens=group.max_batched_tokens,
            kv_bytes_per_token=profile.kv_bytes_per_token,
            kv_link_bytes_per_s=profile.kv_link_bytes_per_s,
            kv_group="emulated",
            supports_priority=True,
            supports_replay=True,
        )
        instances.append(SimulatedInstance(spec=spec))
    slos = {plan.run_id: rule.slo_s(plan) for plan in workload.plans}
    options = SimulationOptions(engine_block_tokens=BLOCK_TOKENS, relay_s=relay_s)
    result = simulate(workload, slos, instances, model=fleet.model, policy=policy, seed=seed, options=options)
    return figures(result.replay, 1.0)


def figures(result: ReplayResult, speed: float) -> dict[str, float]:
    """What is compared, in the trace's seconds."""
    e2e_s = [run.e2e_s * speed for run in result.runs if run.succeeded]
    ttft_s = [call.ttft_s * speed for call in result.calls if call.ttft_s is not None]
    return {
        "attainment": attainment(result.runs) or 0.0,
        "run E2E p50, s": quantile(e2e_s, 0.5) or 0.0,
        "run E2E p90, s": quantile(e2e_s, 0.9) or 0.0,
        "TTFT p50, s": quantile(ttft_s, 0.5) or 0.0,
        "TPOT p50, ms": 1e3 * (quantile([call.tpot_s for call in result.calls], 0.5) or 0.0) * speed,
        "prompt share cached": sum(call.cached_tokens or 0 for call in result.calls)
        / sum(call.prompt_tokens for call in result.calls),
    }


def compare(policy: str, live: dict[str, float], foretold: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Print both sides: live, the simulations' median and range."""
    print(f"\n{policy:22}{'live':>9}{'simulated':>11}{'range':>17}{'difference':>13}")
    middle = {}
    for name, seen in live.items():
        values = [figures[name] for figures in foretold]
        middle[name] = median(values)
        is_share = name in ("attainment", "prompt share cached")
        off = f"{100 * (middle[name] - seen):+.1f} points" if is_share else f"{middle[name] / seen - 1:+.1%}"
        span = f"{min(values):.3f}–{max(values):.3f}"
        print(f"{name:22}{seen:9.3f}{middle[name]:11.3f}{span:>17}{off:>13}")
    return {"live": live, "simulated": middle}


if __name__ == "__main__":
    main()
