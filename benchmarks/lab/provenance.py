"""Where is a result from? Command, seeds, commit and machine, as every recorded result names them."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
RESULTS = _ROOT / "benchmarks" / "results"


def provenance(seeds: Sequence[int]) -> dict[str, Any]:
    """The facts of this run, as JSON data."""
    return {
        "command": f"python -m {_module()} {' '.join(sys.argv[1:])}".strip(),
        "seeds": list(seeds),
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _module() -> str:
    path = Path(sys.argv[0]).resolve()
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts) if path.is_relative_to(_ROOT) else path.name


def _git(*words: str) -> str:
    done = subprocess.run(("git", "-C", str(_ROOT), *words), capture_output=True, text=True, check=False)
    return done.stdout.strip()
