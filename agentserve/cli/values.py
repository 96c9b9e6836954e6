"""What a flag's text means: durations, run inputs and `module:attribute` references."""

import importlib
import math
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Final

import orjson

from agentserve.errors import BadInput

_UNITS: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str, flag: str) -> float:
    """Seconds from `20`, `20s`, `500ms`, `2m` or `1h`; BadInput names the flag unless it is positive."""
    match = re.fullmatch(r"\s*([0-9.+\-eE]+?)\s*(ms|s|m|h|)\s*", text)
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"{flag} {text!r}: give a positive time such as 20s, 500ms or 2m")
    return value


def attribute(reference: str) -> tuple[Any, Any]:
    """The module and the object that `package.module:name` names, found from the working folder too."""
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise BadInput(f"{reference!r}: name a graph as MODULE:GRAPH, such as workflows.catalog.researcher:graph")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadInput(f"{reference!r}: no module named {error.name!r}") from None
    try:
        return module, getattr(module, name)
    except AttributeError:
        raise BadInput(f"{reference!r}: {module_name} has no {name!r}") from None


def run_input(text: str | None, module: Any, reference: str) -> Any:
    """The input of a run: JSON as given, `@file`, or the module's own EXAMPLE when nothing is given."""
    if text is None:
        example = getattr(module, "EXAMPLE", None)
        if example is None:
            raise BadInput(f"{reference}: has no EXAMPLE, so --input must be given")
        return example
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except OSError as error:
            raise BadInput(f"--input {text}: cannot be read ({error.strerror})") from None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"--input: not JSON ({error}); give the graph's input state as JSON, or @file") from None


def failure(error: Exception) -> str:
    """What a graph raised, and where in its own code: the frames of installed packages are left out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    text = str(error).strip().partition("\n")[0]
    where = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames)
    return f"{type(error).__name__}: {text}{where}"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    is_ours = path.is_relative_to(Path(__file__).parents[1])
    return not is_ours and "site-packages" not in path.parts and not path.is_relative_to(Path(os.__file__).parent)


def first_difference(recorded: Any, replayed: Any, path: str = "decisions") -> str:
    """Where two JSON values first differ, and what stands there in each."""
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        for key in {**recorded, **replayed}:
            if recorded.get(key) != replayed.get(key):
                return first_difference(recorded.get(key), replayed.get(key), f"{path}.{key}")
    if isinstance(recorded, list) and isinstance(replayed, list) and len(recorded) == len(replayed):
        for index, (one, other) in enumerate(zip(recorded, replayed, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{index}]")
    return f"{path} is {_short(recorded)} in the log, {_short(replayed)} when replayed"


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}…"
