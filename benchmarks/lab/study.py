"""Does agentserve serve more runs in time than any published policy? All experiments of the lab, from one command.

    python -m benchmarks.lab.study [--quick] [--only NAME,NAME] [--jobs N] [--out DIR]

Rates come from loads.json, the published policies are as tuned (agentserve/lab/tuned.toml). What is done is kept in
DIR, so that the same command goes on after Ctrl-C. Writes to benchmarks/results study.json, the tables, and
study.parquet, a row per simulation; to docs lab-results.md with its picture; to DIR/pages one page with plots per
workload. `--quick`, a small part of everything, writes study-quick.json and its pages only.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from benchmarks.lab.ablations import ablations
from benchmarks.lab.capacity import capacity, fewer_gpus
from benchmarks.lab.comparison import bounds, every_policy, main_table, rules
from benchmarks.lab.kept import write_rows, write_workload_pages
from benchmarks.lab.papers import goodserve_table, hexagent_table
from benchmarks.lab.provenance import RESULTS, provenance
from benchmarks.lab.runner import Study
from benchmarks.lab.write import print_tables, write_results_page

QUICK: Mapping[str, Callable[[Study], None]] = {
    "main": main_table, "bounds": bounds, "every": every_policy, "rules": rules, "ablations": ablations,
}  # fmt: skip
EXPERIMENTS: Mapping[str, Callable[[Study], None]] = {
    **QUICK, "goodserve": goodserve_table, "hexagent": hexagent_table, "capacity": capacity, "fewer": fewer_gpus,
}  # fmt: skip
INTERRUPTED = 130


def main() -> None:
    """Run the experiments and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of everything, in about three minutes")
    parser.add_argument("--only", help=f"some experiments, told but not written; of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--jobs", type=int, help="simulations at once (default: the number of cores)")
    parser.add_argument("--out", type=Path, help="where simulations are kept (default: out/lab/study)")
    chosen = parser.parse_args()
    experiments = QUICK if chosen.quick else EXPERIMENTS
    names = chosen.only.split(",") if chosen.only else list(experiments)
    if unknown := [name for name in names if name not in experiments]:
        parser.error(f"--only: no experiment {unknown[0]!r}; there are {', '.join(experiments)}")
    out = chosen.out or Path("out/lab") / ("study-quick" if chosen.quick else "study")
    study = Study(out, chosen.jobs, chosen.quick, Console())
    try:
        for name in names:
            began_s = time.monotonic()
            experiments[name](study)
            study.console.print(f"{name}: {time.monotonic() - began_s:.0f} s", style="dim", highlight=False)
    except KeyboardInterrupt:
        study.console.print(f"stopped; what is done is kept in {study.out}, and the same command goes on from there")
        sys.exit(INTERRUPTED)
    print_tables(study.tables, study.console)
    if not chosen.only:
        _write(study)


def _write(study: Study) -> None:
    facts = provenance(study.seeds)
    name = "study-quick" if study.quick else "study"
    text = json.dumps({**facts, "simulations": len(study.kept), "tables": study.tables}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    if not study.quick:
        write_rows(RESULTS / f"{name}.parquet", study.kept)
        write_results_page(study.tables, facts)
    for page in write_workload_pages(study, facts["command"]):
        study.console.print(f"report: [bold]{page}[/]")


if __name__ == "__main__":
    main()
