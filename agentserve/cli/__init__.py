"""The command `agentserve`: one sub-command per job; errors are one line and an exit code."""

import sys

import typer
from rich.console import Console

from agentserve.cli import cluster, demo, doctor, durable, engine, keys, lab, mode, parts, profile, runs
from agentserve.errors import AgentServeError

app = typer.Typer(
    name="agentserve",
    help="Serve LLM agents so that their runs finish inside one SLO, on the GPUs at hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (cluster, mode, runs, durable, demo, keys, lab, parts, engine, doctor, profile):
    module.register(app)


def main() -> None:
    """Run the command line; an AgentServeError is printed without a traceback and becomes the exit code."""
    try:
        app()
    except AgentServeError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {_escaped(str(error))}")
        sys.exit(error.exit_code)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
