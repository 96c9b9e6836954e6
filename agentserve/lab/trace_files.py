"""Which trace format is a file in, and what are its lines? Plain or gzip, told by content, within limits."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from agentserve.errors import BadInput, TooLarge

MAX_FILE_BYTES: Final = 512 * 2**20
MAX_LINE_BYTES: Final = 64 * 2**20
MAX_LINES: Final = 5_000_000
_GZIP_MAGIC: Final = b"\x1f\x8b"


class TraceFormat(StrEnum):
    """The formats that are read."""

    SESSIONS = "coding-agent sessions (JSON lines with id, block_size, requests)"
    MOONCAKE = "Mooncake (JSON lines with timestamp, input_length, output_length, hash_ids)"
    AZURE = "Azure LLM inference (CSV: TIMESTAMP,ContextTokens,GeneratedTokens)"
    SERVEGEN = "ServeGen client windows (CSV: client,t_s,rate_rps,iat_cv,iat_family,…)"
    TEXT = "recorded texts (JSON lines with input and output, or prompt and response)"


Line = tuple[int, bytes]
"""Line number from 1, and its bytes without the line end; never empty."""


def open_trace(path: Path) -> tuple[TraceFormat, Iterator[Line]]:
    """The format of a file and its lines, a CSV's without its header.

    Raises BadInput if it cannot be read or is in no known format, TooLarge over a limit; both name file and line.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise BadInput(f"{path}: is empty; a trace is expected: {_known()}")
    found = _format_of(path, first[1])
    is_csv = found in (TraceFormat.AZURE, TraceFormat.SERVEGEN)
    return found, lines if is_csv else chain([first], lines)


def parse_object(path: Path, line: Line) -> Mapping[str, Any]:
    """The JSON object of a line; BadInput names the line otherwise."""
    try:
        value = orjson.loads(line[1])
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path}: line {line[0]}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: line {line[0]}: expected a JSON object")
    return value


def number(path: Path, line_no: int, name: str, value: object, low: float, high: float) -> float:
    """`value` as a number from `low` to `high`; BadInput names line, field and what was expected otherwise."""
    try:
        found = float(value) if isinstance(value, int | float | str | bytes) and not isinstance(value, bool) else None
    except ValueError:
        found = None
    if found is None or not low <= found <= high:
        shown = str(value)[:40]
        raise BadInput(f"{path}: line {line_no}: {name} is {shown!r}; expected a number from {low:g} to {high:g}")
    return found


def tokens(path: Path, line_no: int, name: str, value: object, low: int = 0) -> int:
    """`value` as a count of tokens up to ten million."""
    return round(number(path, line_no, name, value, low, 1e7))


def _lines(path: Path) -> Iterator[Line]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TooLarge(f"{path}: {path.stat().st_size} bytes; the limit is {MAX_FILE_BYTES}")
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
            for line_no in range(1, MAX_LINES + 2):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise TooLarge(f"{path}: line {line_no}: longer than {MAX_LINE_BYTES} bytes")
                if line_no > MAX_LINES:
                    raise TooLarge(f"{path}: more than {MAX_LINES} lines")
                if text := line.strip():
                    yield line_no, text
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(f"{path}: cannot be read ({reason})") from None


def _format_of(path: Path, first: bytes) -> TraceFormat:
    if first.lstrip(b"\xef\xbb\xbf").startswith(b"TIMESTAMP,ContextTokens,GeneratedTokens"):
        return TraceFormat.AZURE
    if first.startswith(b"client,t_s,rate_rps,iat_cv"):
        return TraceFormat.SERVEGEN
    if first.startswith(b"{"):
        row = parse_object(path, (1, first))
        if isinstance(row.get("requests"), list) and "block_size" in row:
            return TraceFormat.SESSIONS
        if "hash_ids" in row and "input_length" in row:
            return TraceFormat.MOONCAKE
        if {"input", "output"} <= row.keys() or {"prompt", "response"} <= row.keys():
            return TraceFormat.TEXT
    raise BadInput(f"{path}: line 1: not a trace in a known format: {_known()}")


def _known() -> str:
    return "; ".join(TraceFormat)
