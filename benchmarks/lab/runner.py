"""How does the study simulate? Any number of settings at once, in parallel, kept as they end and told as they go."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from agentserve.cli.runs import progress_bar
from agentserve.lab.points import base_point, cases_of
from agentserve.lab.searches import Curve, search, side_by_side
from agentserve.lab.sweep import Row, run_cases
from benchmarks.lab.plan import WORKLOADS, scenario

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Asked:
    """A scenario at one setting, under policies (parameters by label), with seeds."""

    workload: str
    settings: Mapping[str, Any]
    policies: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]


Found = dict[str, list[Row]]
"""Rows by label, in the order of the seeds."""


@dataclass(slots=True)
class Study:
    """Simulates, and gathers the tables that the experiments find."""

    out: Path
    jobs: int | None
    quick: bool
    console: Console
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kept: list[tuple[str, Asked, Row]] = field(default_factory=list)
    """Every row with the experiment it belongs to and what was asked for."""

    @property
    def seeds(self) -> list[int]:
        """Seeds of the main comparison."""
        return [1] if self.quick else [1, 2, 3]

    @property
    def workloads(self) -> Sequence[str]:
        """The workloads that are compared."""
        return ("coding-hot", "dags-hot") if self.quick else tuple(WORKLOADS)

    def limit(self, workload: str) -> int:
        """Runs per simulation."""
        return WORKLOADS[workload] // 4 if self.quick else WORKLOADS[workload]

    def simulate(self, title: str, asked: Mapping[K, Asked]) -> dict[K, Found]:
        """What came of each setting, under its own key."""
        cases, owners = [], []
        for key, one in asked.items():
            file = scenario(one.workload, one.settings, one.policies)
            own = cases_of(file, [base_point(file)], list(one.policies), one.seeds)
            cases += own
            owners += [key] * len(own)
        unlike = len({case.key for case in cases})
        with progress_bar(self.console) as progress:
            task = progress.add_task(title, total=unlike)
            rows = run_cases(cases, self.out, self.jobs,
                             on_row=lambda done, of, _: progress.update(task, completed=done, total=of))  # fmt: skip
            progress.update(task, completed=unlike)
        found: dict[K, Found] = {key: {} for key in asked}
        for key, row in zip(owners, rows, strict=True):
            found[key].setdefault(row.label, []).append(row)
            self.kept.append((title, asked[key], row))
        return found

    def search(
        self, title: str, asked: Mapping[K, Asked], axis: str, level: float, starts: Mapping[K, float],
        reach: tuple[float, float], within: float = 1.1, inverse: bool = False,
    ) -> dict[K, dict[int, Curve]]:  # fmt: skip
        """Search for the level along an axis under each key's one policy; returns curves by seed.

        `reach`: how many times its start a search goes down and up. `inverse`: the axis is an SLO scale, which makes
        runs in time rarer the smaller it is, so that the search and its curves go by 1 / scale.
        """
        curves: dict[K, dict[int, dict[float, float]]] = {
            key: {seed: {} for seed in one.seeds} for key, one in asked.items()
        }
        steps = count(1)

        def probe(values: Mapping[K, float]) -> dict[K, float]:
            points = {
                key: Asked(asked[key].workload, {**asked[key].settings, axis: 1 / value if inverse else value},
                           asked[key].policies, asked[key].seeds)
                for key, value in values.items()
            }  # fmt: skip
            for key, found in self.simulate(f"{title}, step {next(steps)}", points).items():
                for row in next(iter(found.values())):
                    curves[key][row.seed][values[key]] = row.outcome.figures["attainment"] or 0.0
            return {key: over_all(curves[key])[value] for key, value in values.items()}

        side_by_side(
            {key: search(level, start, start * reach[0], start * reach[1], within=within)
             for key, start in starts.items()}, probe
        )  # fmt: skip
        return {key: dict(found) for key, found in curves.items()}

    def add(self, table: str, **cells: Any) -> None:
        """One row of a table."""
        self.tables.setdefault(table, []).append(cells)


def shares(rows: Sequence[Row]) -> list[float]:
    """Attained share by seed."""
    return [row.outcome.figures["attainment"] or 0.0 for row in rows]


def mean(rows: Sequence[Row], figure: str) -> float | None:
    """A figure's mean over the seeds that have it."""
    values = [value for row in rows if (value := row.outcome.figures.get(figure)) is not None]
    return sum(values) / len(values) if values else None


def over_all(curves: Mapping[int, Curve]) -> dict[float, float]:
    """The mean curve of all seeds."""
    values = next(iter(curves.values()))
    return {value: sum(curve[value] for curve in curves.values()) / len(curves) for value in values}
