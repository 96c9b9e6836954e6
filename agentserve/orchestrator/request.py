"""What is a call, as the gateway hands it to the orchestrator, and may it move between engines?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
COMPLETIONS_DEFAULT_TOKENS: Final = 16
"""OpenAI's default for completions without max_tokens."""

_GUIDED: Final = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend",
    "regex", "ebnf", "json_schema", "grammar",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a client's stream broke off when the gateway was lost: what it holds, and goes on from."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One LLM call, validated. `body` is the client's OpenAI body; deadlines are absolute Unix seconds."""

    request_id: str
    path: str
    body: Mapping[str, Any]
    model: str
    run_id: str
    step_id: str | None
    workflow: str
    node: str
    tenant: str = ""
    tenant_weight: float = 1.0
    scope: str = ""
    """What its ids begin with inside of the gateway, and not in answers."""
    run_deadline_s: float | None = None
    target_deadline_s: float | None = None
    latest_deadline_s: float | None = None
    downstream_s: float = 0.0
    first_call_of_run: bool = True
    session_id: str | None = None
    resume: Resume | None = None
    traceparent: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown_id(self) -> str:
        """The request's id as its client knows it."""
        return self.request_id.removeprefix(self.scope)

    @property
    def is_chat(self) -> bool:
        """Whether answers have the chat shape."""
        return self.path == CHAT

    @property
    def wants_stream(self) -> bool:
        """Whether the client reads the answer piece by piece."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether a streaming client asked for the usage chunk."""
        options = self.body.get("stream_options")
        return isinstance(options, Mapping) and bool(options.get("include_usage"))

    @property
    def wants_token_ids(self) -> bool:
        """Whether the client asked for token ids beside the text."""
        return bool(self.body.get("return_token_ids"))

    @property
    def max_tokens(self) -> int | None:
        """The output budget; None: up to the end of the context."""
        body = self.body
        if not self.is_chat:
            given: int | None = body.get("max_tokens", COMPLETIONS_DEFAULT_TOKENS)
            return given
        given = body.get("max_completion_tokens")
        return given if given is not None else body.get("max_tokens")

    @property
    def min_tokens(self) -> int:
        """Tokens that must come before the engine may stop (a vLLM extension)."""
        return self.body.get("min_tokens") or 0

    @property
    def stops(self) -> tuple[str, ...]:
        """The client's stop strings."""
        stop = self.body.get("stop")
        if not stop:
            return ()
        return (stop,) if isinstance(stop, str) else tuple(stop)


def migration_refusal(path: str, body: Mapping[str, Any]) -> str | None:
    """Why this call must stay on the engine that began it; None if token replay is exact for it."""
    if (body.get("n") or 1) > 1 or (body.get("best_of") or 1) > 1 or body.get("use_beam_search"):
        return "several choices"
    logprobs = body.get("logprobs")
    if (logprobs is not None and logprobs is not False) or body.get("prompt_logprobs") is not None:
        return "logprobs"
    if any(body.get(name) is not None for name in _GUIDED):
        return "guided decoding"
    response_format = body.get("response_format")
    if isinstance(response_format, Mapping) and response_format.get("type", "text") != "text":
        return "guided decoding"
    if body.get("tools") or body.get("functions") or body.get("tool_choice") not in (None, "none"):
        return "tools: their calls are parsed in the engine"
    if body.get("frequency_penalty") or body.get("presence_penalty"):
        return "penalties count tokens since the engine's own start"
    if body.get("echo"):
        return "echo"
    return _prompt_refusal(path, body)


def _prompt_refusal(path: str, body: Mapping[str, Any]) -> str | None:
    if path == COMPLETIONS:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt):
            return "several prompts"
        return None
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            return "multimodal content"
    return None
