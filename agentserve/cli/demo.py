"""`agentserve demo`: agents and real coding-agent turns on an emulated cluster, two policies side by side, a report."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from agentserve.cli.runs import progress_bar
from agentserve.errors import AgentServeError
from agentserve.sdk.credentials import authorization

if TYPE_CHECKING:
    from agentserve.lab.plans import Workload
    from agentserve.lab.replay import ReplayResult
    from agentserve.local.cluster import LocalCluster

POLICIES: Final = ("round_robin", "agentserve")
CATALOG_SLO_S: Final = 20.0
SLO_SCALE: Final = 1.5
PROMPT_SCALE: Final = 0.25
MAX_PROMPT_TOKENS: Final = 32_000
MAX_TOOL_GAP_S: Final = 10.0
MAX_STEPS: Final = 12
READY_TIMEOUT_S: Final = 60.0


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(demo)


def demo(
    runs: Annotated[int, typer.Option(help="Coding-agent turns to replay under each policy", min=2)] = 80,
    rate: Annotated[float, typer.Option(help="Turns per second of emulated time", min=0.001)] = 1.0,
    speed: Annotated[float, typer.Option(help="Emulated time runs this many times faster", min=0.1)] = 6.0,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn")] = 7,
    out: Annotated[Path, typer.Option(help="Folder of the report")] = Path("out/demo"),
) -> None:
    """Run the main job end to end on this machine: no GPU, no Docker, a few minutes."""
    out.mkdir(parents=True, exist_ok=True)
    asyncio.run(_demo(Console(highlight=False), runs, rate, speed, seed, out))


async def _demo(console: Console, runs: int, rate: float, speed: float, seed: int, out: Path) -> None:
    from agentserve.lab.report import comparison_table, write_report

    began_s = time.monotonic()
    workload = _workload(runs, rate, seed)
    await _catalog(console, speed)
    console.print(
        f"\n[bold]2. {len(workload.plans)} real coding-agent turns, the same under each policy[/] "
        f"(SLO: {SLO_SCALE:g} × solo time on an H100; emulated time ×{speed:g})"
    )
    for note in workload.notes:
        console.print(f"   {note}", style="dim")
    results: dict[str, ReplayResult] = {}
    waterfall: Any = None
    for policy in POLICIES:
        async with _cluster(console, policy, speed, seed) as cluster:
            _say_where_to_look(console, cluster)
            results[policy] = await _replay(console, cluster, workload, speed, seed)
            waterfall = await _one_run(cluster, results[policy])
    console.print(comparison_table(results))
    console.print("\n[bold]3. One run of the last replay, as `agentserve trace` draws it[/]")
    console.print(waterfall)
    report = out / "report.html"
    notes = (*workload.notes, f"emulated time runs {speed:g} times faster; seed {seed}")
    write_report(report, results, title="agentserve demo", notes=notes, waterfall_html=_as_html(waterfall))
    console.print(f"\nreport: [bold]{report.resolve()}[/]  ({time.monotonic() - began_s:.0f} s in all)")


def _workload(runs: int, rate: float, seed: int) -> "Workload":
    from agentserve.lab.workloads import BUNDLED_ARRIVALS, BUNDLED_SESSIONS, WorkloadOptions, load_workload

    options = WorkloadOptions(
        prompt_scale=PROMPT_SCALE,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_steps=MAX_STEPS,
        max_tool_gap_s=MAX_TOOL_GAP_S,
        arrivals=BUNDLED_ARRIVALS,
        rate_per_s=rate,
        limit=runs,
        seed=seed,
    )
    return load_workload(BUNDLED_SESSIONS, options)


def _cluster(console: Console, policy: str, speed: float, seed: int) -> "LocalCluster":
    from agentserve.local.cluster import LocalCluster
    from agentserve.local.fleet import default_fleet
    from workflows.catalog import SCRIPTS

    # Chunks hold as many tokens as time is compressed, so that the machine relays as many chunks per second as live.
    fleet = default_fleet(speed=speed, stream_interval=max(1, round(speed)))
    console.print(f"\nstarting 2×A100, H100, H200 (emulated) under [bold]{policy}[/] …", style="dim")
    return LocalCluster(fleet, policy=policy, seed=seed, script=SCRIPTS, ready_timeout_s=READY_TIMEOUT_S)


def _say_where_to_look(console: Console, cluster: "LocalCluster") -> None:
    console.print(f"live page: [bold]{cluster.gateway_url}/ui[/]", style="dim")


async def _catalog(console: Console, speed: float) -> None:
    """Run every catalog agent once, side by side, and say how each did."""
    from workflows.catalog import AGENTS

    console.print("[bold]1. Catalog agents, each a LangGraph graph with one end-to-end SLO[/]")
    async with _cluster(console, "agentserve", speed, 0) as cluster:
        _say_where_to_look(console, cluster)
        with progress_bar(console) as progress:
            task = progress.add_task("catalog agents", total=len(AGENTS))

            async def one(name: str) -> Any:
                result = await _agent(cluster.gateway_url, name)
                progress.advance(task)
                return result

            results = await asyncio.gather(*(one(name) for name in AGENTS))
        steps = [await _steps(cluster, result.run_id) for result in results]
    table = Table("agent", "steps", "SLO", "E2E", "attained")
    for name, result, count in zip(AGENTS, results, steps, strict=True):
        attained = "[green]yes[/]" if result.attained else "[red]no[/]"
        table.add_row(name, str(count), f"{CATALOG_SLO_S:g} s", f"{result.e2e_s:.2f} s", attained)
    console.print(table)


async def _agent(gateway: str, name: str) -> Any:
    import importlib
    import os

    import agentserve

    os.environ["AGENTSERVE_GATEWAY"] = gateway  # read by the models that the agent's module makes when it is imported
    module = await asyncio.to_thread(importlib.import_module, f"workflows.catalog.{name}")
    served = agentserve.serve(module.graph, slo_s=CATALOG_SLO_S, name=name, gateway=gateway)
    return await asyncio.to_thread(served.run, module.EXAMPLE)


async def _steps(cluster: "LocalCluster", run_id: str) -> int:
    return len((await _get(cluster, f"/v1/runs/{run_id}"))["steps"])


async def _replay(
    console: Console, cluster: "LocalCluster", workload: "Workload", speed: float, seed: int
) -> "ReplayResult":
    from agentserve.lab.replay import SoloScaleSlo, replay

    with progress_bar(console) as progress:
        task = progress.add_task(f"{cluster.policy:<12}", total=len(workload.plans))
        return await replay(
            workload,
            cluster.gateway_url,
            speed=speed,
            slo=SoloScaleSlo(SLO_SCALE),
            model=cluster.fleet.model,
            seed=seed,
            on_progress=lambda done: progress.update(
                task, completed=done.runs_done, description=f"{cluster.policy:<12} {done.runs_attained:>3} in time"
            ),
        )


async def _one_run(cluster: "LocalCluster", result: "ReplayResult") -> Any:
    """The waterfall of the most telling run: one that migrated or was split if there is one, of readable length."""
    from agentserve.waterfall import render_run

    def telling(run_id: str) -> tuple[bool, int]:
        calls = [call for call in result.calls if call.run_id == run_id]
        return any(call.migrations or call.split for call in calls), -abs(len(calls) - 4)

    ended = sorted({run.run_id for run in result.runs if run.succeeded})
    if not ended:
        raise AgentServeError(f"no run of the replay under {cluster.policy} succeeded")
    run_id = max(ended, key=telling)
    run = await _get(cluster, f"/v1/runs/{run_id}")
    return render_run(run, (await _get(cluster, f"/v1/runs/{run_id}/events"))["data"])


async def _get(cluster: "LocalCluster", path: str) -> Any:
    import httpx

    asked = httpx.AsyncClient(base_url=cluster.gateway_url, trust_env=False, timeout=10, headers=authorization())
    async with asked as client:
        return (await client.get(path)).raise_for_status().json()


def _as_html(renderable: Any) -> str:
    from io import StringIO

    recording = Console(record=True, width=150, file=StringIO(), force_terminal=True)
    recording.print(renderable)
    return recording.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
