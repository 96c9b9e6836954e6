"""`agentserve simulate` and `agentserve compare`: scenarios on simulated GPUs, in virtual time."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from agentserve.cli.cluster import JsonFlag
from agentserve.cli.runs import progress_bar
from agentserve.errors import BadInput

if TYPE_CHECKING:
    from agentserve.lab.scenario import ScenarioFile
    from agentserve.lab.sweep import Row

INTERRUPTED: Final = 130

ScenarioArgument = Annotated[
    str,
    typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of a shipped one: `agentserve scenarios`"),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the scenario: workload.rate=0.5")
]
JobsOption = Annotated[int | None, typer.Option(help="Simulations at once [default: the number of cores]", min=1)]
SeedsOption = Annotated[str | None, typer.Option(help="Seeds, such as 1,2,3 [default: the scenario's]")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(simulate)
    app.command()(compare)
    app.command()(scenarios)


def scenarios() -> None:
    """List the scenarios that come with agentserve."""
    from rich.table import Table

    from agentserve.lab.scenario import read_scenario, shipped_scenarios

    table = Table("scenario", "what it is")
    for name in shipped_scenarios():
        table.add_row(name, str(read_scenario(name).raw.get("description", "")))
    Console().print(table)


def simulate(
    scenario: ScenarioArgument,
    policy: Annotated[str, typer.Option(help="Policy, or a variant that the scenario names")] = "agentserve",
    seed: Annotated[int | None, typer.Option(help="Seed of everything drawn [default: the scenario's first]")] = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Keep records, results and a report in this folder")] = None,
    json: JsonFlag = False,
) -> None:
    """Simulate a scenario as it stands under one policy, and tell how each call, run and instance did."""
    from agentserve.lab.outcome import outcome_of
    from agentserve.lab.points import base_point, cases_of
    from agentserve.lab.record_files import need_pyarrow, write_records
    from agentserve.lab.report import comparison_table
    from agentserve.lab.sweep import records_of, row_of, simulated
    from agentserve.lab.tables import instance_table

    file = _file(scenario, settings)
    (case, *_) = cases_of(file, [base_point(file)], [policy], [] if seed is None else [seed])
    if out is not None:
        need_pyarrow()
    console = Console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task(f"{file.name}, {policy}", total=None)
        result, workload = simulated(
            case, on_progress=lambda so_far: progress.update(task, completed=so_far.runs_done, total=so_far.runs_total)
        )
    outcome = outcome_of(result, key=case.key, params=case.variant.params, code=case.code, workload=workload)
    if out is not None:
        write_records(records_of(out, case.key), result)
        _write(console, file, [row_of(case, outcome)], out)
    if json:
        _print_json(outcome.to_plain())
        return
    console.print(comparison_table({case.variant.label: result.replay}))
    console.print(instance_table(result.instances, _span_s(result)))
    for note in workload.notes:
        console.print(note, style="dim", highlight=False)
    tokens_per_s = sum(use.output_tokens for use in result.instances) / max(result.wall_s, 1e-9)
    console.print(
        f"simulated in {result.wall_s:.1f} s: {tokens_per_s:,.0f} output tokens/s", style="dim", highlight=False
    )


def compare(
    scenario: ScenarioArgument,
    policies: Annotated[str | None, typer.Option(help="Policies, such as a,b,c [default: the scenario's]")] = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results [default: out/lab/SCENARIO]")] = None,
    jobs: JobsOption = None,
    report: Annotated[bool, typer.Option(help="Draw the HTML page")] = True,
    json: JsonFlag = False,
) -> None:
    """Simulate every point of a scenario under several policies; what is done is kept, and the same command resumes."""
    from agentserve.lab.aggregates import aggregated
    from agentserve.lab.sweep import run_points
    from agentserve.lab.tables import point_tables

    file = _file(scenario, settings)
    folder = out or Path("out/lab") / file.name
    console = Console(stderr=json)
    done, total = 0, 0
    try:
        with progress_bar(console) as progress:
            task = progress.add_task(f"{file.name}", total=None)

            def on_row(so_far: int, of: int, row: "Row") -> None:
                nonlocal done, total
                done, total = so_far, of
                told = f"{file.name}: {row.label}, {row.point}, seed {row.seed}"
                progress.update(task, completed=so_far, total=of, description=told)

            rows = run_points(file, _names(policies), _numbers(seeds), folder, jobs, on_row=on_row)
    except KeyboardInterrupt:
        console.print(f"stopped after {done} of {total or '?'} simulations, kept in {folder}; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    page = _write(console, file, rows, folder, report=report)
    if json:
        _print_json([one.to_plain() for one in aggregated(rows)])
        return
    for table in point_tables(aggregated(rows), console.width):
        console.print(table)
    if page is not None:
        console.print(f"report: [bold]{page.resolve()}[/]")


def _file(scenario: str, settings: list[str] | None) -> "ScenarioFile":
    from agentserve.lab.points import with_settings
    from agentserve.lab.scenario import read_scenario

    return with_settings(read_scenario(scenario), dict(_setting(text) for text in settings or []))


def _setting(text: str) -> tuple[str, Any]:
    """The key and value of `--set`, the value as TOML has it, or else as text."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"--set {text!r}: give KEY=VALUE, such as workload.rate=0.5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _numbers(text: str | None) -> list[int]:
    try:
        numbers = [int(number) for number in _names(text)]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise BadInput(f"--seeds {text!r}: give whole numbers from 0 on, such as 1,2,3")
    return numbers


def _write(console: Console, file: "ScenarioFile", rows: "list[Row]", out: Path, *, report: bool = True) -> Path | None:
    from agentserve.lab.lab_report import Comparison, write_lab_report, write_results

    comparison = Comparison(file=file, command=shlex.join(["agentserve", *sys.argv[1:]]), rows=rows)
    write_results(out, comparison)
    if not report:
        return None
    with console.status("drawing the report"):
        return write_lab_report(out, comparison)


def _span_s(result: Any) -> float:
    runs = result.replay.runs
    return max((run.finished_s for run in runs), default=0.0) - min((run.submitted_s for run in runs), default=0.0)


def _print_json(plain: Any) -> None:
    Console(soft_wrap=True).print(orjson.dumps(plain).decode(), markup=False, highlight=False)
