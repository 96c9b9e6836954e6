"""`agentserve keys`: API keys of tenants, which a running gateway takes up by itself, and keys of workers."""

import os
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from agentserve.cli.cluster import JsonFlag
from agentserve.errors import BadInput

FileFlag = Annotated[Path | None, typer.Option("--file", help="The tenants' file [default: $AGENTSERVE_TENANTS_FILE]")]
keys = typer.Typer(help="API keys of tenants (new, list, revoke) and keys of workers.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(keys, name="keys")


@keys.command()
def new(
    tenant: Annotated[str, typer.Argument(help="Whose key it is; a new name gets a table of defaults")],
    admin: Annotated[bool, typer.Option("--admin", help="A new tenant sees everything and switches the mode")] = False,
    file: FileFlag = None,
    json: JsonFlag = False,
) -> None:
    """Make a key and print it, once: the file keeps its hash only."""
    from agentserve.tenants.file import add_key

    path = _path(file)
    made = add_key(path, tenant, admin=admin)
    if json:
        typer.echo(orjson.dumps({"id": made.key_id, "tenant": tenant, "key": made.text}).decode())
        return
    typer.echo(made.text)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(
        f"This is the only time that key {made.key_id} of {tenant} is shown; {path} keeps its hash.", style="dim"
    )


@keys.command("list")
def list_(file: FileFlag = None, json: JsonFlag = False) -> None:
    """Show whose keys there are, by their ids."""
    from agentserve.tenants.file import read_tenants

    read = read_tenants(_path(file))
    rows = [
        {
            "id": key.id,
            "tenant": key.tenant,
            "admin": read.tenants[key.tenant].admin,
            "made_at": None if key.made_at is None else key.made_at.isoformat(),
        }
        for key in read.keys.values()
    ]
    if json:
        typer.echo(orjson.dumps(rows).decode())
        return
    table = Table("id", "tenant", "admin", "made at")
    for row in rows:
        table.add_row(str(row["id"]), str(row["tenant"]), "yes" if row["admin"] else "", str(row["made_at"] or "–"))
    Console(highlight=False).print(table)


@keys.command()
def worker(
    worker_id: Annotated[str, typer.Argument(metavar="ID", help="The worker's id")],
    cluster: Annotated[
        str | None, typer.Option(help="Cluster name [default: $AGENTSERVE_CLUSTER, else default]")
    ] = None,
) -> None:
    """Print a worker's AGENTSERVE_WORKER_KEY, with which it signs, made of the gateway's AGENTSERVE_ANNOUNCE_SECRET."""
    from agentserve.settings import load_settings
    from agentserve.telemetry.signing import worker_key

    settings = load_settings(cluster=cluster)
    if settings.announce_secret is None:
        raise BadInput(
            "set AGENTSERVE_ANNOUNCE_SECRET to the gateway's secret, or put its file into AGENTSERVE_SECRETS_DIR"
        )
    typer.echo(worker_key(settings.announce_secret.get_secret_value(), settings.cluster, worker_id))


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="A key's id, as `list` shows it")], file: FileFlag = None
) -> None:
    """Take a key out: within a second no gateway knows it any more."""
    from agentserve.tenants.file import revoke_key

    tenant = revoke_key(_path(file), key_id)
    typer.echo(f"key {key_id} of {tenant} is revoked")


def _path(given: Path | None) -> Path:
    named = given or os.environ.get("AGENTSERVE_TENANTS_FILE")
    if not named:
        raise BadInput("name the tenants' file with --file or AGENTSERVE_TENANTS_FILE")
    return Path(named)
