"""How do users' own GPU profiles come from files? Read and checked once, before anything starts."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agentserve.errors import BadInput
from scheduler.errors import BadProfile
from scheduler.profiles import ProfileBook, profile_book

MAX_FILE_BYTES: Final = 256 * 1024


def read_profiles(paths: Sequence[Path]) -> ProfileBook:
    """A book of the shipped profiles and those in `paths` (TOML). BadInput names the file, the key and why."""
    try:
        return profile_book([(f"profile file {path}", _entries(path)) for path in paths])
    except BadProfile as error:
        raise BadInput(str(error)) from None


def _entries(path: Path) -> Mapping[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"profile file {path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"profile file {path}: {len(raw):,} bytes, at most {MAX_FILE_BYTES:,} are read")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"profile file {path}: not TOML: {error}") from None
