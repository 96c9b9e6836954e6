"""What does each part of agentserve's price give? The policy without it, where the best published attains 50 %."""

from collections.abc import Mapping
from typing import Any

from benchmarks.lab.plan import OURS, loads
from benchmarks.lab.runner import Asked, Study, mean, shares

PARTS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "no price of calls to come": {"coming_weight": 0.0, "queue_weight": 0.0},
    "no price of residents": {"resident_weight": 0.0},
    "nobody else priced": {"coming_weight": 0.0, "queue_weight": 0.0, "resident_weight": 0.0, "life_weight": 0.0},
    "new runs never wait": {"life_weight": 0.0},
    "lost runs do not give way": {"lost_loss": 100.0},
    "no late moves": {"late_moves": False},
    "a second costs the same on every instance": {"capability_weight": 0.0},
    "splits only where half as quick again": {"split_gain_share": 0.5},
}


def ablations(study: Study) -> None:
    """One row per workload and part left out."""
    policies = {part: {"policy": OURS, **params} for part, params in PARTS.items()}
    asked = {}
    for workload in ("dags-hot",) if study.quick else ("coding-hot", "dags-hot"):
        settings = {"workload.rate": loads()[workload]["50"], "workload.limit": study.limit(workload)}
        asked[workload] = Asked(workload, settings, policies, study.seeds[:2])
    for workload, found in study.simulate("parts of the policy", asked).items():
        for part, rows in found.items():
            study.add("ablations", workload=workload, part=part, attainment=shares(rows),
                      missed_p99=mean(rows, "missed_slowdown_p99"))  # fmt: skip
