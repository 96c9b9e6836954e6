"""`run` executes a graph, `replay` sends a recorded load, `trace` explains a run, `verify-log` decides a log anew."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agentserve.cli.cluster import GatewayFlag, JsonFlag, RedisFlag
from agentserve.cli.gateway_client import gateway_url, get_json
from agentserve.cli.values import attribute, duration_s, failure, first_difference, run_input
from agentserve.errors import AgentServeError, BadInput


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(run)
    app.command()(trace)
    app.command()(replay)
    app.command("verify-log")(verify_log)


def run(
    graph: Annotated[str, typer.Argument(metavar="MODULE:GRAPH", help="A compiled LangGraph graph")],
    slo: Annotated[str, typer.Option(help="End-to-end SLO: 20s, 500ms, 2m")],
    input: Annotated[str | None, typer.Option(help="JSON, or @file [default: the module's EXAMPLE]")] = None,  # noqa: A002  # the flag's name
    durable: Annotated[bool, typer.Option(help="Keep the run in Redis, for `resume`")] = False,
    redis: RedisFlag = None,
    gateway: GatewayFlag = None,
    json: JsonFlag = False,
) -> None:
    """Run a graph on the cluster with one end-to-end SLO."""
    import os

    slo_s = duration_s(slo, "--slo")
    url = gateway_url(gateway)
    os.environ["AGENTSERVE_GATEWAY"] = url  # read by the models that the graph's module makes when it is imported
    get_json(url, "/healthz")
    module, compiled = attribute(graph)
    state = run_input(input, module, graph)

    import agentserve

    kept = durable and (redis or True)
    served = agentserve.serve(compiled, slo_s=slo_s, name=_name(graph), gateway=url, durable=kept, app=graph)
    try:
        result = asyncio.run(served.arun(state))
    except AgentServeError:
        raise
    except Exception as error:
        run_id = f"run {served.last_run.run_id}" if served.last_run is not None else "no run"
        raise AgentServeError(f"{graph} failed ({run_id}): {failure(error)}") from error
    print_result(result, json=json)


def print_result(result: Any, *, json: bool) -> None:
    """What came of a run, and how to see more."""
    console = Console(soft_wrap=json)
    if json:
        plain = {
            "run_id": result.run_id,
            "e2e_s": result.e2e_s,
            "slo_s": result.slo_s,
            "attained": result.attained,
            "output": result.output,
        }
        console.print(orjson.dumps(plain, default=str).decode(), markup=False, highlight=False)
        return
    console.print(result.output)
    verdict = "[green]inside its SLO[/]" if result.attained else "[red]past its SLO[/]"
    slo = "no SLO" if result.slo_s is None else f"{verdict} of {result.slo_s:g} s"
    console.print(f"run [bold]{result.run_id}[/]: {result.e2e_s:.2f} s, {slo}")
    console.print(f"agentserve trace {result.run_id}", style="dim")


def _name(graph: str) -> str:
    module, _, name = graph.partition(":")
    last = module.rpartition(".")[2]
    return last if name == "graph" else f"{last}.{name}"


def trace(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id")],
    gateway: GatewayFlag = None,
    redis: Annotated[str | None, typer.Option(help="Read from this Redis instead of asking the gateway")] = None,
    cluster: Annotated[str, typer.Option(help="Cluster name, with --redis")] = "default",
    json: JsonFlag = False,
) -> None:
    """Draw a run as a waterfall: steps, deadlines, choices with their reasons, migrations."""
    from agentserve.gateway.identity import check_run_id
    from agentserve.run_story import explain_json
    from agentserve.waterfall import render_run

    check_run_id("RUN", run_id)
    if redis is None:
        url = gateway_url(gateway)
        run, events = get_json(url, f"/v1/runs/{run_id}"), get_json(url, f"/v1/runs/{run_id}/events")["data"]
    else:
        run, events = asyncio.run(_from_redis(redis, cluster, run_id))
    console = Console(soft_wrap=json)
    if json:
        plain = orjson.dumps(explain_json(run, events)).decode()
        console.print(plain, markup=False, highlight=False)
    else:
        console.print(render_run(run, events))


async def _from_redis(url: str, cluster: str, run_id: str) -> tuple[Any, Any]:
    from agentserve.settings import load_settings
    from agentserve.tracker.redis import RedisStore

    store = await RedisStore.connect(load_settings(redis_url=url, cluster=cluster))
    try:
        return await store.load(run_id), await store.read(run_id)
    finally:
        await store.close()


def replay(
    trace_file: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file in any of the known formats")],
    speed: Annotated[
        float | None,
        typer.Option(help="Compress the load's times by this [default: the instances' own speed]", min=0.01),
    ] = None,
    slo: Annotated[str | None, typer.Option(help="The same SLO for every run, such as 30s")] = None,
    slo_scale: Annotated[float, typer.Option(help="Without --slo: this times the run's solo time", min=0.1)] = 2.0,
    arrivals: Annotated[Path | None, typer.Option(help="Take arrival times from another trace")] = None,
    rate: Annotated[float | None, typer.Option(help="Runs per second to scale the arrivals to", min=1e-6)] = None,
    prompt_scale: Annotated[float, typer.Option(help="Multiply prompt tokens", min=1e-4)] = 1.0,
    output_scale: Annotated[float, typer.Option(help="Multiply output tokens", min=1e-4)] = 1.0,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Leave out runs with a longer prompt", min=1)] = None,
    max_tool_gap_s: Annotated[float | None, typer.Option(help="Cut longer tool times", min=0)] = None,
    limit: Annotated[int, typer.Option(help="At most so many runs", min=1)] = 100,
    model: Annotated[str, typer.Option(help="Model to ask for")] = "llama-3.1-8b",
    seed: Annotated[int, typer.Option(help="Seed of everything drawn")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here")] = None,
    gateway: GatewayFlag = None,
    json: JsonFlag = False,
) -> None:
    """Send a recorded load to the gateway as its clients would, and measure."""
    from agentserve.lab.replay import FixedSlo, SoloScaleSlo
    from agentserve.lab.replay import replay as send
    from agentserve.lab.report import comparison_table, write_report
    from agentserve.lab.workloads import WorkloadOptions, load_workload

    url = gateway_url(gateway)
    cluster = get_json(url, "/v1/cluster")
    policy = str(cluster["policy"])
    if speed is None:  # an emulated cluster may run faster than its GPUs: the load must be compressed alike
        speed = max((float(instance["speed"]) for instance in cluster["instances"]), default=1.0)
    rule = SoloScaleSlo(slo_scale) if slo is None else FixedSlo(duration_s(slo, "--slo"))
    options = WorkloadOptions(
        prompt_scale=prompt_scale,
        output_scale=output_scale,
        max_prompt_tokens=max_prompt_tokens,
        max_tool_gap_s=max_tool_gap_s,
        arrivals=arrivals,
        rate_per_s=rate,
        limit=limit,
        seed=seed,
    )
    workload = load_workload(trace_file, options)
    console = Console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task(f"replaying {trace_file.name}", total=len(workload.plans))
        result = asyncio.run(
            send(
                workload,
                url,
                speed=speed,
                slo=rule,
                model=model,
                seed=seed,
                on_progress=lambda done: progress.update(task, completed=done.runs_done),
            )
        )
    if report is not None:
        write_report(report, {policy: result}, title=f"Replay of {trace_file.name}", notes=workload.notes)
        console.print(f"report: {report}")
    if json:
        Console(soft_wrap=True).print(orjson.dumps(result.to_plain()).decode(), markup=False, highlight=False)
    else:
        console.print(comparison_table({policy: result}))


def progress_bar(console: Console) -> Progress:
    """The progress display of everything that takes long."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def verify_log(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Written by a gateway with AGENTSERVE_EVENT_LOG")],
    json: JsonFlag = False,
) -> None:
    """Replay a recorded event log through a fresh scheduler and compare every decision."""
    from scheduler.core import make_scheduler
    from scheduler.errors import SchedulerError
    from scheduler.wire import replay as replay_log

    events = 0

    def counted(lines: Iterable[str]) -> Iterator[str]:
        nonlocal events
        for line in lines:
            yield line
            events += 1

    try:
        with log.open(encoding="utf-8") as lines:
            mismatch = replay_log(counted(lines), make_scheduler)
    except OSError as error:
        raise BadInput(f"event log {log}: cannot be read ({error.strerror})") from None
    except (SchedulerError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"event log {log}: line {events + 1}: not an event log ({error})") from None
    if json:
        plain = {"lines": events, "identical": mismatch is None}
        Console(soft_wrap=True).print(orjson.dumps(plain).decode(), markup=False, highlight=False)
    if mismatch is not None:
        raise AgentServeError(
            f"event log {log}: event {mismatch.line} ({mismatch.event.get('type')}) was decided differently: "
            f"{first_difference(mismatch.recorded, mismatch.replayed)}"
        )
    if not json:
        Console().print(f"[green]identical:[/] {events - 1:,} events decided as recorded")
