"""What does the page show of the instances, of the policy and of its settings? Plain data, rounded to what is drawn."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Final

from agentserve.orchestrator import Orchestrator
from agentserve.orchestrator.instances import Instance
from agentserve.settings import Settings

_SHOWN_SETTINGS: Final = (
    "cluster",
    "default_slo_s",
    "max_slo_s",
    "call_timeout_s",
    "stall_timeout_s",
    "lost_after_s",
    "drain_timeout_s",
    "max_live_calls",
    "max_prompt_tokens",
    "kv_moves",
)
"""None of them tells an address, a file or a secret."""


def instances(orchestrator: Orchestrator) -> dict[str, dict[str, Any]]:
    """Every instance by its id: what it is, what it reports and what the scheduler corrected."""
    estimates = {one["instance_id"]: one for one in orchestrator.scheduler.snapshot().get("instances", ())}
    return {name: _instance(one, estimates.get(name) or {}) for name, one in sorted(orchestrator.instances.items())}


def _instance(instance: Instance, estimate: Mapping[str, Any]) -> dict[str, Any]:
    spec, reported = instance.spec, instance.reported
    is_live = instance.is_live
    return {
        "instance_id": spec.instance_id,
        "gpu": spec.gpu,
        "model": spec.model,
        "role": str(spec.role),
        "engine": instance.engine,
        "state": instance.state,
        "reason": instance.reason,
        "waiting": reported.get("waiting"),
        "running": reported.get("running"),
        "max_num_seqs": spec.max_num_seqs,
        "held_back": instance.gate.waiting if instance.gate is not None else 0,
        "kv_usage": _rounded(reported.get("kv_usage"), 3),
        "prefix_hit_rate": _rounded(reported.get("prefix_hit_rate"), 2),
        "prefill_correction": _rounded(estimate.get("prefill_correction"), 2) if is_live else None,
        "decode_correction": _rounded(estimate.get("decode_correction"), 2) if is_live else None,
    }


def policy(settings: Settings, orchestrator: Orchestrator) -> dict[str, Any]:
    """The policy's name, its parameters as they are, and the gateway's limits that a reader of the page meets."""
    scheduler = orchestrator.scheduler
    own = getattr(scheduler.config, settings.policy, None)
    made = getattr(scheduler, "policy", None)
    parameters = asdict(own) if is_dataclass(own) and not isinstance(own, type) else {}
    if not parameters and is_dataclass(made) and not isinstance(made, type):
        parameters = asdict(made)
    return {
        "policy": settings.policy,
        "parameters": parameters,
        "migration": asdict(scheduler.config.migration),
        "settings": {name: getattr(settings, name) for name in _SHOWN_SETTINGS},
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
