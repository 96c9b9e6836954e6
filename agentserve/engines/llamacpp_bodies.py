"""What exactly is sent to llama.cpp's server? Pure functions from a call to the JSON bodies of its attempt.

Plain calls are served on ids at `/completion`, which tells the ids it makes; all others on the OpenAI routes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentserve.engines.adapter import EngineCall
from agentserve.engines.bodies import CHAT, COMPLETIONS

COMPLETION: Final = "/completion"
COMPLETIONS_DEFAULT_TOKENS: Final = 16
"""OpenAI's default for completions without max_tokens; llama.cpp's own is no limit."""

OURS: Final = frozenset({"agentserve", "kv_transfer_params", "priority", "request_id", "id_slot"})
"""Fields that a client may not set on the engine: ours, and the slot, by which it could wait for another's call."""

_STAYING: Final = (
    "tools", "functions", "response_format", "json_schema", "grammar", "logprobs", "top_logprobs", "n_probs",
    "post_sampling_probs", "stop", "echo", "suffix", "response_fields", "return_progress", "timings_per_token",
    "reasoning_budget_tokens", "t_max_predict_ms",
)  # fmt: skip
"""With one of these a call is left to the OpenAI routes, as a whole, since `/completion` would serve it otherwise."""

_NOT_SAMPLING: Final = frozenset(
    {
        "messages", "prompt", "stream_options", "max_tokens", "max_completion_tokens", "n_predict", "n", "n_cmpl",
        "best_of", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
        "tool_choice", "parallel_tool_calls", "parse_tool_calls", "reasoning_format", "reasoning_effort",
        "return_token_ids", "min_tokens", "repetition_penalty",
    }
)  # fmt: skip
_REASONING: Final = ("think", "reason", "channel")


def on_ids(call: EngineCall) -> bool:
    """Whether a first attempt can be served on ids: one choice of plain text, with nothing for the engine to parse."""
    body = call.body
    if any(body.get(name) for name in _STAYING if name != "response_format"):
        return False
    if body.get("response_format") not in (None, {"type": "text"}):
        return False
    if any(body.get(name) not in (None, 1) for name in ("n", "n_cmpl", "best_of")):
        return False
    if call.path == COMPLETIONS:
        return isinstance(body.get("prompt"), str) or _is_ids(body.get("prompt"))
    messages = body.get("messages")
    return isinstance(messages, list) and all(_is_plain(message) for message in messages)


def parses_reasoning(chat_template: str) -> bool:
    """Whether chats on this template may come with reasoning, which the engine's chat route sets apart.

    llama.cpp derives its parser from the template: one that never speaks of reasoning has nothing to set apart.
    """
    lower = chat_template.lower()
    return any(word in lower for word in _REASONING)


def openai_body(call: EngineCall) -> dict[str, Any]:
    """The streaming body of an attempt that is left to the OpenAI routes."""
    body = {name: value for name, value in call.body.items() if name not in OURS}
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    return body


def template_body(call: EngineCall) -> dict[str, Any]:
    """What `/apply-template` renders: the client's chat, with what its template reads."""
    return {name: value for name, value in call.body.items() if name not in OURS}


def completion_body(call: EngineCall, ids: Sequence[int]) -> dict[str, Any]:
    """The streaming body on ids, of a first attempt or a replay. What samples has the same name on all routes."""
    source = call.body
    body = {name: value for name, value in source.items() if name not in OURS and name not in _NOT_SAMPLING}
    if source.get("repetition_penalty") is not None:
        body["repeat_penalty"] = source["repetition_penalty"]
    body["prompt"] = ids
    body["n_predict"] = _budget(call)
    body["stream"] = True
    body["return_tokens"] = True
    return body


def _budget(call: EngineCall) -> int:
    """How many tokens to make; -1: up to the context's end."""
    if call.replay_ids is not None:
        given = call.max_tokens
    elif call.path == CHAT:
        given = call.body.get("max_completion_tokens")
        given = call.body.get("max_tokens") if given is None else given
    else:
        given = call.body.get("max_tokens", COMPLETIONS_DEFAULT_TOKENS)
    return -1 if given is None else given


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(one) is int for one in prompt)


def _is_plain(message: Any) -> bool:
    if not isinstance(message, Mapping) or message.get("tool_calls") or message.get("role") == "tool":
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)
    return isinstance(content, str)
