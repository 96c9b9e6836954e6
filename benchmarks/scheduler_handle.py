"""How long does `Scheduler.handle` take at 4, 64 and 512 instances with 20 running requests each?

    python benchmarks/scheduler_handle.py [--policy agentserve] [--events 400] [--seed 1] [--json]

CPU time of one core, so that other work on the machine counts less. Every measured arrival has a fresh id, a prompt of
8,192 tokens with 32 prefix hashes of which most are known, and deadlines; the instances are a third each of three GPU
types. The measured call is then finished, so that the load stays the same.
"""

import argparse
import gc
import json
import platform
import random
import sys
import time
from pathlib import Path

from scheduler.core import Scheduler, make_scheduler
from scheduler.events import (
    Event,
    FirstToken,
    InstanceJoined,
    InstanceReported,
    InstanceSpec,
    Progress,
    RequestArrived,
    RequestFinished,
)
from scheduler.policies import policy_names
from scheduler.profiles.profile import GpuProfile

SPEEDS = {"a100-80g": 1.0, "h100": 1.7, "h200": 2.2}
BLOCK, BLOCKS = 256, 32


def profile(gpu: str, model: str) -> GpuProfile:
    """A plausible 8B profile: the benchmark is about the scheduler, not about the figures."""
    speed = SPEEDS[gpu]
    return GpuProfile(
        gpu=gpu,
        model=model,
        tensor_parallel=1,
        prefill_base_s=0.004,
        prefill_per_token_s=6e-5 / speed,
        prefill_per_token2_s=4e-10 / speed,
        decode_base_s=0.009 / speed,
        decode_per_sequence_s=2e-5,
        decode_per_context_token_s=7e-8 / speed,
        calibration=1.0,
        overhead_per_sequence_s=3e-5,
        kv_bytes_per_token=131072,
        kv_capacity_tokens=400_000,
        kv_link_bytes_per_s=25e9,
        capability=1500.0 * speed,
    )


class Load:
    """A scheduler under a constant load, and the events that keep it so."""

    def __init__(self, policy: str, instances: int, seed: int, *, links: bool) -> None:
        self.random = random.Random(seed)
        self.scheduler: Scheduler = make_scheduler(policy, seed=seed, profiles=profile)
        self.now_s = 1000.0
        self.count = 0
        gpus = sorted(SPEEDS)
        for i in range(instances):
            self.send(InstanceJoined(event_id=f"j{i}", instance=self.spec(i, gpus[i % len(gpus)], links)))
        for _ in range(instances * 20):
            self.arrive_and_start()
        for i in range(instances):
            report = InstanceReported(
                event_id=f"r{i}", instance_id=f"g{i:03d}", measured_at_s=self.now_s, running=20, waiting=0, kv_usage=0.4
            )
            self.send(report)

    def spec(self, i: int, gpu: str, links: bool) -> InstanceSpec:
        """One instance."""
        return InstanceSpec(
            instance_id=f"g{i:03d}",
            model="m",
            gpu=gpu,
            kv_capacity_tokens=400_000,
            block_tokens=16,
            max_num_seqs=256,
            max_batched_tokens=8192,
            kv_bytes_per_token=131072,
            kv_link_bytes_per_s=25e9 if links else None,
            supports_priority=True,
            supports_replay=True,
        )

    def send(self, event: Event) -> float:
        """Handle an event; returns the CPU microseconds it took."""
        self.now_s += 0.0005
        began_ns = time.thread_time_ns()
        self.scheduler.handle(event, self.now_s)
        return (time.thread_time_ns() - began_ns) / 1e3

    def arrival(self) -> RequestArrived:
        """A call of one of 2,000 sessions; all share a system prompt, most blocks belong to the session."""
        self.count += 1
        session = self.random.randrange(2000)
        known = self.random.randrange(BLOCKS // 2, BLOCKS)
        hashes = [*range(4), *(1_000_000 + session * 1000 + i for i in range(known - 4))]
        hashes += [10**12 + self.count * 1000 + i for i in range(BLOCKS - known)]
        slack_s = self.random.uniform(2.0, 30.0)
        return RequestArrived(
            event_id=f"a{self.count}",
            request_id=f"q{self.count}",
            model="m",
            prompt_tokens=BLOCK * BLOCKS,
            max_tokens=1024,
            run_id=f"run{session}",
            workflow="w",
            node=f"n{session % 7}",
            run_deadline_s=self.now_s + 60.0,
            target_deadline_s=self.now_s + slack_s,
            latest_deadline_s=self.now_s + 2.0 * slack_s,
            prefix_hashes=tuple(hashes),
            prefix_block_tokens=BLOCK,
        )

    def arrive_and_start(self) -> tuple[str, float]:
        """One arrival (timed) and its first token."""
        event = self.arrival()
        took_us = self.send(event)
        self.send(FirstToken(event_id=f"f{self.count}", request_id=event.request_id))
        return event.request_id, took_us

    def finish(self, request_id: str) -> float:
        """End a call."""
        event = RequestFinished(
            event_id=f"e{request_id}", request_id=request_id, prompt_tokens=BLOCK * BLOCKS, output_tokens=200
        )
        return self.send(event)


def measure(policy: str, instances: int, events: int, seed: int, *, links: bool) -> dict[str, float]:
    """Microseconds per event kind: p50 and p99."""
    load = Load(policy, instances, seed, links=links)
    gc.collect()
    gc.freeze()
    arrived, progressed, finished = [], [], []
    for i in range(events + 20):
        request_id, took_us = load.arrive_and_start()
        running = load.send(Progress(event_id=f"p{i}", request_id=request_id, output_tokens=4))
        ended = load.finish(request_id)
        if i >= 20:  # the first few warm caches up
            arrived.append(took_us)
            progressed.append(running)
            finished.append(ended)
    figures: dict[str, float] = {"instances": instances, "events": events}
    figures["decisions_per_s"] = round(1e6 * events / sum(arrived))
    for name, values in (("arrived", arrived), ("progress", progressed), ("finished", finished)):
        values.sort()
        figures[f"{name}_p50_us"] = round(values[len(values) // 2], 1)
        figures[f"{name}_p99_us"] = round(values[int(len(values) * 0.99)], 1)
    return figures


def machine() -> str:
    """Name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or '?'} cores, Python {platform.python_version()}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="agentserve", choices=policy_names())
    parser.add_argument("--instances", type=int, nargs="+", default=[4, 64, 512])
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-links", action="store_true", help="no KV links: split placements are not weighed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [measure(args.policy, n, args.events, args.seed, links=not args.no_links) for n in args.instances]
    command = " ".join(["python -m benchmarks.scheduler_handle", *sys.argv[1:]])
    if args.json:
        facts = {"benchmark": "scheduler_handle", "machine": machine(), "seed": args.seed, "policy": args.policy}
        print(json.dumps({**facts, "command": command, "rows": rows}))
        return
    print(f"{args.policy}, 20 running requests per instance, CPU time of one core")
    print(f"{machine()}, seed {args.seed}\n{command}\n")
    print(
        f"{'instances':>9} {'arrived p50':>12} {'p99':>9} {'progress p50':>13} {'p99':>9} {'finished p50':>13} µs "
        f"{'decisions/s':>12}"
    )
    for row in rows:
        print(
            f"{row['instances']:>9} {row['arrived_p50_us']:>12} {row['arrived_p99_us']:>9} "
            f"{row['progress_p50_us']:>13} {row['progress_p99_us']:>9} {row['finished_p50_us']:>13}    "
            f"{row['decisions_per_s']:>12,}"
        )


if __name__ == "__main__":
    main()
