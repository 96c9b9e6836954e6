"""Where are the study's tables told? In the terminal, and in docs/lab-results.md with its picture.

python -m benchmarks.lab.write      # docs/lab-results.md anew from benchmarks/results/study.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lab.plan import OURS
from benchmarks.lab.provenance import RESULTS
from benchmarks.lab.sections import Tables, sections

DOCS = Path(__file__).parents[2] / "docs"
_INTRO = """# What the lab found

Written by `{command}` from {commit} ({machine}, {date}; seeds {seeds}). The figures are in
`benchmarks/results/study.json`, every simulation is a row of `study.parquet` beside it. `make lab` makes them anew;
`python -m benchmarks.lab.write` makes this page from them.

Attainment is the share of runs that end within their SLO, so with equal arrivals its ratio is that of goodput. 'Best
published' is, at each point, the policy with the highest mean of those compared there: `goodserve`, `prefix_affinity`,
and the two best on each tuning workload of the kind, all with the parameters that tuning found best
(`agentserve/lab/tuned.toml`, `benchmarks/results/sweep.json`). It is chosen with hindsight, which favours it. Loads are
recorded in `loads.json`. ± is half of a 95 % interval, of gains that are paired by seed.

![Share of runs in time by load](images/lab-results.svg)
"""


def print_tables(tables: Tables, console: Console) -> None:
    """Every table, in the terminal."""
    for title, header, rows, _ in sections(tables):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def write_results_page(tables: Tables, facts: Mapping[str, Any], docs: Path = DOCS) -> None:
    """Write lab-results.md and its picture."""
    text = _INTRO.format(**{**facts, "commit": facts["commit"][:12], "seeds": ", ".join(map(str, facts["seeds"]))})
    for title, header, rows, note in sections(tables):
        text += f"\n## {title}\n\n" + (f"{note}\n\n" if note else "") + _markdown(header, rows)
    _picture(tables, docs / "images")
    (docs / "lab-results.md").write_text(text, "utf-8")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _picture(tables: Tables, folder: Path) -> None:
    """Attainment by workload and load: the best published, ours, and the bound."""
    from matplotlib.figure import Figure

    rows = tables["main"]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    grid = figure.subplots(2, 3, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        own = sorted((row for row in rows if row["workload"] == name), key=lambda row: row["rate"])
        rates = [row["rate"] for row in own]
        bounds = [fmean(row["bound"]) if row.get("bound") else None for row in own]
        axes.plot(rates, bounds, ":", color="0.6", label="no policy above")
        axes.plot(rates, [fmean(row["attainment"][row["best"]]) for row in own], "s--", color="tab:orange",
                  label="best published")  # fmt: skip
        axes.plot(rates, [fmean(row["attainment"][OURS]) for row in own], "o-", color="tab:blue", label=OURS)
        axes.set(title=name, xlabel="runs/s", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of runs in time")
    grid.flat[0].legend(loc="lower left", frameon=False)
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "lab-results.svg", metadata={"Date": None})


if __name__ == "__main__":
    recorded = json.loads((RESULTS / "study.json").read_text("utf-8"))
    write_results_page(recorded["tables"], recorded)
