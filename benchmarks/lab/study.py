"""Does agentserve serve more runs in time than any published policy? All experiments of the lab, from one command.

    python -m benchmarks.lab.study [--quick] [--jobs N] [--out DIR]

Rates come from loads.json, the published policies are as tuned (agentserve/lab/tuned.toml). What is done is
kept in DIR, so that the same command goes on after Ctrl-C. Writes study.json (study-quick.json) to benchmarks/results,
and docs/lab-results.md with its pictures from the whole study.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from agentserve.cli.runs import progress_bar
from agentserve.lab.bounds import upper_bound
from agentserve.lab.fleets import fleet_of, profiles_of
from agentserve.lab.loads import slo_rule, workload_of
from agentserve.lab.plans import solo_s
from agentserve.lab.points import base_point, with_settings
from agentserve.lab.scenario import Scenario, ScenarioFile, read_scenario
from agentserve.lab.sweep import Row, run_points
from benchmarks.lab.calibrate import LIMITS, loads
from benchmarks.lab.provenance import RESULTS, provenance
from benchmarks.lab.tune import GRIDS
from benchmarks.lab.write import write_pages

OURS = "agentserve"
STRONGEST = ("polyserve", "hexagent", "goodserve", "prefix_affinity", "session_affinity")
LEVELS = ("95", "80", "50")
RULES = ("solo_scale", "solo_scale_lognormal", "fixed")
GOODSERVE_SCALES = (1.0, 1.5, 2.0, 2.5, 3.0)
HEXAGENT_SCALES = (1.0, 1.2, 1.4, 1.7, 2.2, 3.0, 4.5)
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "no price of calls to come": {"coming_weight": 0.0, "queue_weight": 0.0},
    "no price of residents": {"resident_weight": 0.0},
    "nobody else priced": {"coming_weight": 0.0, "queue_weight": 0.0, "resident_weight": 0.0, "life_weight": 0.0},
    "new runs never wait": {"life_weight": 0.0},
    "lost runs do not give way": {"lost_loss": 100.0},
    "no late moves": {"late_moves": False},
    "a second costs the same on every instance": {"capability_weight": 0.0},
    "splits wherever quicker": {"split_gain_share": 0.0},
}


@dataclass(slots=True)
class Study:
    """Runs the experiments one after the other and gathers their tables."""

    out: Path
    jobs: int | None
    quick: bool
    console: Console
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the main comparison."""
        return [1] if self.quick else [1, 2, 3]

    @property
    def workloads(self) -> Sequence[str]:
        """The workloads that are compared."""
        return ("coding-hot", "dags-hot") if self.quick else tuple(LIMITS)

    def limit(self, workload: str) -> int:
        """Runs per simulation."""
        return LIMITS[workload] // 4 if self.quick else LIMITS[workload]

    def simulate(
        self,
        title: str,
        workload: str,
        settings: Mapping[str, Any],
        variants: Mapping[str, Mapping[str, Any]],
        seeds: Sequence[int],
    ) -> dict[str, list[Row]]:
        """Rows by label, over seeds; `variants` are parameters (with `policy`) by label."""
        file = with_settings(read_scenario(workload), {**settings, "policies": variants, "sweep": {}})
        found: dict[str, list[Row]] = {label: [] for label in variants}
        with progress_bar(self.console) as progress:
            task = progress.add_task(title, total=len(variants) * len(seeds))

            def on_row(done: int, of: int, row: Row) -> None:
                progress.update(task, completed=done, total=of)

            rows = run_points(file, list(variants), seeds, self.out, self.jobs, swept=False, on_row=on_row)
        for row in rows:
            found[row.label].append(row)
        return found

    def add(self, table: str, **cells: Any) -> None:
        """One row of a table."""
        self.tables.setdefault(table, []).append(cells)


def main() -> None:
    """Run all experiments and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of everything, in about three minutes")
    parser.add_argument("--jobs", type=int, help="simulations at once (default: the number of cores)")
    parser.add_argument("--out", type=Path, help="where simulations are kept (default: out/lab/study)")
    chosen = parser.parse_args()
    out = chosen.out or Path("out/lab") / ("study-quick" if chosen.quick else "study")
    study = Study(out, chosen.jobs, chosen.quick, Console())
    parts: list[Callable[[Study], None]] = [main_table, every_policy, rules, ablations]
    parts += [] if chosen.quick else [goodserve_table, hexagent_table, capacity, fewer_gpus, bounds]
    for part in parts:
        part(study)
    facts = provenance(study.seeds)
    name = "study-quick.json" if chosen.quick else "study.json"
    (RESULTS / name).write_text(json.dumps({**facts, "tables": study.tables}, indent=1) + "\n", "utf-8")
    write_pages(study.tables, facts, study.console, whole=not chosen.quick)


def published(names: Iterable[str] = STRONGEST) -> dict[str, dict[str, Any]]:
    """Published policies with their best parameters."""
    return {name: {"policy": name} for name in names}


def ours(**params: Any) -> dict[str, Any]:
    """Our policy."""
    return {"policy": OURS, **params}


def main_table(study: Study) -> None:
    """Every workload at the loads where the best published policy attains 95, 80 and 50 %."""
    for workload in study.workloads:
        for level in ("80", "50") if study.quick else LEVELS:
            settings = {"workload.rate": loads()[workload][level], "workload.limit": study.limit(workload)}
            title = f"{workload} at the {level} % load"
            found = study.simulate(title, workload, settings, {**published(), OURS: ours()}, study.seeds)
            _compare(study, "main", found, workload=workload, level=level, rate=settings["workload.rate"])


def every_policy(study: Study) -> None:
    """All policies, one seed, at the load where the best published attains 80 %."""
    for workload in study.workloads[:1] if study.quick else ("coding-hot", "dags-hot"):
        settings = {"workload.rate": loads()[workload]["80"], "workload.limit": study.limit(workload)}
        variants = {**published(sorted(GRIDS)), OURS: ours()}
        found = study.simulate(f"{workload}, all policies", workload, settings, variants, [1])
        for label, rows in found.items():
            study.add("every", workload=workload, policy=label, attainment=_mean(rows, "attainment"),
                      params=dict(rows[0].outcome.params))  # fmt: skip


def rules(study: Study) -> None:
    """The same under SLO rules that tell less of a run's true length."""
    for workload in ("coding-hot", "dags-hot"):
        for rule in RULES[1:]:
            for level in ("50",):
                settings = {
                    "workload.rate": loads()[workload][level],
                    "workload.limit": study.limit(workload),
                    "slo": _rule(workload, rule),
                }
                title = f"{workload} at the {level} % load, {rule}"
                found = study.simulate(title, workload, settings, {**published(), OURS: ours()}, study.seeds[:1])
                _compare(study, "rules", found, workload=workload, level=level, rule=rule)


def ablations(study: Study) -> None:
    """What each part of our policy gives, at the load where the best published attains 50 %."""
    for workload in ("dags-hot",) if study.quick else ("coding-hot", "dags-hot"):
        settings = {"workload.rate": loads()[workload]["50"], "workload.limit": study.limit(workload)}
        variants = {f"agentserve, {label}": ours(**params) for label, params in ABLATIONS.items()}
        found = study.simulate(f"{workload}, parts of the policy", workload, settings, variants, study.seeds[:2])
        for label, rows in found.items():
            study.add("ablations", workload=workload, part=label.partition(", ")[2],
                      attainment=[row.outcome.figures["attainment"] for row in rows],
                      missed_p99=_mean(rows, "missed_slowdown_p99"))  # fmt: skip


def goodserve_table(study: Study) -> None:
    """GoodServe's table: goodput against the SLO scale, with its ablations."""
    good = published(["goodserve"])["goodserve"]
    variants = {
        "goodserve": good,
        "goodserve, as published": {"policy": "goodserve", "tuned": False},
        "goodserve, no predictor": {**good, "predictor": False},
        "goodserve, no migration": {**good, "migration": False},
        **published(["prefix_affinity", "polyserve"]),
        OURS: ours(),
    }
    for scale in GOODSERVE_SCALES:
        settings = {"workload.limit": 400, "workload.rate": 0.8, "slo.alpha": scale}
        found = study.simulate(f"goodserve-four, SLO scale {scale:g}", "goodserve-four", settings, variants, [1])
        for label, rows in found.items():
            study.add("goodserve", scale=scale, policy=label, attainment=_mean(rows, "attainment"),
                      goodput=_mean(rows, "arrival_goodput_per_s"))  # fmt: skip


def hexagent_table(study: Study) -> None:
    """HexAGenT's table: the smallest SLO scale with 95 and 99 % of the runs in time."""
    variants = {**published(["hexagent", "goodserve", "polyserve"]), OURS: ours()}
    for workload, rate in (("hexagent-hetero-1", 18.0), ("hexagent-hetero-2", 22.0)):
        shares: dict[str, list[float]] = {label: [] for label in variants}
        for scale in HEXAGENT_SCALES:
            settings = {"workload.limit": 400, "workload.rate": rate, "slo.alpha": scale}
            found = study.simulate(f"{workload}, SLO scale {scale:g}", workload, settings, variants, [1])
            for label, rows in found.items():
                shares[label].append(_mean(rows, "attainment"))
        for label, curve in shares.items():
            study.add("hexagent", workload=workload, policy=label, scales=list(HEXAGENT_SCALES), attainment=curve,
                      req95=_scale_at(curve, 0.95), req99=_scale_at(curve, 0.99))  # fmt: skip


def capacity(study: Study) -> None:
    """Runs per second at 95 % attainment: ours against the best published, on a ladder above its load."""
    for workload in ("coding-hot", "dags-hot", "azure-conv"):
        base = loads()[workload]["95"]
        ladder = [base * factor for factor in (0.8, 1.15, 1.6)]
        curves: dict[str, list[float]] = {}
        for rate in ladder:
            settings = {"workload.rate": rate, "workload.limit": study.limit(workload)}
            variants = {**published(["polyserve", "goodserve"]), OURS: ours()}
            found = study.simulate(f"{workload}, {rate:.3g} runs/s", workload, settings, variants, [1])
            for label, rows in found.items():
                curves.setdefault(label, []).append(_mean(rows, "attainment"))
        at95 = {label: _rate_at(ladder, curve, 0.95) for label, curve in curves.items()}
        study.add("capacity", workload=workload, ladder=ladder, curves=curves, at95=at95)


def fewer_gpus(study: Study) -> None:
    """The same attainment with less hardware: one A100 of two taken away."""
    for workload in ("dags-hot",):
        settings = {"workload.rate": loads()[workload]["80"], "workload.limit": study.limit(workload)}
        fleet = [{"gpu": "a100-80g"}, {"gpu": "h100"}, {"gpu": "h200"}]
        whole = study.simulate(f"{workload}, all GPUs", workload, settings, {**published(), OURS: ours()}, [1])
        less = study.simulate(
            f"{workload}, one A100 less", workload, {**settings, "fleet": fleet}, {**published(), OURS: ours()}, [1]
        )
        for label in whole:
            study.add("fewer", workload=workload, policy=label, whole=_mean(whole[label], "attainment"),
                      less=_mean(less[label], "attainment"))  # fmt: skip


def bounds(study: Study) -> None:
    """What no policy can exceed, beside what was attained."""
    for row in study.tables["main"]:
        settings = {"workload.rate": row["rate"], "workload.limit": study.limit(row["workload"])}
        scenario, file = _scenario(row["workload"], settings)
        profiles = profiles_of(scenario, file.folder)
        instances = fleet_of(scenario, profiles)
        workload = workload_of(scenario.workload, file.folder, 1)
        rule = slo_rule(scenario.slo, scenario.model, instances, profiles, 1)
        found = upper_bound(workload, {plan.run_id: rule.slo_s(plan) for plan in workload.plans}, instances, profiles)
        row["bound"] = found.share


def _compare(study: Study, table: str, found: Mapping[str, Sequence[Row]], **about: Any) -> None:
    """One row per point: what each policy attained by seed, and who was the best published."""
    shares = {label: [row.outcome.figures["attainment"] for row in rows] for label, rows in found.items()}
    best = max((label for label in shares if label != OURS), key=lambda label: sum(shares[label]))
    missed = {label: _mean(found[label], "missed_slowdown_p99") for label in (best, OURS)}
    study.add(table, **about, attainment=shares, best=best, missed_p99=missed)
    theirs, mine = _mean(found[best], "attainment"), _mean(found[OURS], "attainment")
    study.console.print(f"  best published {best}: {theirs:.3f}; {OURS}: {mine:.3f}", highlight=False)


def _rule(workload: str, rule: str) -> dict[str, Any]:
    if rule != "fixed":
        return {"rule": rule, "alpha": 2.0, "sigma": 0.5, "gpu": "h100"}
    scenario, file = _scenario(workload, {"workload.limit": 400})
    profile = profiles_of(scenario, file.folder)("h100", scenario.model)
    times: dict[str, list[float]] = {}
    for plan in workload_of(scenario.workload, file.folder, 999).plans:
        times.setdefault(plan.workflow, []).append(solo_s(plan, profile))
    # Twice the median of its class, whatever the run; coding turns are so unlike that eight times it are given.
    factor = 8.0 if workload == "coding-hot" else 2.0
    return {"rule": "fixed", "seconds": {name: round(factor * median(found), 1) for name, found in times.items()}}


def _scenario(workload: str, settings: Mapping[str, Any]) -> tuple[Scenario, ScenarioFile]:
    file = with_settings(read_scenario(workload), {**settings, "sweep": {}})
    return base_point(file).scenario, file


def _mean(rows: Sequence[Row], figure: str) -> float:
    values = [value for row in rows if (value := row.outcome.figures.get(figure)) is not None]
    return sum(values) / len(values) if values else 0.0


def _scale_at(curve: Sequence[float], share: float) -> float | None:
    """The smallest SLO scale from which on that share is in time, interpolated; None beyond the largest."""
    reached = [i for i in range(len(curve)) if min(curve[i:]) >= share]
    if not reached:
        return None
    i = reached[0]
    if i == 0:
        return HEXAGENT_SCALES[0]
    part = (share - curve[i - 1]) / (curve[i] - curve[i - 1])
    return HEXAGENT_SCALES[i - 1] + (HEXAGENT_SCALES[i] - HEXAGENT_SCALES[i - 1]) * part


def _rate_at(rates: Sequence[float], curve: Sequence[float], share: float) -> float | None:
    """The largest rate at which that share is in time, interpolated; None below the smallest."""
    held = [i for i in range(len(curve)) if curve[i] >= share]
    if not held:
        return None
    i = held[-1]
    if i + 1 == len(curve):
        return rates[i]
    return rates[i] + (rates[i + 1] - rates[i]) * (curve[i] - share) / (curve[i] - curve[i + 1])


if __name__ == "__main__":
    main()
