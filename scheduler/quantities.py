"""Which quantities does the scheduler keep per instance, and which of them follow from others?

A pool keeps them as rows of one table; `derive` says how the derived ones come about, `facts` how an announced instance
and its GPU profile fill the constant ones.
"""

from collections.abc import Callable
from typing import Any

from scheduler.events import InstanceSpec, Role
from scheduler.profiles.profile import GpuProfile

INPUTS = (
    "d0", "d1", "d2", "p0", "max_seqs", "running", "bound", "foreign", "kv_own", "kv_offset", "kv_capacity",
    "remaining", "cache_tokens", "queued_work_s", "free_at_s", "foreign_wait_s",
)  # fmt: skip
"""What the derived quantities depend on; `derive` unpacks them in this order."""
DERIVED = (
    "batch", "chunk_base_s", "step_base_s", "step_growth_s", "mean_remaining_s", "seat_wait_s", "free_from_s",
    "least_wait_s", "kv_used", "kv_slack", "cache_excess",
)  # fmt: skip
OTHERS = (
    "max_batched", "kv_bytes", "link", "capability",
    "base_p0", "base_p1", "base_p2", "base_d0", "base_d1", "base_d2", "p1", "p2",
    "own_prefill", "own_decode", "prefill_samples", "decode_samples", "gpu_prefill", "gpu_decode",
    "queued", "queued_tokens", "reported_at_s", "preempted", "trust",
    "box_q", "box_p", "box_d", "stake", "stake_tokens", "draw", "draw_tokens", "draw_at_s",
)  # fmt: skip
TABLE = INPUTS + DERIVED + OTHERS
FLAGS = ("is_open", "can_prefill", "can_decode", "can_replay")
NEVER_S = -1e18
KV_FREE_SHARE = 0.8
"""KV use from which growth is priced: above it engines begin to preempt."""
OVERDUE_SHARE = 0.25
"""Prefills that should have ended but did not are taken to need this share of their work still."""


def derive(inputs: Any, maximum: Callable[..., Any], minimum: Callable[..., Any]) -> tuple[Any, ...]:
    """The derived quantities of one row (floats, max, min) or of all (arrays, np.maximum, np.minimum): same sums."""
    (
        d0,
        d1,
        d2,
        p0,
        max_seqs,
        running,
        bound,
        foreign,
        kv_own,
        kv_offset,
        kv_capacity,
        remaining,
        cache_tokens,
        queued_work_s,
        free_at_s,
        foreign_wait_s,
    ) = inputs
    batch = running + bound + foreign
    residents = maximum(batch, 1.0)
    now_step_s = d0 + d1 * batch + d2 * kv_own
    is_busy = minimum(running + foreign, 1.0)
    others = minimum(batch, max_seqs - 1.0)
    mean_remaining_s = remaining * now_step_s / residents
    seat_wait_s = mean_remaining_s * (batch - others) / residents  # batch - others: calls that must end first
    fixed_wait_s = foreign_wait_s + seat_wait_s
    kv_used = maximum(kv_own + kv_offset, 0.0)
    return (
        batch,
        p0 + is_busy * (now_step_s - p0),
        d0 + d1 * others + d2 * kv_own,
        0.5 * d2 * others,
        mean_remaining_s,
        seat_wait_s,
        free_at_s + fixed_wait_s,
        OVERDUE_SHARE * queued_work_s + fixed_wait_s,
        kv_used,
        KV_FREE_SHARE * kv_capacity - kv_used,
        cache_tokens - kv_capacity,
    )


def facts(spec: InstanceSpec, profile: GpuProfile, shared: tuple[float, float]) -> dict[str, float | bool]:
    """What an announcement, its profile and `shared` (prefill and decode corrections of its GPU type) say at first."""
    scale = profile.calibration / spec.speed
    decode_per_sequence = scale * profile.decode_per_sequence_s + profile.overhead_per_sequence_s / spec.speed
    return {
        "kv_capacity": float(spec.kv_capacity_tokens),
        "max_seqs": float(spec.max_num_seqs),
        "max_batched": float(spec.max_batched_tokens),
        "kv_bytes": float(spec.kv_bytes_per_token),
        "link": spec.kv_link_bytes_per_s or 0.0,
        "capability": profile.capability * spec.speed,
        "base_p0": scale * profile.prefill_base_s,
        "base_p1": scale * profile.prefill_per_token_s,
        "base_p2": scale * profile.prefill_per_token2_s,
        "base_d0": scale * profile.decode_base_s,
        "base_d1": decode_per_sequence,
        "base_d2": scale * profile.decode_per_context_token_s,
        "own_prefill": 1.0,
        "own_decode": 1.0,
        "gpu_prefill": shared[0],
        "gpu_decode": shared[1],
        "reported_at_s": NEVER_S,
        "trust": 1.0,
        "box_p": scale * profile.prefill_per_token_s,
        "box_d": scale * profile.decode_base_s + decode_per_sequence,
        "is_open": True,
        "can_prefill": spec.role is not Role.DECODE,
        "can_decode": spec.role is not Role.PREFILL,
        "can_replay": spec.supports_replay,
    }
