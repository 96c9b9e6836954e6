"""What can be set, of which type, within which bounds, by what name? Writes docs/configuration.md from the code.

    python -m docs.generate_configuration        # `make docs`

Names, types and defaults are the fields' own; a description is the text under a field, else the help of its flag.
Bounds are pydantic's, those of the scheduler's `check_bounds`, or found by trying 0 and −1. A test compares the page.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from agentserve.cli import app
from agentserve.emulator.config import EmulatorConfig
from agentserve.errors import BadInput
from agentserve.settings import Settings
from agentserve.workers.config import WorkerConfig
from scheduler.config import SchedulerConfig
from scheduler.profiles import ProfileBook

PAGE = Path(__file__).parent / "configuration.md"

HEAD = """\
# Configuration

Written by `make docs` from the code; a test fails where the two differ. A value that is not allowed stops the program
with its name. Where *default* is empty, the setting is unset. Units are in the names.

- [The gateway](#the-gateway), by `AGENTSERVE_*` variables
- [A worker](#a-worker) and [the emulator](#the-emulator), by flags
- [Clients and other variables](#clients-and-other-variables)
- [The scheduler](#the-scheduler), by scenarios of the lab, or in Python

Parameters of policies are in [policies.md](policies.md), keys of a scenario in [lab.md](lab.md), those of a fleet file
in [`examples/fleet.toml`](../examples/fleet.toml), engines' own flags in [run-on-your-gpus.md](run-on-your-gpus.md).
"""

GATEWAY = """
## The gateway

`agentserve gateway` reads these once, when it starts; a flag wins over its variable. `agentserve doctor` reads the
same. `agentserve up` passes the environment on to its gateway, but for port, policy, Redis and broker.
"""

WORKER = """
## A worker

Flags of `agentserve worker` ([workers.md](workers.md)). It reads `AGENTSERVE_MQTT_URL`, `AGENTSERVE_CLUSTER`,
`AGENTSERVE_PROFILES` and `AGENTSERVE_ENGINE_API_KEY` too. What has no flag is a field of
`agentserve.workers.config.WorkerConfig`, for a worker started from Python.
"""

EMULATOR = """
## The emulator

Flags of `agentserve emulator` ([emulator.md](emulator.md)); it reads `AGENTSERVE_PROFILES` too. What has no flag is a
field of `agentserve.emulator.config.EmulatorConfig`.
"""

OTHERS = """
## Clients and other variables

| variable | read by | what |
|---|---|---|
| `AGENTSERVE_GATEWAY` | the SDK, `agentserve run`, `trace`, `ps`, `doctor`, `replay` | the gateway's base URL |
| `AGENTSERVE_API_KEY` | the same | the gateway's key, where it has [tenants](tenants.md) |
| `AGENTSERVE_MODEL` | the agents of the catalog | the model that they call |
| `AGENTSERVE_SECRETS_DIR` | what reads the gateway's variables; the SDK | folder of files `agentserve_…`: settings |
| `AGENTSERVE_BROKER_PASSWORD` | `agentserve broker --username` | the password that it asks for |
"""

SCHEDULER = """
## The scheduler

`scheduler.config.SchedulerConfig`. The live gateway takes the defaults, but for `migration.kv_moves`, which is
`AGENTSERVE_KV_MOVES` there. In a scenario of the lab a field is a key such as `scheduler.migration.max_moves`
([lab.md](lab.md)); in Python: `make_scheduler("agentserve", SchedulerConfig(hold_limit_s=5.0))`.
"""

_SAMPLE: Mapping[type, Mapping[str, Any]] = {
    WorkerConfig: {"engine_url": "http://127.0.0.1:8000", "gpu": "h100"},
    EmulatorConfig: {},
}
_FLAG_OF = {
    "engine_url": "engine",
    "engine": "engine_kind",
    "worker_id": "id",
    "mqtt_url": "mqtt",
    "redis_url": "redis",
}
_DERIVED = {"api_key", "handle_signals"}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One setting as the page shows it."""

    name: str
    kind: str
    default: str
    allowed: str
    text: str


def page() -> str:
    """The whole page."""
    parts = [HEAD + GATEWAY, _table(gateway_rows(), "variable")]
    parts += [WORKER, _table(flag_rows(WorkerConfig, "worker"), "flag or field")]
    parts += [EMULATOR, _table(flag_rows(EmulatorConfig, "emulator"), "flag or field"), OTHERS + SCHEDULER]
    parts.append(_table(scheduler_rows(SchedulerConfig()), "field"))
    for field in dataclasses.fields(SchedulerConfig):
        section = getattr(SchedulerConfig(), field.name)
        if dataclasses.is_dataclass(section):
            head = f"\n### `{field.name}`\n\n{inspect.getdoc(type(section))}\n"
            parts += [head, _table(scheduler_rows(section), "field")]
    return "\n".join(parts) + "\n"


def gateway_rows() -> Iterator[Row]:
    """Every field of Settings, by its variable."""
    told, flags = texts(Settings), flags_of("gateway")
    for name, field in Settings.model_fields.items():
        flag = flags.get(_FLAG_OF.get(name, name))
        variable = f"`AGENTSERVE_{name.upper()}`" + (f"<br>`{flag[0]}`" if flag else "")
        yield Row(variable, kind_of(field.annotation), shown(field.default), pydantic_bounds(field), told.get(name, ""))


def flag_rows(config: type, command: str) -> Iterator[Row]:
    """Every field of a process's configuration, by its flag where it has one."""
    told, flags, hints = texts(*reversed(config.__mro__)), flags_of(command), typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in _DERIVED:
            continue
        flag = flags.get(_FLAG_OF.get(field.name, field.name))
        name, given, said = flag or (field.name, field.default, "")
        default = field.default if given is None else given
        text = told.get(field.name) or _without_default(said)
        yield Row(
            f"`{name}`", kind_of(hints[field.name]), shown(default), tried_bounds(config, field.name, hints), text
        )


def scheduler_rows(config: Any) -> Iterator[Row]:
    """Every plain field of a section of SchedulerConfig."""
    told, bounds, hints = texts(type(config)), checked_bounds(type(config)), typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value):
            allowed = "{} to {}".format(*map(shown, bounds[field.name])) if field.name in bounds else ""
            yield Row(f"`{field.name}`", kind_of(hints[field.name]), shown(value), allowed, told.get(field.name, ""))


def texts(*classes: type) -> dict[str, str]:
    """The text under each field of the classes, later ones winning."""
    told: dict[str, str] = {}
    for one in classes:
        if one is object or not (dataclasses.is_dataclass(one) or issubclass(one, Settings)):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)  # noqa: S101  # for the type checker
        for before, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                told[ast.unparse(before.target)] = _sentence(str(after.value.value))
    return told


def flags_of(command: str) -> dict[str, tuple[str, Any, str]]:
    """Each parameter of a command: its flag, default and help."""
    group = typer.main.get_command(app)
    known = group.commands[command].params  # type: ignore[attr-defined]
    return {one.name: ("/".join((*one.opts, *one.secondary_opts)), one.default, one.help or "") for one in known}


def kind_of(annotation: Any) -> str:
    """What a person writes there."""
    annotation = _plain(annotation)
    if annotation in (SecretStr, str, Path, ProfileBook):
        return {SecretStr: "secret", str: "text", Path: "file", ProfileBook: "files"}[annotation]
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{one}`" for one in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "files"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " \\| ".join(f"`{one.value}`" for one in annotation)
    return {bool: "yes or no", int: "whole number", float: "number"}[annotation]


def shown(value: Any) -> str:
    """A default, as it would be written; nothing for what is unset."""
    if value is None or value == () or value is dataclasses.MISSING or isinstance(value, ProfileBook):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,.10g}" if abs(value) >= 10_000 else f"{value:.10g}"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def pydantic_bounds(field: FieldInfo) -> str:
    """What pydantic lets through."""
    found = {
        name: getattr(rule, name)
        for rule in field.metadata
        for name in ("ge", "gt", "le", "lt", "pattern")
        if getattr(rule, name, None) is not None
    }
    if "pattern" in found:
        return f"`{found['pattern']}`".replace("|", "\\|")
    if "ge" in found and "le" in found:
        return f"{shown(found['ge'])} to {shown(found['le'])}"
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{signs[name]} {shown(limit)}" for name, limit in found.items())


def tried_bounds(config: type, name: str, hints: Mapping[str, Any]) -> str:
    """Whether a number may be 0 or negative, found out by trying."""
    if _plain(hints[name]) not in (int, float):
        return ""
    if _refuses(config, name, 0):
        return "above 0"
    return "at least 0" if _refuses(config, name, -1) else ""


def checked_bounds(config: type) -> dict[str, tuple[Any, Any]]:
    """The bounds that a section gives to `check_bounds`."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    calls = [one for one in ast.walk(body) if isinstance(one, ast.Call) and ast.unparse(one.func) == "check_bounds"]
    return {str(word.arg): ast.literal_eval(word.value) for call in calls for word in call.keywords}


def _refuses(config: Callable[..., Any], name: str, value: float) -> bool:
    try:
        config(**{**_SAMPLE[config], name: value})  # type: ignore[index]
    except BadInput:
        return True
    return False


def _plain(annotation: Any) -> Any:
    """A type without `None` beside it."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation


def _without_default(text: str) -> str:
    """A flag's help; what it says of its default, as the texts under fields say it."""
    return _sentence(re.sub(r" \[default: ([^\]]+)\]", r"; unset: \1", text))


def _sentence(text: str) -> str:
    sentence = re.sub(r"\s+", " ", text).strip().rstrip(".").replace("None:", "unset:").replace("|", "\\|")
    return sentence[:1].upper() + sentence[1:]


def _table(rows: Iterator[Row], first: str) -> str:
    lines = [f"| {first} | type | default | allowed | what |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join((r.name, r.kind, r.default, r.allowed, r.text)) + " |" for r in rows]
    return "\n".join(re.sub(r" +", " ", line) for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE} written\n")
