"""`resume` goes on with a durable run whose process died; `ps --unfinished` lists such runs."""

import asyncio
import os
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from agentserve.cli.cluster import GatewayFlag, JsonFlag, RedisFlag
from agentserve.cli.gateway_client import gateway_url, get_json
from agentserve.cli.runs import print_result
from agentserve.cli.values import attribute, failure
from agentserve.errors import AgentServeError, BadInput


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(resume)


def resume(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="An id that `agentserve ps --unfinished` shows")],
    app: Annotated[
        str | None, typer.Option(metavar="MODULE:GRAPH", help="The run's graph [default: as the run was begun]")
    ] = None,
    retry: Annotated[list[str] | None, typer.Option(help="A node that may be executed again; repeatable")] = None,
    redis: RedisFlag = None,
    gateway: GatewayFlag = None,
    json: JsonFlag = False,
) -> None:
    """Go on with a durable run whose process died: same id, same deadline, finished steps not executed again."""
    from agentserve.gateway.identity import check_run_id  # the server's libraries are not needed for --help
    from agentserve.sdk.durable import DurableStore
    from agentserve.sdk.redis_link import link_from_environment
    from agentserve.sdk.served import ServedGraph, serve

    check_run_id("RUN", run_id)
    url = gateway_url(gateway)
    os.environ["AGENTSERVE_GATEWAY"] = url  # read by the models that the graph's module makes when it is imported
    link = link_from_environment(redis)
    about = DurableStore(link).find(run_id)
    get_json(url, f"/v1/runs/{run_id}")
    if about is None:
        raise BadInput(f"run {run_id} is not kept in Redis at {link.address}: only runs served with durable=True are")
    reference = app or about.app
    if reference is None:
        raise BadInput(f"run {run_id} does not say where its graph is: name it with --app MODULE:GRAPH")
    _, found = attribute(reference)
    graph = found.graph if isinstance(found, ServedGraph) else found
    bare = graph.copy(update={"checkpointer": None}) if isinstance(found, ServedGraph) else graph
    served = serve(bare, slo_s=about.slo_s, name=about.workflow, gateway=url, durable=redis or True, app=reference)
    try:
        result = asyncio.run(served.aresume(run_id, retry=retry or ()))
    except AgentServeError:
        raise
    except Exception as error:
        raise AgentServeError(f"{reference} failed (run {run_id}): {failure(error)}") from error
    print_result(result, json=json)


def show_unfinished(redis: str | None, *, json: bool) -> None:
    """Print the durable runs that have not ended."""
    from agentserve.sdk.durable import DurableStore, Unfinished
    from agentserve.sdk.redis_link import link_from_environment

    runs = DurableStore(link_from_environment(redis)).unfinished()
    if json:
        told = [{**_plain(run), "driven": run.driven} for run in runs]
        Console(soft_wrap=True).print(orjson.dumps(told).decode(), markup=False, highlight=False)
        return

    def row(run: Unfinished) -> tuple[str, ...]:
        about = run.about
        slo = "none" if about.slo_s is None else f"{about.slo_s:g} s"
        return about.run_id, about.workflow, about.app or "–", slo, "running" if run.driven else "[yellow]left alone[/]"

    table = Table(title=f"unfinished durable runs · {len(runs)}", title_justify="left")
    for heading in ("run", "workflow", "app", "SLO", "state"):
        table.add_column(heading)
    for run in runs:
        table.add_row(*row(run))
    Console().print(table)


def _plain(run: Any) -> dict[str, Any]:
    about = run.about
    return {name: getattr(about, name) for name in ("run_id", "workflow", "app", "thread", "slo_s", "submitted_s")}
