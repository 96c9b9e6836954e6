"""`agentserve doctor`: is every part of the cluster there and set up well, and what is to be done if not?"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentserve.cli.gateway_client import gateway_url
from agentserve.cli.parts import ProfilesFlag
from agentserve.errors import BadInput

if TYPE_CHECKING:
    from agentserve.doctor.engines import Target
    from agentserve.doctor.finding import Finding

_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    gateway: Annotated[
        str | None, typer.Option(help="The gateway's URL [default: $AGENTSERVE_GATEWAY, else http://127.0.0.1:8080]")
    ] = None,
    redis: Annotated[str | None, typer.Option(help="Redis URL")] = None,
    mqtt: Annotated[str | None, typer.Option(help="MQTT URL; empty for none")] = None,
    otlp: Annotated[str | None, typer.Option(help="OTLP endpoint, http:// or grpc://; empty for none")] = None,
    cluster: Annotated[str | None, typer.Option(help="Cluster name")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="URL[,GPU[,MODEL]]", help="An engine that no worker announces; repeat")
    ] = None,
    profiles: ProfilesFlag = None,
    timeout: Annotated[float, typer.Option(help="Seconds that each question may take")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Check gateway, Redis, broker, workers, engines and traces endpoint, and say what to fix.

    Settings come from AGENTSERVE_* variables, as the gateway's; flags win. The exit code is 1 if there is a problem.
    """
    from agentserve.doctor.examination import examine
    from agentserve.doctor.finding import Verdict
    from agentserve.settings import load_settings

    if not 0 < timeout <= 600:
        raise BadInput(f"--timeout {timeout:g}: give seconds above 0, at most 600")
    settings = load_settings(
        redis_url=redis, mqtt_url=mqtt, otlp_endpoint=otlp, cluster=cluster, profiles=profiles or None
    )
    logging.getLogger("agentserve").addHandler(logging.NullHandler())  # what it would warn of, findings say
    given = [_target(text) for text in engine or ()]
    findings = asyncio.run(examine(settings, gateway_url(gateway), given, timeout_s=timeout))
    if as_json:
        typer.echo(orjson.dumps(_as_json(findings), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(findings, Console(highlight=False))
    if any(finding.verdict is Verdict.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _target(text: str) -> "Target":
    from agentserve.doctor.engines import Target
    from agentserve.workers.config import check_url

    parts = text.split(",")
    if len(parts) > 3 or not all(parts):
        raise BadInput(f"--engine {text[:80]!r}: give URL, URL,GPU or URL,GPU,MODEL")
    check_url(parts[0])
    gpu, model = (*parts[1:], None, None)[:2]
    return Target(name=parts[0], url=parts[0], gpu=gpu, model=model)


def _as_json(findings: Sequence["Finding"]) -> dict[str, object]:
    return {
        "findings": [asdict(finding) for finding in findings],
        "counts": dict(sorted(Counter(str(f.verdict) for f in findings).items())),
    }


def _print(findings: Sequence["Finding"], console: Console) -> None:
    table = Table("part", "check", "", "what was found", "what to do")
    last = None
    for finding in findings:
        if last is not None and finding.part != last:
            table.add_section()
        verdict = str(finding.verdict)
        table.add_row(
            Text(finding.part if finding.part != last else ""),
            Text(finding.check),
            Text(verdict, style=_STYLES[verdict]),
            Text(finding.found),
            Text(finding.fix or ""),
        )
        last = finding.part
    console.print(table)
    counts = Counter(str(finding.verdict) for finding in findings)
    console.print(", ".join(f"{counts[name]} {name}" for name in _STYLES if counts[name]))
