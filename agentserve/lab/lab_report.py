"""What does a comparison leave behind? results.json with every aggregate, and one self-contained HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from markupsafe import Markup

from agentserve.errors import BadInput
from agentserve.lab import lab_plots, plots
from agentserve.lab.aggregates import Aggregate, aggregated
from agentserve.lab.points import value_at
from agentserve.lab.record_files import read_records
from agentserve.lab.report import FIGURES, template, write_page
from agentserve.lab.results import SimulationResult
from agentserve.lab.scenario import ScenarioFile
from agentserve.lab.sweep import Row, records_of
from agentserve.lab.tables import COLUMNS, best_of, goodput_text, with_interval

RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "report.html"
SHOWN_POLICIES: Final = 6
"""Policies at most of which single simulations are drawn."""
_SIMULATED: Final = {"SLO attainment", "Goodput over time", "Run time against its SLO", "Run time",
                     "Time to first token", "Time per output token", "Splits and migrations"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that the page tells: what was asked for, and the rows that came of it."""

    file: ScenarioFile
    command: str
    rows: Sequence[Row]


def write_results(out: Path, comparison: Comparison) -> Path:
    """Write results.json: command, scenario text, code, and an aggregate per point and policy; returns its path."""
    plain = {
        "scenario": comparison.file.name,
        "command": comparison.command,
        "code": sorted({row.outcome.code for row in comparison.rows}),
        "seeds": sorted({row.seed for row in comparison.rows}),
        "scenario_text": comparison.file.text,
        "aggregates": [one.to_plain() for one in aggregated(comparison.rows)],
    }
    path = out / RESULTS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
    return path


def write_lab_report(out: Path, comparison: Comparison) -> Path:
    """Write report.html from the rows and the records in `out`; returns its path. BadInput without matplotlib."""
    path = out / REPORT_FILE
    write_page(path, render_lab_report(comparison, out))
    return path


def render_lab_report(comparison: Comparison, out: Path | None) -> str:
    """The page as text; plots of single simulations need their records, in `out`."""
    aggregates = aggregated(comparison.rows)
    point = telling_point(aggregates)
    at_point = [one for one in aggregates if one.point == point]
    results = _results(at_point, out)
    outcomes = [row.outcome for row in comparison.rows]
    return template("lab_report.html.j2").render(
        title=f"Scenario {comparison.file.name}",
        clock=comparison.file.raw.get("description", ""),
        tiles=[_tile(one) for one in at_point],
        columns=[name for name, _ in COLUMNS],
        tables=_tables(aggregates),
        curves=_curves(comparison, aggregates),
        shown=f"At {point}, seed {at_point[0].outcomes[0].seed}." if results else "",
        figures=_figures(results, at_point),
        wide=_wide(results),
        command=comparison.command,
        simulations=len({outcome.key for outcome in outcomes}),
        seeds=", ".join(map(str, sorted({row.seed for row in comparison.rows}))),
        code=", ".join(sorted({outcome.code for outcome in outcomes})),
        rules=list(dict.fromkeys(outcome.slo for outcome in outcomes)),
        parameters={one.label: _params(one) for one in at_point if one.outcomes[0].params},
        notes=list(dict.fromkeys(note for outcome in outcomes[:1] for note in outcome.notes)),
        errors=_errors(comparison.rows),
        scenario=comparison.file.text.strip(),
    )


def telling_point(aggregates: Sequence[Aggregate]) -> str:
    """The point whose single simulations are shown: the scenario as given, or where policies differ most."""
    points = dict.fromkeys(one.point for one in aggregates)

    def spread(point: str) -> float:
        shares = [one.mean("attainment") or 0.0 for one in aggregates if one.point == point]
        return max(shares) - min(shares)

    own = [one.point for one in aggregates if not one.axes]
    return own[0] if own else max(points, key=spread)


def _tile(one: Aggregate) -> dict[str, str]:
    return {
        "label": one.label,
        "goodput": goodput_text(one.figures["goodput_per_s"]),
        "attainment": with_interval(one.figures["attainment"], 1, " %", 100),
    }


def _tables(aggregates: Sequence[Aggregate]) -> list[dict[str, Any]]:
    labels = list(dict.fromkeys(one.label for one in aggregates))
    found = []
    for point in dict.fromkeys(one.point for one in aggregates):
        rows = [one for one in aggregates if one.point == point]
        best = best_of(rows)
        seeds = len(rows[0].outcomes)
        shown = [
            {"label": one.label, "series": labels.index(one.label) % 8, "cells": [read(one) for _, read in COLUMNS]}
            for one in rows
        ]
        told = f"{seeds} seed{'s' if seeds > 1 else ''}" + (f"; highest goodput: {best.label}" if best else "")
        found.append({"point": point[:1].upper() + point[1:], "seeds": told, "rows": shown})
    return found


Drawn = tuple[str, str, Markup]


def _curves(comparison: Comparison, aggregates: Sequence[Aggregate]) -> list[Drawn]:
    axes = dict.fromkeys(axis for one in aggregates for axis in one.axes)
    found = []
    for axis in axes:
        own = value_at(comparison.file.raw, axis)
        for figure, label in (("goodput_per_s", "goodput (runs/s)"), ("attainment", "attained share")):
            svg = lab_plots.along_axis(aggregates, axis, own, figure, (_NAMES.get(axis, axis), label))
            if svg is not None:
                figure_name, axis_name = (
                    name.partition(" (")[0] for name in (label.capitalize(), _NAMES.get(axis, axis))
                )
                found.append((f"{figure_name} against {axis_name}", "Mean and 95 % interval.", _safe(svg)))
    return found


_NAMES: Final = {"workload.rate": "rate (runs/s)", "slo.alpha": "SLO scale"}


def _figures(results: Mapping[str, SimulationResult], at_point: Sequence[Aggregate]) -> list[Drawn]:
    if not results:
        return []
    replays = {label: result.replay for label, result in results.items()}
    drawn = [(heading, text, _safe(draw(replays))) for heading, text, draw in FIGURES if heading in _SIMULATED]
    busy = "Mean over the instances of the type and over seeds."
    shown = [one for one in at_point if one.label in results]
    return [*drawn, ("Busy GPUs", busy, _safe(lab_plots.busy_bars(shown)))]


def _wide(results: Mapping[str, SimulationResult]) -> list[Drawn]:
    if not results:
        return []
    replays = {label: result.replay for label, result in results.items()}
    return [
        ("Sequences that run", "Per instance, mean of each GPU type.",
         _safe(lab_plots.load_over_time(results, "running", "running"))),
        ("KV cache in use", "Share of its capacity, mean of each GPU type.",
         _safe(lab_plots.load_over_time(results, "kv_usage", "share"))),
        ("Where calls were placed", "Dispatches and migrations by the instance that decodes, per stretch of time.",
         _safe(plots.placements_over_time(replays))),
        ("Timeline of placements and migrations", "Each mark is a placement (evenly picked), each line a move.",
         _safe(lab_plots.timeline(results))),
    ]  # fmt: skip


def _results(at_point: Sequence[Aggregate], out: Path | None) -> dict[str, SimulationResult]:
    """The first seed's whole results, of the policies whose records are there: the best ones if there are many."""
    if out is None:
        return {}
    ranked = sorted(at_point, key=lambda one: -(one.mean("goodput_per_s") or 0.0))[:SHOWN_POLICIES]
    found = {}
    for one in at_point:
        folder = records_of(out, one.outcomes[0].key)
        if one in ranked and folder.is_dir():
            found[one.label] = read_records(folder, one.outcomes[0])
    return found


def _params(one: Aggregate) -> str:
    first = one.outcomes[0]
    policy = "" if first.policy == one.label else f"{first.policy}, "
    return policy + ", ".join(f"{name} = {value}" for name, value in first.params.items())


def _errors(rows: Sequence[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key, row in {row.outcome.key: row for row in rows}.items():
        del key
        for message, count in row.outcome.errors.items():
            counts[f"{row.label}: {message}"] += count
    return dict(counts.most_common(20))


def _safe(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - matplotlib has escaped it
