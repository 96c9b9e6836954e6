"""How does the harness run a program? Quietly, at the lowest priority; one that fails tells the end of what it said."""

import os
import signal
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
    shown = f"`{' '.join(arguments[3:9])} …`"
    process = subprocess.Popen(
        arguments,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=within_s)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{shown} did not end within {within_s:g} s") from None
    finally:
        if process.returncode is None:  # with all that it started
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise CannotRun(f"{shown} ended with {process.returncode}:\n{(err.strip() or out.strip())[-3000:]}")
    return out


def works(*command: str | Path, env: Mapping[str, str] | None = None, within_s: float = 60) -> bool:
    """Whether the program is there and ends well."""
    try:
        ran(*command, env=env, within_s=within_s)
    except (CannotRun, OSError):
        return False
    return True


def lines(text: str) -> Sequence[str]:
    """Its lines that are not empty."""
    return [line for line in text.splitlines() if line.strip()]
