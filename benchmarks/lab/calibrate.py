"""At which rates do the best published policies attain 95, 80 and 50 %? Recorded, so that the study need not search.

    python -m benchmarks.lab.calibrate [--jobs N] [--out DIR]

For each workload the rate is bisected at which the best of the published policies that tuning found strongest passes
the level, with one seed that the study does not use. Where a level is not attained at any load, because some runs
cannot end in time even alone, it is taken as a share of the most that is attained. What is simulated is kept in DIR.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from agentserve.lab.points import base_point
from agentserve.lab.searches import holds_up_to, search, side_by_side
from benchmarks.lab.plan import LEVELS, LOADS, WORKLOADS, published, scenario, strongest
from benchmarks.lab.provenance import provenance
from benchmarks.lab.runner import Asked, Study, shares

SEED: Final = 201
WITHIN: Final = 1.15
REACH: Final = (1 / 32, 4.0)
"""How many times the scenario's own rate a search goes down and up."""

Told = dict[str, dict[float, dict[str, float]]]
"""Attainment by workload, rate and policy."""


def main() -> None:
    """Search, then write loads.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="simulations at once (default: the number of cores)")
    parser.add_argument("--out", type=Path, default=Path("out/lab/calibrate"), help="where simulations are kept")
    chosen = parser.parse_args()
    study = Study(chosen.out, chosen.jobs, False, Console())
    told: Told = {workload: {} for workload in WORKLOADS}
    for level in ("80", "50", "95"):
        _search(study, level, told, dict.fromkeys(WORKLOADS, int(level) / 100))
    lower = {workload: 0.95 * most for workload, curves in told.items() if (most := max(_best(curves).values())) < 0.95}
    _search(study, "95", told, lower)
    found = {
        workload: {level: load_at(_best(curves), int(level) / 100) for level in LEVELS}
        for workload, curves in told.items()
    }
    plain = {
        **provenance([SEED]),
        "rates": {
            workload: {level: one["rate"] for level, one in levels.items()} for workload, levels in found.items()
        },
        "loads": found,
        "curves": {name: [{"rate": rate, **rows[rate]} for rate in sorted(rows)] for name, rows in told.items()},
    }
    LOADS.write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    for workload, levels in found.items():
        print(workload, {level: (one["rate"], round(one["attained"], 3)) for level, one in levels.items()})


def load_at(curve: Mapping[float, float], level: float) -> dict[str, Any]:
    """The rate of a level and what is attained there: the level itself, or that share of the most that is attained."""
    most = max(curve.values())
    attained = level if most >= level else level * most
    rate = holds_up_to(curve, attained).at
    return {"rate": float(f"{rate:.3g}"), "attained": attained, "reached": most >= level}


def _search(study: Study, level: str, told: Told, shares_wanted: Mapping[str, float]) -> None:
    def probe(rates: Mapping[str, float]) -> dict[str, float]:
        asked = {
            workload: Asked(workload, {"workload.rate": rate, "workload.limit": WORKLOADS[workload]},
                            published(strongest(workload)), [SEED])
            for workload, rate in rates.items()
        }  # fmt: skip
        for workload, found in study.simulate(f"the {level} % load", asked).items():
            told[workload][rates[workload]] = {label: shares(rows)[0] for label, rows in found.items()}
        return {workload: _best(told[workload])[rate] for workload, rate in rates.items()}

    searches = {}
    for workload, share in shares_wanted.items():
        own = base_point(scenario(workload, {}, {})).scenario.workload.rate or 1.0
        known = _best(told[workload])
        searches[workload] = search(share, own, own * REACH[0], own * REACH[1], within=WITHIN, known=known)
    side_by_side(searches, probe)


def _best(curves: Mapping[float, Mapping[str, float]]) -> dict[float, float]:
    return {rate: max(found.values()) for rate, found in curves.items()}


if __name__ == "__main__":
    main()
