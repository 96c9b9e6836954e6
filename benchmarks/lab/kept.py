"""What is left of the study's simulations? A Parquet file with a row for each, and a page with plots per workload."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentserve.lab.lab_report import Comparison, render_lab_report
from agentserve.lab.report import write_page
from agentserve.lab.sweep import Row
from benchmarks.lab.comparison import MAIN
from benchmarks.lab.plan import scenario
from benchmarks.lab.runner import Asked, Study


def write_rows(path: Path, kept: Sequence[tuple[str, Asked, Row]]) -> None:
    """Write the rows in the order of the experiments; settings and parameters are JSON texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_plain(experiment, asked, row) for experiment, asked, row in kept]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def write_workload_pages(study: Study, command: str) -> Iterator[Path]:
    """Write DIR/pages/WORKLOAD.html from the main table's simulations, as `agentserve compare` would; yields paths."""
    for workload in study.workloads:
        own = [(asked, row) for title, asked, row in study.kept if title == MAIN and asked.workload == workload]
        rows = [_at_its_rate(asked, row) for asked, row in own]
        file = scenario(workload, {"workload.limit": study.limit(workload)}, own[0][0].policies)
        path = study.out / "pages" / f"{workload}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path, render_lab_report(Comparison(file=file, command=command, rows=rows), study.out))
        yield path


def _at_its_rate(asked: Asked, row: Row) -> Row:
    rate = asked.settings["workload.rate"]
    return replace(row, point=f"{rate:g} runs/s", axes={"workload.rate": rate})


def _plain(experiment: str, asked: Asked, row: Row) -> dict[str, Any]:
    outcome = row.outcome
    return {
        "experiment": experiment,
        "scenario": asked.workload,
        "settings": json.dumps(asked.settings),
        "slo": outcome.slo,
        "label": row.label,
        "policy": outcome.policy,
        "params": json.dumps(dict(outcome.params)),
        "seed": row.seed,
        "code": outcome.code,
        **{name: None if value is None else float(value) for name, value in sorted(outcome.figures.items())},
    }
