"""What the gateway asks of any engine: a Protocol of a few methods, and the values that pass through it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentserve.engines.capabilities import Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCall:
    """One attempt of a call, as an engine is to serve it.

    `body` is the client's OpenAI body. `replay_ids` None: first attempt, send the body's own messages or prompt.
    Otherwise prompt ids + emitted ids, which go on as a token-id completion with `max_tokens` left.
    """

    path: str
    """`/v1/chat/completions` or `/v1/completions`"""
    body: Mapping[str, Any]
    request_id: str
    priority: int = 0
    replay_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    """Of a replay: how many tokens are left to make; None: as many as fit."""
    min_tokens: int | None = None
    """Of a replay: how many of them must come before the engine may stop."""
    handoff: Mapping[str, Any] | None = None
    """Of a leg of a split call: what lets the two legs meet, in the engines' own dialect; opaque to us."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Extra request headers: traceparent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One piece of a stream.

    `text` may be empty while a character is incomplete. `prompt_ids` comes with the first piece, where the engine
    gives token ids. `choice` is the engine's own choice object, for what is passed through unread (tool calls,
    reasoning, logprobs); None in a piece that carries only usage.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    choice: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None


class EngineAdapter(Protocol):
    """One engine instance. Every method raises EngineFailed; closing the iterator aborts the call on the engine."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine offers."""
        ...

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """Serve a call (or, with `handoff`, the decode leg of a split one), piece by piece."""
        ...

    def rendezvous(self) -> Mapping[str, Any] | None:
        """A new handoff, where both legs are sent at once with it; None: the prefill leg's answer is the handoff."""
        ...

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        """Run the prefill leg of a split call; returns the handoff that its decode leg needs."""
        ...

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        """Have another instance free the KV that it keeps for a decode leg which will not come; never raises."""
        ...

    async def detokenize(self, model: str, ids: Sequence[int]) -> str | None:
        """The text of some token ids, U+FFFD where they break a character; None if the engine cannot say."""
        ...

    async def is_healthy(self) -> bool:
        """Whether the engine answers its health check in time; never raises."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...
