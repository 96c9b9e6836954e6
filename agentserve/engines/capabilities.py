"""What can an engine do for the scheduler? Declared per kind, narrowed by what a probe of the instance found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class PrioritySign(StrEnum):
    """Which of two priorities an engine serves first. Inside agentserve the lower one always is."""

    LOWER_FIRST = "lower first"
    HIGHER_FIRST = "higher first"

    def to_engine(self, priority: int) -> int:
        """Our priority (lower runs earlier) as this engine counts."""
        return priority if self is PrioritySign.LOWER_FIRST else -priority


class KvDialect(StrEnum):
    """How the two legs of a split call find each other. Engines hand over KV only within one dialect."""

    NIXL_PULL = "nixl pull"
    """vLLM: the prefill leg's answer tells the decode leg where to pull from."""
    BOOTSTRAP = "bootstrap"
    """SGLang: both legs are sent at once and meet in a room that is named beforehand."""
    DISAGGREGATED_PARAMS = "disaggregated params"
    """TensorRT-LLM: a context-only leg, then a generation-only leg with what the first gave back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one kind of engine, or one instance after a probe, offers over HTTP. None: not known yet."""

    engine: str
    tokens_in: bool
    """Takes a prompt of token ids."""
    tokens_out: bool
    """Gives the token ids of prompt and output: with `tokens_in`, a running call can move."""
    priority: PrioritySign | None
    """None: it serves first come, first served; order is kept at the gateway."""
    kv_dialect: KvDialect | None
    """None: prefill and decode of a call run on the same instance."""
    abort: str
    """How a call is given up, in words."""
    metrics: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Field of a worker's reading → the exact metric that it is read from."""
    reports_cached_tokens: bool = False
    detokenizes: bool = False
    guided_decoding: bool = False
    """Takes `response_format` with a JSON schema."""
    parses_tools: bool | None = None
    parses_reasoning: bool | None = None
    accepts_unknown_fields: bool = True
    is_verified: bool = True
    """Whether the adapter is tested against the real engine; False: against its published protocol only."""

    @property
    def can_replay(self) -> bool:
        """Whether a running call can go on here, or leave from here, token by token."""
        return self.tokens_in and self.tokens_out

    def shortfalls(self) -> tuple[str, ...]:
        """What the scheduler will not be able to do there, in words, each with what it does instead."""
        told = []
        if not self.can_replay:
            told.append(
                "a running call cannot move: the engine takes or gives no token ids, so a call stays to its end"
            )
        if self.priority is None:
            told.append("the engine has no priorities: order is kept by holding calls back at the gateway")
        if self.kv_dialect is None:
            told.append("prefill and decode cannot be split: no KV transfer to another instance was found")
        if not self.metrics:
            told.append("no metrics: load of others is unknown, only the gateway's own calls are counted")
        if not self.reports_cached_tokens:
            told.append("cached tokens are not reported: prefix hits are estimated from what was sent there")
        return tuple(told)
