"""`agentserve engine probe`: what is the engine at a URL, what can it do, and what will be missed there?"""

import asyncio
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentserve.errors import BadInput
from agentserve.workers.remedies import REMEDIES

if TYPE_CHECKING:
    from agentserve.workers.kinds import Identity
    from agentserve.workers.probe import Probe

_MARKS: Final = {True: ("yes", "green"), False: ("no", "red"), None: ("?", "yellow")}


def register(app: typer.Typer) -> None:
    """Add the group `engine`."""
    group = typer.Typer(help="Look at a single engine.", no_args_is_help=True)
    group.command("probe")(probe)
    group.callback()(_engine)
    app.add_typer(group, name="engine")


def _engine() -> None:
    """Look at a single engine."""


def probe(
    url: Annotated[str, typer.Argument(help="The engine's base URL")],
    kind: Annotated[
        str, typer.Option(help="vllm, sglang, trtllm, llamacpp, emulator, openai; auto finds out")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Served model to try [default: the first]")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that each trial may take")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Find out what an engine is and can do, by a dozen calls of one token each.

    An engine that wants a key gets the one in AGENTSERVE_ENGINE_API_KEY.
    """
    found = asyncio.run(_probe(url, kind, model, timeout))
    if as_json:
        typer.echo(orjson.dumps(_as_json(found), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found, Console(highlight=False))


async def _probe(url: str, kind: str, model: str | None, timeout_s: float) -> "Probe":
    from agentserve.workers.asking import open_client
    from agentserve.workers.config import check_url
    from agentserve.workers.probe import Given
    from agentserve.workers.probe import probe as question
    from agentserve.workers.unlisted import serves_unlisted

    async def choose(identity: "Identity") -> str:
        served = identity.names
        if model is None and served:
            return served[0]
        if model is not None and (model in served or await serves_unlisted(client, url, identity, model, timeout_s)):
            return model
        raise BadInput(f"engine {url} does not serve {model or 'any model'}; it serves {', '.join(served) or 'none'}")

    check_url(url)
    if not 0 < timeout_s < 3600:
        raise BadInput(f"--timeout {timeout_s:g}: give seconds above 0 and below an hour")
    async with open_client(
        url, api_key=os.environ.get("AGENTSERVE_ENGINE_API_KEY"), timeout_s=min(timeout_s, 5.0)
    ) as client:
        return await question(client, url, choose=choose, given=Given(kind=kind), timeout_s=timeout_s)


def _facts(found: "Probe") -> Iterator[tuple[str, Any]]:
    identity, facts = found.identity, found.facts
    yield "kind", identity.kind
    yield "known by", identity.how
    yield "version", identity.version
    yield "models", ", ".join(identity.names)
    yield "tried with", found.model
    yield "context", _tokens(facts.context_tokens)
    yield "KV cache", _tokens(facts.kv_capacity_tokens)
    yield "KV block", _tokens(facts.block_tokens)
    yield "sequences at once", facts.max_num_seqs
    if found.kv_group is not None:
        yield "KV group", found.kv_group
    if facts.kv_address is not None:
        yield "KV address", facts.kv_address


def _tokens(count: int | None) -> str | None:
    return None if count is None else f"{count:,} tokens".replace(",", " ")


def _print(found: "Probe", console: Console) -> None:
    table = Table(title=Text(f"Engine at {found.url}"), title_justify="left", show_header=False)
    for name, value in _facts(found):
        table.add_row(name, Text("not told", style="dim") if value is None else Text(str(value)))
    console.print(table)
    skills = Table("capability", "found", "how it was found")
    for skill, finding in found.skills.items():
        word, style = _MARKS[finding.found]
        skills.add_row(str(skill), Text(word, style=style), Text(finding.how))
    there = set(found.metrics.values())
    expected = len(there) + len(found.missing_metrics)
    word, style = _MARKS[bool(found.metrics) and not found.missing_metrics]
    missing = f"; missing: {', '.join(found.missing_metrics)}" if found.missing_metrics else ""
    skills.add_row(
        "metrics",
        Text(word, style=style),
        Text(f"{len(there)} of {expected}{missing}" if expected else "this kind of engine has none"),
    )
    console.print(skills)
    if not found.capabilities.is_verified:
        console.print("The adapter for this kind is tested against its published protocol, not against a real one.")
    _print_shortfalls(found, console)


def _print_shortfalls(found: "Probe", console: Console) -> None:
    shortfalls = found.capabilities.shortfalls()
    if not shortfalls:
        console.print("Nothing will be missed there.")
    else:
        console.print("What the scheduler will not be able to do there:")
    for shortfall in shortfalls:
        console.print(Text(f"  - {shortfall}"))
    if remedies := dict(_lifts(found)):
        console.print("What the engine can be started with:")
    for lacking, flags in remedies.items():
        console.print(Text(f"  - {lacking}: {flags}"))


def _lifts(found: "Probe") -> Iterator[tuple[str, str]]:
    """What is lacking, and with which flags it would not be."""
    lacking = {str(skill) for skill, finding in found.skills.items() if finding.found is False}
    if not found.metrics:
        lacking.add("metrics")
    for skill, flags in REMEDIES.get(found.identity.kind, {}).items():
        if skill in lacking:
            yield skill, flags


def _as_json(found: "Probe") -> dict[str, Any]:
    identity, facts = found.identity, found.facts
    return {
        "url": found.url,
        "kind": identity.kind,
        "kind_known_by": identity.how,
        "version": identity.version,
        "models": list(identity.names),
        "model": found.model,
        "context_tokens": facts.context_tokens,
        "kv_capacity_tokens": facts.kv_capacity_tokens,
        "block_tokens": facts.block_tokens,
        "max_num_seqs": facts.max_num_seqs,
        "kv_group": found.kv_group,
        "kv_address": facts.kv_address,
        "capabilities": {str(s): {"found": f.found, "how": f.how} for s, f in found.skills.items()},
        "metrics": dict(found.metrics),
        "missing_metrics": list(found.missing_metrics),
        "is_verified": found.capabilities.is_verified,
        "shortfalls": list(found.capabilities.shortfalls()),
        "remedies": dict(_lifts(found)),
    }
