"""`agentserve up` brings the embedded cluster up; `agentserve ps` shows who works on what."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from agentserve.cli.gateway_client import gateway_url, get_json
from agentserve.cli.parts import ProfilesFlag
from agentserve.errors import AgentServeError

GatewayFlag = Annotated[
    str | None,
    typer.Option("--gateway", help="The gateway's URL [default: $AGENTSERVE_GATEWAY or http://127.0.0.1:8080]"),
]
RedisFlag = Annotated[
    str | None, typer.Option("--redis", help="Where durable runs are kept [default: $AGENTSERVE_REDIS_URL]")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)
    app.command()(ps)


def up(
    fleet: Annotated[Path | None, typer.Option(help="Fleet file (TOML) [default: 2×A100, H100, H200]")] = None,
    policy: Annotated[str, typer.Option(help="Scheduling policy")] = "agentserve",
    port: Annotated[int, typer.Option(help="Port of the gateway", min=1, max=65535)] = 8080,
    speed: Annotated[float | None, typer.Option(help="Emulated GPUs run this many times faster", min=0.01)] = None,
    script: Annotated[Path | None, typer.Option(help="Recorded replies of the emulated model (JSON lines)")] = None,
    data: Annotated[Path | None, typer.Option(help="Keep runs here over restarts")] = None,
    logs: Annotated[Path | None, typer.Option(help="Folder for every part's log")] = None,
    profiles: ProfilesFlag = None,
    json: JsonFlag = False,
) -> None:
    """Bring a local cluster up on emulated GPUs and serve until Ctrl-C."""
    asyncio.run(_up(fleet, policy, port, speed, script, data, logs, profiles or [], json))


async def _up(
    fleet_file: Path | None,
    policy: str,
    port: int,
    speed: float | None,
    script: Path | None,
    data: Path | None,
    logs: Path | None,
    profiles: list[Path],
    json: bool,
) -> None:
    from agentserve.local.cluster import LocalCluster
    from agentserve.local.fleet import default_fleet, read_fleet
    from workflows.catalog import SCRIPTS

    if fleet_file is None:
        fleet = default_fleet().model_copy(update={"profiles": tuple(profiles)})
    else:
        fleet = read_fleet(fleet_file, profiles)
    if speed is not None:
        fleet = fleet.model_copy(update={"speed": speed})
    console = Console(stderr=json)
    cluster = LocalCluster(
        fleet,
        policy=policy,
        port=port,
        script=script or SCRIPTS,
        data_dir=data,
        log_dir=logs,
        said=lambda line: console.print(f"  {line}", style="dim", highlight=False),
    )
    console.print("Starting the cluster …")
    async with cluster:
        console.print(f"[bold green]Ready.[/] OpenAI base URL: [bold]{cluster.gateway_url}/v1[/], model {fleet.model}")
        console.print(f"[bold]{cluster.gateway_url}/ui[/] shows it live in a browser.", style="dim")
        if json:
            facts = {"gateway": cluster.gateway_url, "redis": cluster.redis_url, "engines": cluster.engine_urls}
            Console(soft_wrap=True, highlight=False).print(orjson.dumps(facts).decode(), markup=False)
        console.print("Ctrl-C stops everything.", style="dim")
        await _until_stopped(cluster, console)
        console.print("Stopping …", style="dim")


async def _until_stopped(cluster: Any, console: Console) -> None:
    """Return on SIGINT or SIGTERM; say it when a part ends by itself, and go on with the rest."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)

    async def watch(name: str, ended: Callable[[], Awaitable[int]]) -> None:
        code = await ended()
        if not stopped.is_set():
            console.print(f"[yellow]{name} ended with exit code {code}[/]; the rest goes on")

    watches = [asyncio.create_task(watch(name, ended)) for name, ended in cluster.ends.items()]
    try:
        await stopped.wait()
    finally:
        for task in watches:
            task.cancel()


def ps(
    gateway: GatewayFlag = None,
    watch: Annotated[bool, typer.Option(help="Refresh until Ctrl-C")] = False,
    unfinished: Annotated[bool, typer.Option(help="Show durable runs that have not ended, from Redis")] = False,
    redis: RedisFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show instances (queue, running, KV) and live runs."""
    if unfinished:
        from agentserve.cli.durable import show_unfinished

        show_unfinished(redis, json=json)
        return
    url = gateway_url(gateway)
    console = Console(soft_wrap=json)
    if json:
        state = {**get_json(url, "/v1/cluster"), "runs": get_json(url, "/v1/runs?status=running&limit=100")["data"]}
        console.print(orjson.dumps(state).decode(), markup=False, highlight=False)
        return
    if not watch:
        console.print(_picture(url))
        return
    try:
        asyncio.run(_watch(url, console))
    except KeyboardInterrupt:
        return


async def _watch(url: str, console: Console) -> None:
    with Live(_picture(url), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(0.5)
            live.update(await asyncio.to_thread(_picture, url), refresh=True)


def _picture(url: str) -> Group:
    cluster = get_json(url, "/v1/cluster")
    try:
        runs: Table | str = _runs(get_json(url, "/v1/runs?status=running&limit=20")["data"])
    except AgentServeError as error:  # without its store the gateway still knows its instances
        runs = f"live runs are unknown: {error}"
    return Group(_instances(cluster), runs)


def _instances(cluster: dict[str, Any]) -> Table:
    mode = f" · mode {cluster['mode']}" if "mode" in cluster else ""
    table = Table(title=f"instances · policy {cluster['policy']}{mode}", title_justify="left")
    for heading in ("instance", "GPU", "role", "state"):
        table.add_column(heading)
    for heading in ("queue", "running", "KV", "prefix hits", "prefill ×", "decode ×"):
        table.add_column(heading, justify="right")
    estimates = {known["instance_id"]: known for known in cluster.get("scheduler", {}).get("instances", ())}
    for instance in cluster["instances"]:
        reported = instance.get("reported") or {}
        table.add_row(
            instance["instance_id"],
            instance["gpu"],
            instance["role"],
            instance["state"],
            _count(reported.get("waiting")),
            _count(reported.get("running")),
            _share(reported.get("kv_usage")),
            _share(reported.get("prefix_hit_rate")),
            *(_correction(estimates.get(instance["instance_id"], {}), phase) for phase in ("prefill", "decode")),
        )
    return table


def _runs(runs: list[dict[str, Any]]) -> Table:
    table = Table(title=f"live runs · {len(runs)}", title_justify="left")
    for heading in ("run", "workflow", "steps", "SLO"):
        table.add_column(heading)
    for run in runs:
        slo_s = run["slo_s"]
        table.add_row(run["run_id"], run["workflow"], str(run["steps"]), "none" if slo_s is None else f"{slo_s:g} s")
    return table


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _correction(estimate: dict[str, Any], phase: str) -> str:
    """Observed ÷ predicted times; `drift` where the GPU profile does not fit the instance any more."""
    value = estimate.get(f"{phase}_correction")
    if value is None or not estimate.get(f"{phase}_samples"):
        return "–"
    return f"[yellow]{value:.2f} drift[/]" if phase in estimate.get("drifted", ()) else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
