"""What does a measured profile look like as a file? TOML with the constants, and where they are from."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from agentserve.errors import BadInput
from agentserve.profiler.fit import Fit
from agentserve.profiler.points import Check, Points, mape
from agentserve.profiler.tasks import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was measured, under the names that the file gives it, and what no measurement over HTTP can tell."""

    gpu: str
    model: str
    aliases: tuple[str, ...]
    tensor_parallel: int
    kv_bytes_per_token: int
    kv_link_bytes_per_s: float | None
    engine: str
    engine_version: str | None


def profile_entries(subject: Subject, fit: Fit, bounds: Bounds) -> dict[str, Any]:
    """The part of the file that the scheduler reads."""
    entries: dict[str, Any] = {
        "gpu": subject.gpu,
        "model": subject.model,
        "aliases": list(subject.aliases),
        "tensor_parallel": subject.tensor_parallel,
        "prefill_s": [_rounded(value) for value in fit.prefill_s],
        "decode_s": [_rounded(value) for value in fit.decode_s],
        "kv_bytes_per_token": subject.kv_bytes_per_token,
        "kv_capacity_tokens": bounds.kv_capacity_tokens,
    }
    link = subject.kv_link_bytes_per_s
    return entries | ({"kv_link_bytes_per_s": link} if link else {})


def provenance(
    subject: Subject, fit: Fit, points: Points, bounds: Bounds, checks: Sequence[Check], measured_at: datetime
) -> dict[str, Any]:
    """Where the constants are from and how well they fit, in shares; without the URL, which is nobody else's matter."""
    held = {
        f"held_out_{check.figure.lower()}_batch_{check.batch}_mape": _share(
            [c.error for c in checks if (c.figure, c.batch) == (check.figure, check.batch)]
        )
        for check in checks
    }
    entries = {
        "at": measured_at.isoformat(timespec="seconds"),
        "engine": subject.engine,
        "engine_version": subject.engine_version,
        "prefill_points": len(points.prefill),
        "decode_points": len(points.decode),
        "samples": sum(len(p.ttfts_s) for p in points.prefill) + sum(len(p.steps_s) for p in points.decode),
        "longest_prompt_tokens": max(point.new_tokens for point in points.prefill),
        "largest_batch": max(point.batch for point in points.decode),
        "max_batched_tokens": bounds.max_batched_tokens,
        "block_tokens": bounds.block_tokens,
        "overhead_s": _rounded(points.overhead_s),
        "prefill_mape": _share(list(fit.prefill_errors)),
        "prefill_worst": round(max(map(abs, fit.prefill_errors)), 4),
        "decode_mape": _share(list(fit.decode_errors)),
        "decode_worst": round(max(map(abs, fit.decode_errors)), 4),
        **held,
    }
    return {name: value for name, value in entries.items() if value is not None}


def to_toml(entries: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The file's text."""
    lines = [
        "# GPU profile measured by `agentserve profile`; docs/profiles.md explains the keys. Times are in seconds."
    ]
    lines += [f"{name} = {_toml(value)}" for name, value in entries.items()]
    lines += ["", "[measured]", *(f"{name} = {_toml(value)}" for name, value in measured.items())]
    return "\n".join(lines) + "\n"


def default_path(gpu: str, model: str) -> Path:
    """`profiles/GPU--MODEL.toml`, with nothing in it that a path would take for its own."""
    return Path("profiles") / f"{_plain_name(gpu)}--{_plain_name(model)}.toml"


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raise BadInput for a file that is there, before time is spent on measuring."""
    if path.exists() and not force:
        raise BadInput(f"profile file {path} exists: give --force to replace it, or another --out")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that others see the old or the new one, whole. Raises BadInput naming it."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        with suppress(OSError):
            Path(temporary).unlink()
        raise BadInput(f"profile file {path}: cannot be written ({error.strerror})") from None


def _share(errors: list[float]) -> float | None:
    value = mape(errors)
    return None if value is None else round(value, 4)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return orjson.dumps(value).decode()  # a JSON string is a TOML string
    return repr(value)


def _plain_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name.lower()).strip(".-") or "unnamed"
