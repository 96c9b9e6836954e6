"""What exactly is sent to `trtllm-serve`? Pure functions from a call to a body that holds nothing it does not know.

It rejects a body with an unknown field, also where the client meant well, so only what its protocol lists goes there.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Final

from agentserve.engines.adapter import EngineCall
from agentserve.engines.bodies import CHAT, attempt_path

_BOTH: Final = frozenset(
    {
        "model", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "n", "presence_penalty", "seed",
        "stop", "temperature", "top_p", "user", "lora_request", "prompt_ignore_length", "use_beam_search", "top_k",
        "top_p_min", "min_p", "repetition_penalty", "length_penalty", "early_stopping", "stop_token_ids",
        "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
        "spaces_between_special_tokens", "truncate_prompt_tokens", "thinking_token_budget", "add_special_tokens",
        "response_format",
    }
)  # fmt: skip
KNOWN: Final[Mapping[str, frozenset[str]]] = {
    CHAT: _BOTH
    | {
        "messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking",
        "add_generation_prompt", "documents", "chat_template", "chat_template_kwargs", "media_io_kwargs",
        "mm_processor_kwargs", "cache_salt",
    },
    "/v1/completions": _BOTH | {"prompt", "suffix", "return_context_logits"},
}  # fmt: skip
"""Per route: the fields of its protocol that a client may set. Left out are those of legs, routing and priority."""

_REPLAYED: Final = (
    "temperature", "top_p", "top_k", "top_p_min", "min_p", "seed", "repetition_penalty", "length_penalty",
    "logit_bias", "stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "user",
    "lora_request", "thinking_token_budget",
)  # fmt: skip
"""What a replay keeps of the client's body."""

FIRST_GLOBAL_ID: Final = 2**42
"""Ids of split calls begin here; below are the engines' own."""


def trtllm_body(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    """The streaming body of an attempt, or of the decode leg of a split one."""
    body = _plain(call, priority=priority)
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    if call.handoff is not None:
        body["disaggregated_params"] = call.handoff["disaggregated_params"]
        # The decode leg gets the prompt as the prefill leg rendered it, lest the two disagree.
        if (ids := call.handoff.get("prompt_token_ids")) is not None:
            body["prompt_token_ids" if attempt_path(call) == CHAT else "prompt"] = ids
    return body


def context_body(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    """The prefill leg of a split attempt: the same body, context only, under an id of our own."""
    body = _plain(call, priority=priority)
    body["stream"] = False
    body["disaggregated_params"] = {
        "request_type": "context_only",
        "disagg_request_id": FIRST_GLOBAL_ID + secrets.randbelow(2**63 - FIRST_GLOBAL_ID),
    }
    return body


def engine_priority(priority: int) -> float:
    """Our priority (lower runs earlier) in [0, 1], where the higher runs earlier.

    Ours count from the gateway's start, so that those below 0 are all most urgent. A single-precision float keeps
    priorities apart that differ by a second and a half.
    """
    return min(1.0, max(0.0, 1.0 - priority / 2**31))


def _plain(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    source, path = call.body, attempt_path(call)
    if call.replay_ids is not None:
        body = {name: source[name] for name in _REPLAYED if source.get(name) is not None}
        body["model"] = source["model"]
        body["prompt"] = call.replay_ids
        if call.max_tokens is not None:
            body["max_tokens"] = call.max_tokens
        if call.min_tokens:
            body["min_tokens"] = call.min_tokens
    else:
        # It refuses a null for most fields, where OpenAI's clients mean "as if left out".
        body = {name: value for name, value in source.items() if name in KNOWN[path] and value is not None}
        budget = source.get("max_completion_tokens") if path == CHAT else None
        budget = source.get("max_tokens") if budget is None else budget
        # Two names of one field: it takes either, but not both in one body.
        if budget is not None:
            body["max_tokens"] = budget
    if priority:
        body["priority"] = engine_priority(call.priority)
    return body
