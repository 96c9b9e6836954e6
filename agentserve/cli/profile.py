"""`agentserve profile URL --gpu NAME`: how fast is this engine? Measures it, fits a profile, writes it to a file."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agentserve.cli.values import duration_s
from agentserve.errors import BadInput

if TYPE_CHECKING:
    from agentserve.profiler.client import EngineClient
    from agentserve.profiler.points import Check
    from agentserve.profiler.profile import Request, Result

_LEAST_BUDGET_S: Final = 2.0


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(profile)


def profile(
    url: Annotated[str, typer.Argument(metavar="URL", help="The engine's base URL")],
    gpu: Annotated[str, typer.Option(help="Name of the GPU type; a known one replaces its shipped profile")],
    model: Annotated[
        str | None, typer.Option(help="Name of the model in the profile [default: as the engine serves it]")
    ] = None,
    served_model: Annotated[str | None, typer.Option(help="Which served model [default: the only one]")] = None,
    budget: Annotated[str, typer.Option(help="How long to measure")] = "60s",
    out: Annotated[Path | None, typer.Option(help="File to write [default: profiles/GPU--MODEL.toml]")] = None,
    kv_capacity_tokens: Annotated[
        int | None, typer.Option(help="KV cache size [default: asked, or the known profile's]", min=1)
    ] = None,
    kv_bytes_per_token: Annotated[
        int | None, typer.Option(help="KV size of a token [default: the known model's]", min=1)
    ] = None,
    kv_link_bytes_per_s: Annotated[
        float | None, typer.Option(help="Bandwidth of its KV link [default: the known GPU's]", min=1.0)
    ] = None,
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs that share the model", min=1)] = None,
    max_batched_tokens: Annotated[int, typer.Option(help="Token budget of one iteration, as the engine has it")] = 8192,
    max_num_seqs: Annotated[int, typer.Option(help="Most sequences at once, as the engine has it")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(help="Measure prompts up to this length", min=64)] = 32_768,
    validate: Annotated[
        Path | None, typer.Option(help="Measure nothing but how well this profile file predicts the engine")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file; measure although others are served")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs")] = False,
) -> None:
    """Measure a running engine, fit a GPU profile to it, and write it to a file for fleets and scenarios.

    An engine that wants a key gets the one in AGENTSERVE_ENGINE_API_KEY.
    """
    seconds = duration_s(budget, "--budget")
    if seconds < _LEAST_BUDGET_S:
        raise BadInput(f"--budget {budget}: at least {_LEAST_BUDGET_S:g} s are needed")
    from agentserve.profiler.profile import Request

    request = Request(
        gpu=gpu,
        model=model,
        budget_s=seconds,
        kv_capacity_tokens=kv_capacity_tokens,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_link_bytes_per_s=kv_link_bytes_per_s,
        tensor_parallel=tensor_parallel,
        max_batched_tokens=max_batched_tokens,
        max_num_seqs=max_num_seqs,
        max_prompt_tokens=max_prompt_tokens,
        force=force,
    )
    console = Console(stderr=json, highlight=False)
    work = (
        _measured(url, served_model, request, out, console)
        if validate is None
        else _validated(url, served_model, request, validate, console)
    )
    facts = asyncio.run(work)
    if json:
        Console(soft_wrap=True).print(orjson.dumps(facts).decode(), markup=False, highlight=False)


async def _measured(
    url: str, served_model: str | None, request: "Request", out: Path | None, console: Console
) -> dict[str, Any]:
    from agentserve.profiler.engine_facts import engine_facts
    from agentserve.profiler.profile import profile_engine
    from agentserve.profiler.profile_file import (
        default_path,
        profile_entries,
        provenance,
        refuse_to_overwrite,
        to_toml,
        write_atomically,
    )

    async with _client(url, served_model) as client:
        model = request.model or (await engine_facts(client)).model
        path = out or default_path(request.gpu, model)
        refuse_to_overwrite(path, request.force)
        with _bar(console, request.budget_s) as progress:
            result = await profile_engine(client, request, progress)
    entries = profile_entries(result.subject, result.fit, result.bounds)
    measured = provenance(result.subject, result.fit, result.points, result.bounds, result.checks, datetime.now(UTC))
    write_atomically(path, to_toml(entries, measured).encode())
    console.print(_constants(result), _errors(result), _held_out(result.checks), sep="\n")
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    console.print(f"profile: [bold]{path}[/]")
    _plot(result, path.with_suffix(".svg"), console)
    return {"path": str(path), **entries, "measured": measured}


async def _validated(
    url: str, served_model: str | None, request: "Request", file: Path, console: Console
) -> dict[str, Any]:
    from agentserve.profile_files import read_profiles
    from agentserve.profiler.profile import check_profile

    (entry,) = read_profiles([file]).own
    async with _client(url, served_model) as client:
        with _bar(console, request.budget_s) as progress:
            checks = await check_profile(client, entry.profile, request, progress)
    console.print(_held_out(checks))
    return {"path": str(file), "held_out": [_plain(check) for check in checks]}


def _client(url: str, served_model: str | None) -> "EngineClient":
    from agentserve.profiler.client import EngineClient

    return EngineClient(url, served_model, api_key=os.environ.get("AGENTSERVE_ENGINE_API_KEY"))


@contextmanager
def _bar(console: Console, budget_s: float) -> Iterator[Callable[[str, float], None]]:
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("asking the engine", total=budget_s)
        yield lambda what, gone_s: progress.update(task, description=what, completed=min(gone_s, budget_s))


def _constants(result: "Result") -> Table:
    table = Table(title=f"profile of {result.subject.model} on {result.subject.gpu}", title_justify="left")
    table.add_column("constant")
    table.add_column("value", justify="right")
    table.add_column("means")
    p, d, kv = result.fit.prefill_s, result.fit.decode_s, result.bounds
    rows = (
        ("p0", f"{p[0] * 1e3:.3f} ms", "a prefill step, before its tokens"),
        ("p1", f"{p[1] * 1e6:.3f} µs", "per new token"),
        ("p2", f"{p[2] * 1e9:.4f} ns", "per pair of tokens: attention"),
        ("d0", f"{d[0] * 1e3:.3f} ms", "a decode step, before its sequences"),
        ("d1", f"{d[1] * 1e6:.3f} µs", "per sequence of the batch"),
        ("d2", f"{d[2] * 1e9:.4f} ns", "per token of context"),
        ("KV", f"{kv.kv_capacity_tokens:,}", f"tokens, in blocks of {kv.block_tokens}"),
        ("HTTP", f"{result.points.overhead_s * 1e3:.2f} ms", "in a client's TTFT; not part of the profile"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _errors(result: "Result") -> Table:
    from agentserve.profiler.points import mape

    table = Table(title="the fit against its own points", title_justify="left")
    for heading in ("", "points", "samples", "mean error", "worst"):
        table.add_column(heading, justify="right" if heading else "left")
    points = result.points
    rows = (
        ("prefill", [len(p.ttfts_s) for p in points.prefill], result.fit.prefill_errors),
        ("decode", [len(p.steps_s) for p in points.decode], result.fit.decode_errors),
    )
    for name, samples, errors in rows:
        worst = max(errors, key=abs)
        table.add_row(name, str(len(samples)), str(sum(samples)), f"{mape(list(errors)):.1%}", f"{worst:+.1%}")
    return table


def _held_out(checks: "Sequence[Check]") -> Table:
    """One line per figure and kind of call; a batch's ranks are averaged in it."""
    from agentserve.profiler.points import mape

    table = Table(title="calls that the fit has not seen", title_justify="left")
    for heading in ("calls", "figure", "predicted", "measured", "mean error", "worst"):
        table.add_column(heading, justify="left" if heading in ("calls", "figure") else "right")
    kinds = dict.fromkeys((check.batch, check.prompt_tokens, check.output_tokens, check.figure) for check in checks)
    for kind in kinds:
        batch, prompt, output, figure = kind
        chosen = [c for c in checks if (c.batch, c.prompt_tokens, c.output_tokens, c.figure) == kind]
        predicted_s, measured_s = (
            sum(getattr(check, name) for check in chosen) / len(chosen) for name in ("predicted_s", "measured_s")
        )
        errors = [check.error for check in chosen]
        table.add_row(
            f"{batch} × ({prompt:,} + {output})", figure, f"{predicted_s * 1e3:,.1f} ms", f"{measured_s * 1e3:,.1f} ms",
            f"{mape(errors):.1%}", f"{max(errors, key=abs):+.1%}",
        )  # fmt: skip
    for figure in ("TTFT", "E2E"):
        all_errors = [check.error for check in checks if check.figure == figure]
        if all_errors:
            worst = max(all_errors, key=abs)
            table.add_row("all", figure, "", "", f"{mape(all_errors):.1%}", f"{worst:+.1%}", style="bold")
    return table


def _plot(result: "Result", path: Path, console: Console) -> None:
    from agentserve.profiler.plot import plot
    from agentserve.profiler.profile_file import write_atomically

    try:
        picture = plot(result.points, result.profile)
    except BadInput as error:
        console.print(f"[yellow]no plot:[/] {escape(str(error))}")
        return
    write_atomically(path, picture)
    console.print(f"plot: [bold]{path}[/]")


def _plain(check: "Check") -> dict[str, Any]:
    return {name: getattr(check, name) for name in check.__slots__} | {"error": check.error}
