"""At which rates do the best published policies attain 95, 80 and 50 %? Recorded, so that the study need not search.

    python -m benchmarks.lab.calibrate

For each workload attainment is taken at a ladder of rates, with one seed and the published policies that tuning found
strongest; the rate for a level is interpolated on the best of them at each rate.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentserve.lab.points import with_settings
from agentserve.lab.scenario import read_scenario
from agentserve.lab.sweep import run_points
from benchmarks.lab.provenance import RESULTS, provenance

LOADS = RESULTS / "loads.json"
SEED = 201
LEVELS = (0.95, 0.8, 0.5)
STRONGEST = ("polyserve", "hexagent", "goodserve", "prefix_affinity", "session_affinity")
LADDERS: Mapping[str, tuple[float, ...]] = {
    "coding-hot": (0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.8, 2.5),
    "coding-bursts": (0.03, 0.06, 0.1, 0.18, 0.3, 0.45, 0.6, 0.9, 1.4),
    "dags-hot": (3.0, 4.0, 5.0, 6.0, 7.0, 8.5),
    "mooncake": (0.15, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.6),
    "azure-conv": (15.0, 20.0, 23.0, 25.0, 27.0, 30.0),
    "tenants": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
}
LIMITS: Mapping[str, int] = {
    "coding-hot": 300, "coding-bursts": 300, "dags-hot": 600, "mooncake": 700, "azure-conv": 1200, "tenants": 500,
}  # fmt: skip


def loads() -> dict[str, dict[str, float]]:
    """Rate by workload and level (`95`, `80`, `50`)."""
    return dict(json.loads(LOADS.read_text("utf-8"))["rates"])


def main() -> None:
    """Simulate the ladders, interpolate, record."""
    rates: dict[str, dict[str, float]] = {}
    curves: dict[str, Any] = {}
    for workload, ladder in LADDERS.items():
        settings = {
            "workload.limit": LIMITS[workload],
            "sweep": {"rates": list(ladder)},
        }
        file = with_settings(read_scenario(workload), settings)
        rows = run_points(file, STRONGEST, [SEED], Path("out/lab/calibrate") / workload)
        curve = {rate: {} for rate in ladder}
        for row in rows:
            curve[row.axes["workload.rate"]][row.label] = row.outcome.figures["attainment"] or 0.0
        curves[workload] = [{"rate": rate, **found} for rate, found in curve.items()]
        best = [max(found.values()) for found in curve.values()]
        rates[workload] = {f"{level:.0%}".rstrip("%"): rate_at(ladder, best, level) for level in LEVELS}
        print(workload, rates[workload], [round(share, 3) for share in best], flush=True)
    text = json.dumps({**provenance([SEED]), "rates": rates, "curves": curves}, indent=1)
    LOADS.write_text(text + "\n", "utf-8")


def rate_at(rates: tuple[float, ...], shares: list[float], level: float) -> float:
    """The rate at which attainment falls through a level, by linear interpolation; the ladder's end if it does not."""
    for i in range(1, len(rates)):
        high, low = shares[i - 1], shares[i]
        if high >= level > low:
            return round(rates[i - 1] + (rates[i] - rates[i - 1]) * (high - level) / (high - low), 3)
    return rates[0] if shares[0] < level else rates[-1]


if __name__ == "__main__":
    main()
