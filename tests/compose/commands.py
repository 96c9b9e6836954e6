"""How does the harness run a program? Quietly, at the lowest priority; one that fails tells the end of what it said."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

BEGAN_S = time.monotonic()
CALM = ("nice", "-n", "19")


class CannotRun(Exception):
    """The test cannot be done here; the message says what is missing."""


def say(line: str) -> None:
    """One line of the log, with the seconds since the start."""
    sys.stdout.write(f"[{time.monotonic() - BEGAN_S:6.1f} s] {line}\n")
    sys.stdout.flush()


def ran(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    within_s: float = 600,
    stdin: str | None = None,
) -> str:
    """What the program wrote to its standard output; CannotRun with the end of its errors if it fails."""
    arguments = [*CALM, *map(str, command)]
    done = subprocess.run(
        arguments,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-3000:]
        raise CannotRun(f"`{' '.join(arguments[3:9])} …` ended with {done.returncode}:\n{said}")
    return done.stdout


def works(*command: str | Path, env: Mapping[str, str] | None = None, within_s: float = 60) -> bool:
    """Whether the program is there and ends well."""
    try:
        ran(*command, env=env, within_s=within_s)
    except (CannotRun, OSError, subprocess.TimeoutExpired):
        return False
    return True


def lines(text: str) -> Sequence[str]:
    """Its lines that are not empty."""
    return [line for line in text.splitlines() if line.strip()]
