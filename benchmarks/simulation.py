"""How fast does the lab simulate? Output tokens per CPU second, and the cost of an event as traces and fleets grow.

    python -m benchmarks.simulation [--requests N --instances N]

The Mooncake slice on 16 instances (the shipped scenario large-fleet) under three policies, then other lengths of the
trace and other fleets under `agentserve`. Process CPU time of one core. With --requests and --instances only that size
is simulated, under `agentserve`, and the peak memory is told: 200,000 over 128 for example.
"""

import argparse
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

from agentserve.lab.points import base_point, cases_of, with_settings
from agentserve.lab.scenario import read_scenario
from agentserve.lab.sweep import simulated
from benchmarks.scheduler_handle import machine

SCENARIO = "large-fleet"
SEED = 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--instances", type=int)
    chosen = parser.parse_args()
    command = " ".join(["python -m benchmarks.simulation", *sys.argv[1:]])
    print(f"{machine()}, seed {SEED}, CPU time of one core\n{command}\n")
    if chosen.requests or chosen.instances:
        requests, instances = chosen.requests or 200_000, chosen.instances or 128
        measure("agentserve", requests, instances, repeats=max(1, -(-requests // 4000)))
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
        return
    least_s = measure("round_robin", 3000, 16)
    for policy in ("prefix_affinity", "agentserve"):
        print(f"{policy} takes {measure(policy, 3000, 16) / least_s:.2f} times the CPU time of round_robin")
    for requests in (750, 1500):
        measure("agentserve", requests, 16)
    for instances in (4, 64):
        measure("agentserve", 3000, instances)


def measure(policy: str, requests: int, instances: int, repeats: int = 1) -> float:
    """Simulate one size and print its figures; returns the CPU seconds."""
    settings: Mapping[str, Any] = {
        "fleet": [
            {"gpu": "a100-80g", "count": instances // 2},
            {"gpu": "h100", "count": instances // 4},
            {"gpu": "h200", "count": instances // 4},
        ],
        "workload.limit": requests,
        "workload.repeats": repeats,
        "workload.rate": 6.0 * instances / 16,
        "sweep": {},
    }
    file = with_settings(read_scenario(SCENARIO), settings)
    (case,) = cases_of(file, [base_point(file)], [policy], [SEED])
    before_s = time.process_time()
    result, _ = simulated(case)
    cpu_s = time.process_time() - before_s
    tokens = sum(call.output_tokens for call in result.replay.calls)
    calls = len(result.replay.calls)
    print(
        f"{policy:16} {calls:7,} requests {instances:4} instances: {cpu_s:7.1f} s, {tokens / cpu_s:9,.0f} tokens/s, "
        f"{1e6 * cpu_s / calls:6.0f} us/request, {1e6 * cpu_s / result.events:5.1f} us/event",
        flush=True,
    )
    return cpu_s


if __name__ == "__main__":
    main()
