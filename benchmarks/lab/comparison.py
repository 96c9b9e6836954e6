"""Is agentserve ahead of the published policies? By workload, load and SLO rule, and against what is possible."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentserve.lab.bounds import upper_bound
from agentserve.lab.fleets import fleet_of, profiles_of
from agentserve.lab.loads import slo_rule, workload_of
from agentserve.lab.points import base_point
from agentserve.lab.sweep import Row
from benchmarks.lab.plan import (
    AS_PUBLISHED,
    LEVELS,
    OURS,
    RULES,
    as_published,
    everyone,
    loads,
    ours,
    published,
    scenario,
    slo_table,
    strongest,
)
from benchmarks.lab.runner import Asked, Study, mean, shares

MAIN = "best published and agentserve"


def main_table(study: Study) -> None:
    """Every workload at the loads where the best published policy attains 95, 80 and 50 %."""
    asked = {}
    for workload in study.workloads:
        policies = {**published(strongest(workload)), **as_published(), **ours()}
        for level in ("80", "50") if study.quick else LEVELS:
            asked[workload, level] = Asked(workload, _at(study, workload, level), policies, study.seeds)
    for (workload, level), found in study.simulate(MAIN, asked).items():
        rate = asked[workload, level].settings["workload.rate"]
        _compare(study, "main", found, workload=workload, level=level, rate=rate)


def bounds(study: Study) -> None:
    """What no policy can exceed, beside what was attained in the main table."""
    for row in study.tables.get("main", ()):
        settings = _at(study, row["workload"], row["level"])
        found = [_bound(row["workload"], settings, seed) for seed in study.seeds]
        row["bound"] = None if any(share is None for share in found) else found


def every_policy(study: Study) -> None:
    """All policies, one seed, at the load where the best published attains 80 %."""
    policies = {**published(everyone()), **ours()}
    asked = {
        workload: Asked(workload, _at(study, workload, "80"), policies, [1])
        for workload in (study.workloads[:1] if study.quick else study.workloads)
    }
    for workload, found in study.simulate("all policies", asked).items():
        for label, rows in found.items():
            study.add("every", workload=workload, policy=label, attainment=shares(rows)[0],
                      params=dict(rows[0].outcome.params))  # fmt: skip


def rules(study: Study) -> None:
    """The same at the 50 % load under each SLO rule; others than the scenario's own may tell less of a run's length."""
    asked = {}
    for workload in study.workloads:
        own = base_point(scenario(workload, {}, {})).scenario.slo.rule
        policies = {**published(strongest(workload)), **ours()}
        for rule in RULES:
            slo = {} if rule == own else {"slo": slo_table(workload, rule)}
            settings = {**_at(study, workload, "50"), **slo}
            asked[workload, rule] = Asked(workload, settings, policies, study.seeds[:1])
    for (workload, rule), found in study.simulate("SLO rules", asked).items():
        _compare(study, "rules", found, workload=workload, level="50", rule=rule)


def _at(study: Study, workload: str, level: str) -> dict[str, Any]:
    return {"workload.rate": loads()[workload][level], "workload.limit": study.limit(workload)}


def _bound(workload: str, settings: Mapping[str, Any], seed: int) -> float | None:
    file = scenario(workload, settings, {})
    own = base_point(file).scenario
    profiles = profiles_of(own, file.folder)
    instances = fleet_of(own, profiles)
    load = workload_of(own.workload, file.folder, seed)
    rule = slo_rule(own.slo, own.model, instances, profiles, seed)
    return upper_bound(load, {plan.run_id: rule.slo_s(plan) for plan in load.plans}, instances, profiles).share


def _compare(study: Study, table: str, found: Mapping[str, Sequence[Row]], **about: Any) -> None:
    """One row per point: what each policy attained by seed, and who was the best published."""
    by_label = {label: shares(rows) for label, rows in found.items()}
    best = max((label for label in by_label if label not in (OURS, AS_PUBLISHED)), key=lambda one: sum(by_label[one]))
    missed = {label: mean(rows, "missed_slowdown_p99") for label, rows in found.items()}
    goodput = {label: mean(rows, "goodput_per_s") for label, rows in found.items()}
    study.add(table, **about, attainment=by_label, best=best, missed_p99=missed, goodput=goodput)
