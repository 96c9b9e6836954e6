"""How large is an engine, and how is it set up? Read from what it says about itself; what it does not say is None."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from agentserve.workers.kinds import Identity
from agentserve.workers.scrape import CacheConfig
from scheduler.events import Role

_ROLES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Sizes and limits of one engine; None: not told."""

    context_tokens: int | None = None
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    block_tokens: int | None = None
    cache_dtype: str | None = None
    parallel: Mapping[str, int] = field(default_factory=dict)
    """Over how many GPUs it is spread, by way of spreading."""
    transfer_mode: str | None = None
    role: Role | None = None
    """The only phase that it serves, where it is set up for one."""
    kv_address: str | None = None
    """Where decode legs meet its prefill legs, `host:port`."""


def read_facts(identity: Identity, model: str, cache: CacheConfig | None, url: str) -> Facts:
    """What the engine told, and the labels of its cache metric, as facts."""
    context = next((card.context_tokens for card in identity.models if card.name == model), None)
    told = identity.told
    if identity.kind == "sglang":
        return _sglang(told, context, url)
    if identity.kind == "llamacpp":
        settings = told.get("default_generation_settings")
        own = _count(settings.get("n_ctx")) if isinstance(settings, dict) else None
        return Facts(context_tokens=own or context, max_num_seqs=_count(told.get("total_slots")))
    return Facts(
        context_tokens=context,
        max_num_seqs=_count(told.get("max_num_seqs")),
        max_batched_tokens=_count(told.get("max_batched_tokens")),
        kv_capacity_tokens=cache.capacity_tokens if cache else None,
        block_tokens=cache.block_tokens if cache else None,
        cache_dtype=cache.dtype if cache else None,
    )


def _sglang(told: Mapping[str, Any], context: int | None, url: str) -> Facts:
    states = told.get("internal_states")
    state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
    mode = told.get("disaggregation_mode")
    port = _count(told.get("disaggregation_bootstrap_port"))
    host = urlsplit(url).hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return Facts(
        context_tokens=context or _count(told.get("context_length")),
        max_num_seqs=_count(state.get("effective_max_running_requests_per_dp"))
        or _count(told.get("max_running_requests")),
        kv_capacity_tokens=_count(told.get("max_total_num_tokens")),
        block_tokens=_count(told.get("page_size")),
        cache_dtype=_text(told.get("kv_cache_dtype")),
        parallel={name: size for name in ("tp_size", "pp_size") if (size := _count(told.get(name)))},
        transfer_mode=_text(told.get("disaggregation_transfer_backend")),
        role=_ROLES.get(str(mode)),
        kv_address=f"{shown}:{port}" if mode == "prefill" and port else None,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
