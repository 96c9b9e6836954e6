"""What does the scheduler believe about the cluster? Plain JSON values, for `ps`, `/v1/cluster` and metrics."""

from typing import Any, Final

from scheduler.call import CallState
from scheduler.estimate import Floats, Pool
from scheduler.state import ClusterState

DRIFT: Final = 0.25
"""From this difference of observed to predicted times on, the profile does not fit the instance any more …"""
DRIFT_SAMPLES: Final = 8.0
"""… where at least so many samples say so."""


def snapshot(state: ClusterState) -> dict[str, Any]:
    """Every instance's estimated and reported state in id order per model, and live calls by state."""
    counts = {name.value: 0 for name in CallState}
    for call in state.calls.values():
        counts[call.state.value] += 1
    instances = [_instance(state, pool, row) for _, pool in sorted(state.pools.items()) for row in range(len(pool.ids))]
    return {"now_s": state.now_s, "calls": counts, "instances": instances}


def _instance(state: ClusterState, pool: Pool, row: int) -> dict[str, Any]:
    name = pool.ids[row]
    spec, report = pool.specs[name], pool.reports.get(name)
    prefill, decode = pool.corrections()

    def at(values: Floats) -> float:
        return float(values[row])

    corrections = {"prefill": (at(prefill), at(pool.prefill_samples)), "decode": (at(decode), at(pool.decode_samples))}
    kv_used = max(at(pool.kv_own) + at(pool.kv_offset), 0.0)
    return {
        "instance_id": name,
        "model": spec.model,
        "gpu": spec.gpu,
        "role": spec.role.value,
        "speed": spec.speed,
        "draining": not bool(pool.is_open[row]),
        "queued": int(pool.queued[row]),
        "queued_prefill_tokens": at(pool.queued_tokens),
        "predicted_queue_s": max(at(pool.free_at_s) - state.now_s, 0.0),
        "bound": int(pool.bound[row]),
        "running": int(pool.running[row]),
        "foreign": at(pool.foreign),
        "predicted_remaining_tokens": at(pool.remaining),
        "context_tokens": at(pool.kv_own),
        "kv_used_tokens": kv_used,
        "kv_capacity_tokens": spec.kv_capacity_tokens,
        "kv_usage": min(kv_used / spec.kv_capacity_tokens, 1.0),
        "cached_prefix_tokens": at(pool.cache_tokens),
        "prefill_correction": at(prefill),
        "decode_correction": at(decode),
        "prefill_samples": at(pool.prefill_samples),
        "decode_samples": at(pool.decode_samples),
        "drifted": [
            phase
            for phase, (correction, samples) in corrections.items()
            if samples >= DRIFT_SAMPLES and abs(correction - 1.0) > DRIFT
        ],
        "predicted_step_s": pool.step_s(row),
        "reported": None
        if report is None
        else {
            "measured_at_s": report.measured_at_s,
            "running": report.running,
            "waiting": report.waiting,
            "kv_usage": report.kv_usage,
            "prefix_hit_rate": report.prefix_hit_rate,
            "prefill_tokens_per_s": report.prefill_tokens_per_s,
            "decode_tokens_per_s": report.decode_tokens_per_s,
            "preemptions": report.preemptions,
        },
    }
