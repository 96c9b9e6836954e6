"""How do GoodServe's and HexAGenT's own tables look here, with agentserve in them?"""

from collections.abc import Mapping
from typing import Any

from agentserve.lab.scenario import read_scenario
from agentserve.lab.searches import holds_up_to
from benchmarks.lab.plan import as_published, ours, published, strongest
from benchmarks.lab.runner import Asked, Study, mean, over_all, shares

GOODSERVE_SCALES = (1.0, 1.5, 2.0, 2.5, 3.0)
GOODSERVE_RATE, GOODSERVE_RUNS = 0.8, 300
POOLS = ("hexagent-hetero-1", "hexagent-hetero-2")
HEXAGENT_LOADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "graphs": ("dags-hot", {"limit": 300, "rate": 40.0}),
    "coding": ("coding-hot", {"limit": 120, "rate": 4.0}),
}
"""Runs of another scenario's workload, with these keys set anew: 40 runs/s are the paper's rate for BFCL and LATS."""
RIVALS = ("goodserve", "hexagent", "polyserve", "prefix_affinity")
SEEDS = (1, 2)
SEARCH_SEEDS = (1,)
"""One for the searches of HexAGenT's table: they take several simulations per seed."""
WITHIN = 1.15
REQUIRED = {"req95": 0.95, "req99": 0.99}
LEAST_SCALE, START_SCALE, MOST_SCALE = 1.0, 2.0, 9.0


def goodserve_table(study: Study) -> None:
    """GoodServe's table: goodput against the SLO scale, with its ablations."""
    good = {"policy": "goodserve"}
    policies = {
        **published(["goodserve"]),
        **as_published(),
        "goodserve, no predictor": {**good, "predictor": False},
        "goodserve, no migration": {**good, "migration": False},
        **published(name for name in strongest("goodserve-four") if name != "goodserve"),
        **ours(),
    }
    base = {"workload.limit": GOODSERVE_RUNS, "workload.rate": GOODSERVE_RATE}
    asked = {
        scale: Asked("goodserve-four", {**base, "slo.alpha": scale}, policies, SEEDS) for scale in GOODSERVE_SCALES
    }
    for scale, found in study.simulate("GoodServe's table", asked).items():
        for label, rows in found.items():
            study.add("goodserve", scale=scale, policy=label, attainment=shares(rows),
                      goodput=mean(rows, "arrival_goodput_per_s"))  # fmt: skip


def hexagent_table(study: Study) -> None:
    """HexAGenT's table: the smallest SLO scale with 95 and 99 % of the runs in time, by policy, pool and workload."""
    asked = {}
    for pool in POOLS:
        for load, (scenario, changes) in HEXAGENT_LOADS.items():
            settings = {"workload": {**read_scenario(scenario).raw["workload"], **changes}}
            for label, params in {**published(RIVALS), **ours()}.items():
                asked[f"{pool}, {load}", label] = Asked(pool, settings, {label: params}, SEARCH_SEEDS)
    starts = dict.fromkeys(asked, 1 / START_SCALE)
    reach = (START_SCALE / MOST_SCALE, START_SCALE / LEAST_SCALE)
    curves: dict[tuple[str, str], dict[int, dict[float, float]]] = {key: {} for key in asked}
    for name, level in REQUIRED.items():
        found = study.search(f"HexAGenT's {name.title()}", asked, "slo.alpha", level, starts, reach, WITHIN,
                             inverse=True)  # fmt: skip
        for key, by_seed in found.items():
            for seed, curve in by_seed.items():
                curves[key].setdefault(seed, {}).update(curve)
    for (pool, label), by_seed in curves.items():
        whole = over_all(by_seed)
        found_at = {name: scale_at(whole, level) for name, level in REQUIRED.items()}
        each = {f"{name}_by_seed": [scale_at(by_seed[seed], level) for seed in sorted(by_seed)]
                for name, level in REQUIRED.items()}  # fmt: skip
        study.add("hexagent", workload=pool, policy=label, **found_at, **each,
                  curve={f"{1 / value:.3f}": share for value, share in sorted(whole.items())})  # fmt: skip


def scale_at(curve: dict[float, float], level: float) -> float | None:
    """The smallest SLO scale that holds the level, of a curve by 1 / scale; None beyond the largest looked at."""
    at = holds_up_to(curve, level).at
    return None if at is None else 1 / at
