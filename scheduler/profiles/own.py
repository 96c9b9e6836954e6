"""What does a profile say that a user measured, and is it sound? One mapping, as its TOML file holds it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scheduler.errors import BadProfile
from scheduler.profiles.loader import with_capability
from scheduler.profiles.profile import GpuProfile

_KEYS: Final = frozenset(
    {"gpu", "model", "aliases", "tensor_parallel", "prefill_s", "decode_s", "kv_bytes_per_token",
     "kv_capacity_tokens", "kv_link_bytes_per_s", "measured"}
)  # fmt: skip
_NAME_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class OwnProfile:
    """A profile from outside, with the other names that its model is served under."""

    profile: GpuProfile
    aliases: tuple[str, ...]
    source: str
    """Where it is from, for messages: a file's name."""


def parse_profile(entries: Mapping[str, Any], source: str) -> OwnProfile:
    """Check a profile's mapping. Raises BadProfile naming `source`, the key and what it must be.

    `prefill_s` = [p0, p1, p2] and `decode_s` = [d0, d1, d2] are in seconds and hold the host's work already, so the
    profile's calibration is 1. `measured` says where the figures are from and is not read.
    """
    unknown = sorted(set(entries) - _KEYS)
    if unknown:
        raise BadProfile(f"{source}: {unknown[0]}: no such key; known are {', '.join(sorted(_KEYS))}")
    prefill, decode = (_constants(entries, name, source) for name in ("prefill_s", "decode_s"))
    for name, constants in (("prefill_s", prefill), ("decode_s", decode)):
        if not constants[0] + constants[1] > 0.0:
            raise BadProfile(f"{source}: {name}: would cost nothing, since its first two constants are 0")
    profile = GpuProfile(
        gpu=_name(entries.get("gpu"), "gpu", source).lower(),
        model=_name(entries.get("model"), "model", source),
        tensor_parallel=_count(entries.get("tensor_parallel", 1), "tensor_parallel", source),
        prefill_base_s=prefill[0],
        prefill_per_token_s=prefill[1],
        prefill_per_token2_s=prefill[2],
        decode_base_s=decode[0],
        decode_per_sequence_s=decode[1],
        decode_per_context_token_s=decode[2],
        calibration=1.0,
        overhead_per_sequence_s=0.0,
        kv_bytes_per_token=_count(entries.get("kv_bytes_per_token"), "kv_bytes_per_token", source),
        kv_capacity_tokens=_count(entries.get("kv_capacity_tokens"), "kv_capacity_tokens", source),
        kv_link_bytes_per_s=_number(entries.get("kv_link_bytes_per_s", 0.0), "kv_link_bytes_per_s", source),
        capability=0.0,
    )
    aliases = entries.get("aliases", [])
    if not isinstance(aliases, list):
        raise BadProfile(f"{source}: aliases: must be a list of names, is {aliases!r:.80}")
    names = tuple(_name(alias, f"aliases[{i}]", source) for i, alias in enumerate(aliases))
    return OwnProfile(with_capability(profile), names, source)


def to_plain(own: OwnProfile) -> dict[str, Any]:
    """The mapping that `parse_profile` reads, without provenance."""
    profile = own.profile
    scale, per_sequence_s = profile.calibration, profile.overhead_per_sequence_s
    plain: dict[str, Any] = {
        "gpu": profile.gpu,
        "model": profile.model,
        "aliases": list(own.aliases),
        "tensor_parallel": profile.tensor_parallel,
        "prefill_s": [
            scale * profile.prefill_base_s,
            scale * profile.prefill_per_token_s,
            scale * profile.prefill_per_token2_s,
        ],
        "decode_s": [
            scale * profile.decode_base_s,
            scale * profile.decode_per_sequence_s + per_sequence_s,
            scale * profile.decode_per_context_token_s,
        ],
        "kv_bytes_per_token": profile.kv_bytes_per_token,
        "kv_capacity_tokens": profile.kv_capacity_tokens,
    }
    return plain | ({"kv_link_bytes_per_s": profile.kv_link_bytes_per_s} if profile.kv_link_bytes_per_s else {})


def _constants(entries: Mapping[str, Any], name: str, source: str) -> tuple[float, float, float]:
    values = entries.get(name)
    if not isinstance(values, list) or len(values) != 3:
        raise BadProfile(f"{source}: {name}: must be a list of three times in seconds, is {values!r:.80}")
    first, second, third = (_number(value, f"{name}[{i}]", source) for i, value in enumerate(values))
    return first, second, third


def _name(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= _NAME_CHARS or not value.isprintable():
        raise BadProfile(f"{source}: {key}: must be a name of 1 to {_NAME_CHARS} characters, is {value!r:.80}")
    return value.strip()


def _count(value: Any, key: str, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadProfile(f"{source}: {key}: must be a whole number above 0, is {value!r:.80}")
    return value


def _number(value: Any, key: str, source: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise BadProfile(f"{source}: {key}: must be a finite number of at least 0, is {value!r:.80}")
    return float(value)
