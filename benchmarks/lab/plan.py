"""What does the study compare? Its workloads, loads, seeds and SLO rules, and the policies it is held against."""

import json
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Final

from agentserve.lab.fleets import profiles_of
from agentserve.lab.loads import workload_of
from agentserve.lab.plans import solo_s
from agentserve.lab.points import base_point, with_settings
from agentserve.lab.scenario import ScenarioFile, read_scenario
from benchmarks.lab.provenance import RESULTS
from benchmarks.lab.tune import GRIDS

OURS: Final = "agentserve"
AS_PUBLISHED: Final = "goodserve, as published"
LOADS: Final = RESULTS / "loads.json"
LEVELS: Final = ("95", "80", "50")
RULES: Final = ("solo_scale", "solo_scale_lognormal", "fixed")
WORKLOADS: Final[Mapping[str, int]] = {
    "coding-hot": 300, "coding-bursts": 300, "dags-hot": 500, "mooncake": 700, "azure-conv": 1200, "tenants": 400,
}  # fmt: skip
"""Runs per simulation by scenario."""
BURSTY: Final = ("coding-bursts", "tenants")
"""Arrivals with a coefficient of variation of 4 or more."""
TUNED_ON: Final[Mapping[str, tuple[str, ...]]] = {
    "coding-hot": ("coding", "coding, hot"), "coding-bursts": ("coding, hot", "bursts"),
    "dags-hot": ("graphs", "graphs, hot"), "mooncake": ("mooncake",), "azure-conv": ("azure",),
    "tenants": ("graphs, hot", "tenants"), "goodserve-four": ("coding", "graphs"),
}  # fmt: skip
"""The tuning workloads that are most like a scenario."""
ALWAYS: Final = ("goodserve", "prefix_affinity")
STRONGEST: Final = 2
"""So many policies more, the best on each tuning workload that is most like the scenario."""
FIXED_FACTOR: Final[Mapping[str, float]] = {"coding-hot": 8.0, "coding-bursts": 8.0}
"""SLO over the median solo time of the class; coding turns are so unlike that eight times it are given, else alpha."""


def scenario(workload: str, settings: Mapping[str, Any], policies: Mapping[str, Mapping[str, Any]]) -> ScenarioFile:
    """A shipped scenario without its sweep, with settings and policies of the study's own."""
    file = with_settings(read_scenario(workload), {"sweep": {}, **settings})
    return with_settings(file, {"policies": dict(policies)})


def loads() -> dict[str, dict[str, float]]:
    """Rate by workload and level, as benchmarks.lab.calibrate recorded it."""
    return dict(json.loads(LOADS.read_text("utf-8"))["rates"])


def published(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Published policies by label, each as tuned."""
    return {name: {"policy": name} for name in names}


def as_published() -> dict[str, dict[str, Any]]:
    """GoodServe without anything that tuning found."""
    return {AS_PUBLISHED: {"policy": "goodserve", "tuned": False}}


def ours(**params: Any) -> dict[str, dict[str, Any]]:
    """Our policy, by its label."""
    return {OURS: {"policy": OURS, **params}}


def everyone() -> list[str]:
    """All published policies."""
    return sorted(GRIDS)


def strongest(workload: str) -> list[str]:
    """Published policies that tuning found best on workloads like this one, and those that are always compared."""
    sweep = json.loads((RESULTS / "sweep.json").read_text("utf-8"))["sweep"]
    return ranked(sweep, TUNED_ON[workload])


def ranked(sweep: Iterable[Mapping[str, Any]], tuning: Iterable[str]) -> list[str]:
    """The best on each tuning workload with the parameters taken, by name; those that never differ count as one."""
    taken = sorted((row for row in sweep if row["taken"]), key=lambda row: (row["policy"] not in ALWAYS, row["policy"]))
    unlike = {json.dumps(row["attainment"], sort_keys=True): row for row in reversed(taken)}.values()
    names = set(ALWAYS)
    for one in tuning:
        known = [row for row in unlike if one in row["attainment"]]
        known.sort(key=lambda row: (-row["attainment"][one], row["policy"]))
        names.update(row["policy"] for row in known[:STRONGEST])
    return sorted(names)


def slo_table(workload: str, rule: str) -> dict[str, Any]:
    """The scenario's SLO under another rule; fixed seconds are from other runs than those of the study's seeds."""
    file = with_settings(read_scenario(workload), {"sweep": {}, "workload.limit": 400})
    own = base_point(file).scenario
    if rule != "fixed":
        return {**own.slo.model_dump(exclude_unset=True, mode="json"), "rule": rule}
    profile = profiles_of(own, file.folder)(own.slo.gpu or "h100", own.model)
    times: dict[str, list[float]] = {}
    for plan in workload_of(own.workload, file.folder, 999).plans:
        times.setdefault(plan.workflow, []).append(solo_s(plan, profile))
    factor = FIXED_FACTOR.get(workload, own.slo.scale)
    return {"rule": "fixed", "seconds": {name: round(factor * median(found), 1) for name, found in times.items()}}
