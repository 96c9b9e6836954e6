"""What exactly is sent to a vLLM-like engine? Pure functions from a call to the JSON body of its attempt."""

from collections.abc import Mapping
from typing import Any, Final

from agentserve.engines.adapter import EngineCall

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"

OURS: Final = frozenset({"agentserve", "kv_transfer_params", "priority", "request_id"})
"""Fields that a client may not set on the engine: ours, and those by which it could touch other calls."""

SAMPLING: Final = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "length_penalty", "logit_bias",
    "stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "bad_words",
    "allowed_token_ids", "vllm_xargs", "cache_salt", "user",
)  # fmt: skip
"""What a replay keeps of the client's body: all that steers sampling and means the same on both routes."""

_EXTENSIONS: Final = frozenset(
    {
        *SAMPLING, "return_token_ids", "min_tokens", "include_stop_str_in_output", "best_of", "use_beam_search",
        "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs",
        "truncate_prompt_tokens", "prompt_logprobs", "add_special_tokens", "documents", "mm_processor_kwargs",
        "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    }
) - {"temperature", "top_p", "seed", "logit_bias", "user"}  # fmt: skip
"""vLLM's extensions, which a plain OpenAI server may reject."""


def attempt_path(call: EngineCall) -> str:
    """The route of this attempt: a replay always goes to completions, on ids."""
    return COMPLETIONS if call.replay_ids is not None else call.path


def vllm_body(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    """The streaming body of an attempt: the client's own, or a token-id completion that goes on after a cut."""
    body = _replay(call) if call.replay_ids is not None else _first(call)
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    body["return_token_ids"] = True
    body["request_id"] = call.request_id
    if priority:
        body["priority"] = call.priority
    if call.handoff is not None:
        body["kv_transfer_params"] = call.handoff
    return body


def prefill_body(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    """The prefill leg of a split attempt: the same prompt, one token, its KV kept for another engine to pull."""
    body = vllm_body(call, priority=priority)
    for name in ("stream_options", "min_tokens", "return_token_ids"):
        body.pop(name, None)
    body["stream"] = False
    body["max_tokens"] = 1
    if attempt_path(call) == CHAT:
        body["max_completion_tokens"] = 1
    body["request_id"] = f"{call.request_id}-prefill"
    body["kv_transfer_params"] = {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    return body


def plain_body(call: EngineCall) -> dict[str, Any]:
    """The streaming body for a server that knows OpenAI's fields only."""
    body = {name: value for name, value in call.body.items() if name not in OURS and name not in _EXTENSIONS}
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    return body


def _first(call: EngineCall) -> dict[str, Any]:
    return {name: value for name, value in call.body.items() if name not in OURS}


def _replay(call: EngineCall) -> dict[str, Any]:
    source: Mapping[str, Any] = call.body
    body = {name: source[name] for name in SAMPLING if name in source}
    body["model"] = source["model"]
    body["prompt"] = call.replay_ids
    # An explicit null means "up to the context's end"; left out, completions would stop after 16 tokens.
    body["max_tokens"] = call.max_tokens
    if isinstance(seed := source.get("seed"), int):
        # The engine's generator begins anew: with the same seed it would draw the numbers again that it drew before.
        body["seed"] = (seed + len(call.replay_ids or ())) % 2**31
    if call.min_tokens:
        body["min_tokens"] = call.min_tokens
    return body
