"""Which parameters serve each published policy best? A sweep on tuning workloads, recorded in benchmarks/results.

    python -m benchmarks.lab.tune

The tuning workloads share no run with those of the study: the second slice of coding sessions, and generated runs of
other seeds, each at a moderate load and a hot one. The setting with the highest mean attainment is taken; our own
policy is not swept here. Batch caps at the gateway (16, for those that order their own queues) were tried before at the
moderate loads and never taken.
"""

import json
import sys
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from agentserve.lab.points import with_settings
from agentserve.lab.scenario import read_scenario
from agentserve.lab.sweep import Row, run_points
from benchmarks.lab.provenance import provenance
from scheduler.policies import policy_names

RESULTS = Path(__file__).parents[1] / "results"
TUNED = RESULTS / "tuned.toml"
SEED = 101
WORKLOADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "coding": ("coding-hot", {"workload.trace": "coding-agent-2", "workload.rate": 0.6, "workload.limit": 180}),
    "coding, hot": ("coding-hot", {"workload.trace": "coding-agent-2", "workload.rate": 1.1, "workload.limit": 180}),
    "graphs": ("dags-hot", {"workload.rate": 7.0, "workload.limit": 300}),
    "graphs, hot": ("dags-hot", {"workload.rate": 11.0, "workload.limit": 300}),
}
GRIDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "autellix": {"order": ("plas", "atlas"), "by_speed": (False, True)},
    "goodserve": {"margin": (1.0, 1.5, 2.0, 3.0), "min_gain_s": (0.0, 1.0)},
    "hexagent": {"prefix": (False, True)},
    "hexgen_flow": {"alpha": (0.0, 0.2, 0.5), "prefix": (False, True)},
    "jitserve": {"reward": ("tokens", "run")},
    "kairos": {"earliest": (False, True)},
    "least_kv": {"as_share": (True, False)},
    "least_requests": {"by_speed": (False, True)},
    "llmd_least": {"explore": (0.0, 0.01), "ttft_share": (0.0, 0.3)},
    "llumnix": {"low_freeness": (1.0, 3.0, 10.0), "by_speed": (False, True)},
    "lowest_tpm": {"by_speed": (False, True)},
    "polyserve": {"highest": (True, False), "margin": (1.0, 2.0)},
    "power_of_two": {"by_speed": (False, True)},
    "preble": {"imbalance": (1.2, 1.5, 3.0), "slack_s": (1.0, 5.0)},
    "prefix_affinity": {"cap": (1.1, 1.5, 2.5), "slack": (0.0, 2.0), "load": ("calls", "tokens", "seconds")},
    "random": {},
    "round_robin": {},
    "session_affinity": {"by_hash": (False, True), "by_speed": (False, True)},
}


def tuned() -> dict[str, dict[str, Any]]:
    """The recorded parameters by policy, for scenarios to use."""
    return dict(tomllib.loads(TUNED.read_text("utf-8"))["policies"])


def settings_of(policy: str) -> list[dict[str, Any]]:
    """Every setting of a policy's grid."""
    grid = GRIDS[policy]
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def main() -> None:
    """Sweep, then write sweep.json and tuned.toml."""
    missing = set(policy_names()) - set(GRIDS) - {"agentserve"}
    if missing:
        sys.exit(f"no grid for {', '.join(sorted(missing))}")
    variants = {f"{name}-{i}": (name, one) for name in sorted(GRIDS) for i, one in enumerate(settings_of(name))}
    attained: dict[str, dict[str, float]] = {label: {} for label in variants}
    for workload, (scenario, settings) in WORKLOADS.items():
        raw = {label: {"policy": name, **params} for label, (name, params) in variants.items()}
        file = with_settings(read_scenario(scenario), {**settings, "policies": raw})
        rows = run_points(file, list(variants), [SEED], Path("out/lab/tune"), swept=False, on_row=_tell)
        for row in rows:
            attained[row.label][workload] = row.outcome.figures["attainment"] or 0.0
    _write(variants, attained)


def _write(variants: Mapping[str, tuple[str, dict[str, Any]]], attained: Mapping[str, Mapping[str, float]]) -> None:
    mean = {label: sum(found.values()) / len(found) for label, found in attained.items()}
    best: dict[str, str] = {}
    for label, (name, _) in variants.items():
        if name not in best or mean[label] > mean[best[name]]:
            best[name] = label
    sweep = [
        {"policy": name, "params": params, "attainment": dict(attained[label]), "mean": mean[label],
         "taken": best[name] == label}
        for label, (name, params) in variants.items()
    ]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**provenance([SEED]), "workloads": WORKLOADS, "sweep": sweep}, indent=1)
    (RESULTS / "sweep.json").write_text(text + "\n", "utf-8")
    lines = ["# Parameters of published policies, from `python -m benchmarks.lab.tune`; figures in sweep.json.", ""]
    for name in sorted(best):
        lines.append(f"[policies.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in variants[best[name]][1].items()]
        lines.append("")
        print(f"{name:16} {mean[best[name]]:.3f}  {variants[best[name]][1]}")
    TUNED.write_text("\n".join(lines), "utf-8")


def _tell(done: int, of: int, row: Row) -> None:
    print(f"\r{row.scenario}: {done} of {of} simulations", end="\n" if done == of else "", flush=True)


if __name__ == "__main__":
    main()
