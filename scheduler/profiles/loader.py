"""Which GPUs and models have measured profiles, and what are their constants?"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from scheduler.errors import UnknownProfile
from scheduler.profiles.profile import GpuProfile

MEMORY_SHARE = 0.9
"""Part of GPU memory that an engine takes for weights and KV cache: vLLM's default gpu_memory_utilization."""
CAPABILITY_BATCH = 32
CAPABILITY_CONTEXT_TOKENS = 2048


def load_profile(gpu: str, model: str) -> GpuProfile:
    """The profile of `model` on `gpu`, under their names here or an alias (case-insensitive).

    Raises UnknownProfile naming the known ones.
    """
    gpu_name, model_name = _canonical("gpu", gpu), _canonical("model", model)
    return _profile(gpu_name, model_name)


def known_gpus() -> tuple[str, ...]:
    """Names of the GPU types with a profile, weakest first."""
    return tuple(_tables()["gpus"])


def known_models() -> tuple[str, ...]:
    """Names of the models with a profile, smallest first."""
    return tuple(_tables()["models"])


def gpu_memory_bytes(gpu: str) -> int | None:
    """Memory of one GPU of this type, under its name or an alias; None for a type without a shipped profile."""
    entry = _tables()["gpus"].get(canonical_name("gpu", gpu))
    return None if entry is None else int(entry["memory_bytes"])


@cache
def _tables() -> Mapping[str, Any]:
    return tomllib.loads(files("scheduler.profiles").joinpath("profiles.toml").read_text("utf-8"))


def canonical_name(kind: str, name: str) -> str:
    """What the shipped profiles call a `gpu` or a `model`; a name they do not know comes back in lower case."""
    wanted = name.strip().lower()
    for canonical, entry in _tables()[f"{kind}s"].items():
        if wanted == canonical or wanted in (alias.lower() for alias in entry["aliases"]):
            return str(canonical)
    return wanted


def _canonical(kind: str, name: str) -> str:
    table, canonical = _tables()[f"{kind}s"], canonical_name(kind, name)
    if canonical not in table:
        raise UnknownProfile(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return canonical


@cache
def _profile(gpu: str, model: str) -> GpuProfile:
    gpu_entry, model_entry = _tables()["gpus"][gpu], _tables()["models"][model]
    fit = gpu_entry["models"][model]
    prefill, decode = fit["prefill_s"], fit["decode_s"]
    parallel: int = model_entry["tensor_parallel"]
    capacity_bytes = MEMORY_SHARE * gpu_entry["memory_bytes"] * parallel - model_entry["weight_bytes"]
    profile = GpuProfile(
        gpu=gpu,
        model=model,
        tensor_parallel=parallel,
        prefill_base_s=prefill[0],
        prefill_per_token_s=prefill[1],
        prefill_per_token2_s=prefill[2],
        decode_base_s=decode[0],
        decode_per_sequence_s=decode[1],
        decode_per_context_token_s=decode[2],
        calibration=_tables()["calibration"],
        overhead_per_sequence_s=_tables()["overhead_per_sequence_s"],
        kv_bytes_per_token=model_entry["kv_bytes_per_token"],
        kv_capacity_tokens=int(capacity_bytes // model_entry["kv_bytes_per_token"]),
        kv_link_bytes_per_s=gpu_entry["kv_link_bytes_per_s"],
        capability=0.0,
    )
    return with_capability(profile)


def with_capability(profile: GpuProfile) -> GpuProfile:
    """The profile with its `capability`, as its own decode constants have it."""
    step_s = profile.decode_step_s(CAPABILITY_BATCH, CAPABILITY_BATCH * CAPABILITY_CONTEXT_TOKENS)
    return replace(profile, capability=CAPABILITY_BATCH / step_s)
