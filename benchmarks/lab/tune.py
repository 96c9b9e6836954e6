"""Which parameters serve each published policy best? Coordinate descent on tuning workloads, recorded in sweep.json.

    python -m benchmarks.lab.tune [--jobs N] [--out DIR]

Each policy begins with the first value of every parameter in GRIDS; its parameters are varied one after the other, and
the value with the highest mean attainment over the workloads is kept, until a pass changes nothing or PASSES are done.
The tuning workloads share no run with those of the study: the second slice of coding sessions, the first rows of traces
whose later rows the scenarios use, and generated runs of other seeds. Our own policy is not tuned here. What is
simulated is kept in DIR, so that the same command goes on after Ctrl-C. The values that won are written to
agentserve/lab/tuned.toml, where every scenario finds them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from agentserve.lab.points import with_settings
from agentserve.lab.scenario import read_scenario
from agentserve.lab.sweep import run_points
from agentserve.lab.tuned import TUNED_FILE
from benchmarks.lab.provenance import RESULTS, provenance
from scheduler.policies import policy_names

OURS = "agentserve"
SEED = 101
PASSES = 2
WORKLOADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "coding": ("coding-hot", {"workload.trace": "coding-agent-2", "workload.rate": 0.6, "workload.limit": 180}),
    "coding, hot": ("coding-hot", {"workload.trace": "coding-agent-2", "workload.rate": 1.1, "workload.limit": 180}),
    "bursts": ("coding-bursts", {"workload.trace": "coding-agent-2", "workload.arrivals": "hyperexponential",
                                 "workload.cv": 6.0, "workload.rate": 0.4, "workload.limit": 180}),
    "graphs": ("dags-hot", {"workload.rate": 7.0, "workload.limit": 300}),
    "graphs, hot": ("dags-hot", {"workload.rate": 11.0, "workload.limit": 300}),
    "mooncake": ("mooncake", {"workload.skip": 0, "workload.take": 1500, "workload.rate": 1.8, "workload.limit": 500}),
    "azure": ("azure-conv", {"workload.skip": 0, "workload.take": 2500, "workload.rate": 22.0,
                             "workload.limit": 900}),
    "tenants": ("tenants", {"workload.rate": 5.0, "workload.limit": 300}),
}  # fmt: skip
Grid = Mapping[str, tuple[Any, ...]]
GRIDS: Mapping[str, Grid] = {
    "autellix": {"by_speed": (True, False), "order": ("plas", "atlas"), "batch_cap": (0, 24, 64),
                 "strays": (False, True)},
    "goodserve": {"margin": (1.5, 1.0, 2.0, 3.0), "min_gain_s": (1.0, 0.0), "migration": (True, False)},
    "hexagent": {"prefix": (True, False), "batch_cap": (0, 24, 64)},
    "hexgen_flow": {"alpha": (0.5, 0.0, 0.1, 0.2, 0.35), "prefix": (True, False), "batch_cap": (0, 24, 64)},
    "jitserve": {"reward": ("tokens", "run"), "decay": (1.0, 4.0), "batch_cap": (0, 24, 64)},
    "kairos": {"earliest": (True, False), "bucket_s": (1.0, 4.0), "batch_cap": (0, 24, 64)},
    "least_kv": {"as_share": (True, False)},
    "least_requests": {"by_speed": (True, False)},
    "llmd_least": {"ttft_share": (0.3, 0.0), "explore": (0.01, 0.0), "buffer": (1.0, 1.5)},
    "llumnix": {"by_speed": (True, False), "low_freeness": (1.0, 3.0, 10.0), "migration": (True, False)},
    "lowest_tpm": {"by_speed": (True, False)},
    "polyserve": {"highest": (True, False), "margin": (2.0, 1.0, 1.5, 3.0), "load": ("calls", "kv", "step"),
                  "protects": (True, False)},
    "power_of_two": {"by_speed": (True, False), "choices": (2, 3)},
    "preble": {"imbalance": (3.0, 1.2, 1.5), "slack_s": (1.0, 5.0), "eviction_weight": (1.0, 0.0)},
    "prefix_affinity": {"load": ("tokens", "calls", "seconds"), "cap": (1.5, 1.1, 1.25, 2.0), "slack": (0.0, 2.0, 6.0),
                        "by_speed": (True, False), "least_share": (0.5, 0.25)},
    "random": {},
    "round_robin": {},
    "session_affinity": {"by_speed": (True, False), "by_hash": (False, True)},
}  # fmt: skip
Setting = tuple[str, tuple[tuple[str, Any], ...]]
"""A policy and its parameters in the order of its grid."""
Measured = dict[Setting, dict[str, float]]
"""Attainment by workload."""
Measure = Callable[[Sequence[Setting]], Mapping[Setting, Mapping[str, float]]]


def main() -> None:
    """Sweep, then write sweep.json and tuned.toml."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="simulations at once (default: the number of cores)")
    parser.add_argument("--out", type=Path, default=Path("out/lab/tune"), help="where simulations are kept")
    chosen = parser.parse_args()
    if missing := set(policy_names()) - set(GRIDS) - {OURS}:
        sys.exit(f"no grid for {', '.join(sorted(missing))}")
    measured: Measured = {}

    def measure(settings: Sequence[Setting]) -> Measured:
        new = [one for one in settings if one not in measured]
        for workload in WORKLOADS:
            for one, share in _attained(workload, new, chosen.out, chosen.jobs).items():
                measured.setdefault(one, {})[workload] = share
        return measured

    _write(measured, descend(GRIDS, measure))


def descend(grids: Mapping[str, Grid], measure: Measure, passes: int = PASSES) -> dict[str, Setting]:
    """The best setting found of each policy; of equals the earlier. The next parameters of all are measured at once."""
    best = {name: (name, tuple((key, values[0]) for key, values in grid.items())) for name, grid in grids.items()}
    for _ in range(passes):
        before = dict(best)
        for place in range(max(len(grid) for grid in grids.values())):
            tried = {name: _along(best[name], grid, place) for name, grid in grids.items()}
            shares = measure([one for settings in tried.values() for one in settings])
            for name, settings in tried.items():
                best[name] = max(settings, key=lambda one: fmean(shares[one].values()))
        if best == before:
            break
    return best


def _along(setting: Setting, grid: Grid, place: int) -> list[Setting]:
    """The setting itself first, then with other values of the parameter at that place of the grid."""
    name, params = setting
    if place >= len(params):
        return [setting]
    key, own = params[place]
    others = [(name, (*params[:place], (key, value), *params[place + 1 :])) for value in grid[key] if value != own]
    return [setting, *others]


def _attained(workload: str, settings: Sequence[Setting], out: Path, jobs: int | None) -> dict[Setting, float]:
    """Attainment of each setting on one tuning workload."""
    if not settings:
        return {}
    scenario, changes = WORKLOADS[workload]
    labels = {f"{name} {dict(params)}": (name, params) for name, params in settings}
    raw = {label: {"policy": name, "tuned": False, **dict(params)} for label, (name, params) in labels.items()}
    file = with_settings(read_scenario(scenario), {**changes, "policies": raw})
    rows = run_points(file, list(labels), [SEED], out, jobs, swept=False,
                      on_row=lambda done, of, row: _tell(f"{workload}: {done} of {of}", row.label))  # fmt: skip
    return {labels[row.label]: row.outcome.figures["attainment"] or 0.0 for row in rows}


def _write(measured: Measured, best: Mapping[str, Setting]) -> None:
    sweep = [
        {"policy": one[0], "params": dict(one[1]), "attainment": found, "mean": fmean(found.values()),
         "taken": best[one[0]] == one}
        for one, found in sorted(measured.items(), key=lambda item: item[0][0])
    ]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**provenance([SEED]), "workloads": WORKLOADS, "sweep": sweep}, indent=1)
    (RESULTS / "sweep.json").write_text(text + "\n", "utf-8")
    lines = ["# Parameters of published policies, from `python -m benchmarks.lab.tune`; figures in sweep.json.", ""]
    for name in sorted(best):
        lines.append(f"[policies.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in best[name][1]]
        lines.append("")
        print(f"{name:16} {fmean(measured[best[name]].values()):.3f}  {dict(best[name][1])}")
    TUNED_FILE.write_text("\n".join(lines), "utf-8")


def _tell(progress: str, label: str) -> None:
    print(f"{progress:24} {label}", flush=True)


if __name__ == "__main__":
    main()
