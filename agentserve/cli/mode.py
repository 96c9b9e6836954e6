"""`agentserve mode` shows what the scheduler may do and what runs did so far, and switches it."""

from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from agentserve.cli.cluster import GatewayFlag, JsonFlag
from agentserve.cli.gateway_client import gateway_url, get_json, put_json

_HEADINGS = ("runs", "in time", "e2e p50", "e2e p95", "moves", "splits")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(mode)


def mode(
    to: Annotated[
        str | None, typer.Argument(metavar="[observe|route|migrate|split]", help="Switch the cluster to this mode")
    ] = None,
    gateway: GatewayFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show the mode of the cluster with the figures of each, or switch it: live, for every gateway, over restarts."""
    url = gateway_url(gateway)
    told = get_json(url, "/v1/mode") if to is None else put_json(url, "/v1/mode", {"mode": to})
    console = Console(soft_wrap=json)
    if json:
        console.print(orjson.dumps(told).decode(), markup=False, highlight=False)
        return
    console.print(picture(told))
    for line in remarks(told):
        console.print(line, highlight=False)


def picture(told: dict[str, Any]) -> Table:
    """A line for each mode: what runs did since it was switched to; under `observe` the estimate for our policy."""
    table = Table(title=f"mode {told['mode']}", title_justify="left")
    table.add_column("mode")
    table.add_column("placed by")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for name in told["modes"]:
        found = (told["figures"] or {}).get(name)
        mark = "[bold]▸ " if name == told["mode"] else "  "
        policy = told["observed_policy"] if name == "observe" else told["policy"]
        table.add_row(f"{mark}{name}", policy, *(_measured(found) if found else ["–"] * len(_HEADINGS)))
        estimate = (found or {}).get("estimate")
        if estimate:
            table.add_row("    estimated", told["policy"], *_estimated(estimate), style="dim")
    return table


def remarks(told: dict[str, Any]) -> list[str]:
    """What has to be known to read the table."""
    if told["figures"] is None:
        return [f"figures are unknown: {told['problem']}"]
    observed = told["figures"].get("observe")
    if not observed or not observed["estimate"]:
        return []
    estimate, check = observed["estimate"], observed["estimate"]["check"]
    return [
        f"The estimate is no measurement. The same predictions for the placements really taken say "
        f"{_share(check['predicted_attained_share'])} in time where {_share(check['measured_attained_share'])} were, "
        f"and are off by {_seconds(check['e2e_error_p50_s'])} (p95 {_seconds(check['e2e_error_p95_s'])}) a run.",
        f"{estimate['elsewhere']} of {estimate['calls']} calls would have gone elsewhere, {estimate['kept']} waited.",
    ]


def _measured(found: dict[str, Any]) -> list[str]:
    times = (_seconds(found["e2e_p50_s"]), _seconds(found["e2e_p95_s"]))
    return [
        str(found["runs"]), _share(found["attained_share"]), *times, str(found["migrations"]), str(found["splits"])
    ]  # fmt: skip


def _estimated(estimate: dict[str, Any]) -> list[str]:
    times = (_seconds(estimate["e2e_p50_s"]), _seconds(estimate["e2e_p95_s"]))
    return [str(estimate["runs"]), _share(estimate["attained_share"]), *times, "", ""]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"
