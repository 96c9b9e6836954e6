"""Which code does a simulation run? A hash of the sources that it imports, so that old results are not taken for new.

Followed by their import statements from the simulator and the policy's own file on: a new policy, or a change in what
shows results, leaves the results of others as they are.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("agentserve", "scheduler", "workflows")
_STARTS: Final = ("agentserve.lab.simulation", "agentserve.lab.loads", "agentserve.lab.outcome")
_DATA: Final = (_ROOT / "scheduler" / "profiles" / "profiles.toml",)


@cache
def code_fingerprint(policy: str) -> str:
    """Twelve hex digits that change with any source that a simulation under this policy imports."""
    digest = hashlib.sha256()
    for path in sorted(_reached([*_STARTS, f"scheduler.policies.{policy}"])) + list(_DATA):
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _reached(modules: list[str]) -> set[Path]:
    found: set[Path] = set()
    left = list(modules)
    while left:
        path = _source_of(left.pop())
        if path is not None and path not in found:
            found.add(path)
            left += _imports(path)
    return found


def _source_of(module: str) -> Path | None:
    path = _ROOT.joinpath(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


@cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(name for name in _named(path) if name.partition(".")[0] in _PACKAGES)


def _named(path: Path) -> Iterator[str]:
    """Every module that a source may mean, at its top or inside functions: `from a import b` may mean a and a.b."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
