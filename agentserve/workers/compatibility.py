"""Which engines may hand KV to each other? Those that report the same about all that their KV's layout depends on.

vLLM's NIXL connector itself refuses another version of vLLM, another model, another type of weights or cache and
another direction of transfer. vLLM does not report the type of its weights, nor over how many GPUs it is spread: where
only such a thing differs the pair's own handshake decides, and the scheduler stops using a pair that failed.
"""

import hashlib
from typing import Final

from agentserve.engines.capabilities import KvDialect
from agentserve.workers.facts import Facts
from agentserve.workers.kinds import Identity

MAX_GROUP_CHARS: Final = 256


def kv_group(dialect: KvDialect, identity: Identity, model: str, facts: Facts) -> str:
    """A name that is equal where KV may be handed over, and readable where it is short enough."""
    root = next((card.root for card in identity.models if card.name == model), None) or model
    parts = [
        str(dialect),
        f"{identity.kind} {identity.version or '?'}",
        root,
        f"block {facts.block_tokens or '?'}",
        f"cache {facts.cache_dtype or '?'}",
        *(f"{name.removesuffix('_size')} {size}" for name, size in sorted(facts.parallel.items())),
        *([facts.transfer_mode] if facts.transfer_mode else []),
    ]
    group = "; ".join(parts)
    if len(group) <= MAX_GROUP_CHARS:
        return group
    return f"{dialect}; {identity.kind}; {hashlib.sha256(group.encode()).hexdigest()}"
