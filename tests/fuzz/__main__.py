"""`make fuzz`: a million bad inputs for everything that reads from outside; figures by target, and what was found."""

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from tests.fuzz.attack import TARGETS, attack, corpus, keep
from tests.fuzz.http import Answered, attack_http
from tests.fuzz.target import Target

SHARES = {
    "stored-journal": 0.1,
    "event-log": 0.2,
    "trace": 0.3,
    "stored-checkpoint": 0.1,
    "settings": 0.05,
    "mqtt": 0.5,
    "profile": 0.5,
    "scenario": 0.5,
}
"""Slow targets get fewer cases, which the others make up for."""


def main() -> int:
    """Attack; 1 if anything broke."""
    words = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    words.add_argument("--cases", type=int, default=1_000_000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--target", action="append", help="only this one; repeatable")
    words.add_argument("--keep", action="store_true", help="add what is found to tests/fuzz/corpus")
    given = words.parse_args()
    logging.disable()
    targets = [target for target in TARGETS if not given.target or target.name in given.target]
    console = Console()
    table = Table(
        "target", "cases", "kept inputs", "per second", "defects", title=f"seed {given.seed}", title_justify="left"
    )
    weights = {target.name: SHARES.get(target.name, 1.0) for target in targets}
    defects, done = 0, 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("fuzz", total=given.cases)
        for target in targets:
            cases = round(given.cases * weights[target.name] / sum(weights.values()))
            progress.update(task, description=target.name)
            began_s = time.monotonic()
            replayed = _replayed(target)
            found = attack(target, cases, given.seed * 1_000_000, lambda more: progress.advance(task, more))
            took_s = time.monotonic() - began_s
            for defect in found:
                console.print(f"[red]{target.name}[/]: {defect.story}\n  input {defect.input[:200]!r}", markup=True)
                if given.keep:
                    keep(defect)
            table.add_row(target.name, f"{cases:,}", str(replayed), f"{cases / took_s:,.0f}", str(len(found)))
            if not console.is_terminal:
                console.print(f"{target.name}: {cases:,} cases, {len(found)} defects")
            defects, done = defects + len(found), done + cases
    if not given.target:
        defects += _http(console, table, max(40, given.cases // 50), given.seed)
    table.add_section()
    table.add_row("all", f"{done:,}", "", "", str(defects))
    console.print(table)
    Path("out/fuzz").mkdir(parents=True, exist_ok=True)
    with Path("out/fuzz/figures.txt").open("w") as out:
        Console(file=out, width=100).print(table)
    return 1 if defects else 0


def _http(console: Console, table: Table, cases: int, number: int) -> int:
    """Attack a real gateway on emulated engines; how many of its answers were not as described."""
    defects, total, began_s = 0, 0, time.monotonic()
    statuses: Counter[int] = Counter()
    for answered in asyncio.run(_attacked(cases, number)):
        statuses.update(answered.statuses)
        total += sum(answered.statuses.values())
        defects += len(answered.problems)
        for problem in answered.problems[:5]:
            console.print(f"{answered.operation}: {problem}", markup=False)
    rate = total / (time.monotonic() - began_s)
    table.add_row("http (schemathesis)", f"{total:,}", "0", f"{rate:,.0f}", str(defects))
    told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    console.print(f"http, by status: {told}", markup=False)
    return defects


async def _attacked(cases: int, number: int) -> list[Answered]:
    fleet = Fleet(model="llama-3.1-8b", speed=1000, workers=(Group(gpu="h100"),))
    async with LocalCluster(fleet) as cluster:
        return await asyncio.to_thread(lambda: list(attack_http(cluster.gateway_url, cases, number)))


def _replayed(target: Target) -> int:
    count = 0
    for given in corpus(target):
        target.survives(given)
        count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
