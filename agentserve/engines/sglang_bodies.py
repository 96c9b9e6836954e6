"""What exactly is sent to SGLang? Pure functions from a call to the JSON body of its attempt.

A first attempt is the client's own body on the OpenAI route. A replay goes to the native `/generate`, on ids.
"""

from collections.abc import Mapping
from typing import Any, Final

from agentserve.engines.adapter import EngineCall
from agentserve.engines.bodies import COMPLETIONS
from agentserve.engines.capabilities import PrioritySign

GENERATE: Final = "/generate"
SIGN: Final = PrioritySign.HIGHER_FIRST

OURS: Final = frozenset(
    {
        "agentserve", "kv_transfer_params", "priority", "request_id", "rid", "bootstrap_host", "bootstrap_port",
        "bootstrap_room", "bootstrap_pair_key", "decode_tp_size", "routed_dp_rank", "data_parallel_rank",
        "disagg_prefill_dp_rank", "routing_key", "kv_hints", "session_params", "return_token_ids",
        "return_prompt_token_ids",
    }
)  # fmt: skip
"""Fields that a client may not set on the engine: ours, those by which it could touch other calls or steer the
engine's own routing, and those of token ids, which a chat that streams may not even name."""

_STAYING: Final = (
    "regex", "ebnf", "json_schema", "stop_regex", "custom_params", "custom_logit_processor", "watermark", "lora_path",
)  # fmt: skip
"""SGLang's own fields that a replay could not carry on: calls with one of them get no token ids, so that they stay."""

_SAMPLING: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "sampling_seed",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "spaces_between_special_tokens": "spaces_between_special_tokens",
    "no_stop_trim": "no_stop_trim",
}
"""What a replay keeps of the client's body → its name among `/generate`'s sampling parameters."""


def attempt_path(call: EngineCall) -> str:
    """The route of this attempt."""
    return GENERATE if call.replay_ids is not None else call.path


def sglang_body(call: EngineCall, *, priority: bool) -> dict[str, Any]:
    """The streaming body of an attempt; of a split one, the same for both of its legs."""
    body = _replay(call, call.replay_ids) if call.replay_ids is not None else _first(call)
    body["stream"] = True
    body["rid"] = call.request_id
    if priority:
        body["priority"] = SIGN.to_engine(call.priority)
    if call.handoff is not None:
        body.update(call.handoff)
    return body


def may_move(body: Mapping[str, Any]) -> bool:
    """Whether a replay could carry on all that the client asked for in SGLang's own fields."""
    # "base:adapter" names a LoRA adapter, which `/generate` takes in a field of its own.
    return not any(body.get(name) for name in _STAYING) and ":" not in str(body.get("model", ""))


def _first(call: EngineCall) -> dict[str, Any]:
    body = {name: value for name, value in call.body.items() if name not in OURS}
    body["stream_options"] = {"include_usage": True}
    if call.path == COMPLETIONS and may_move(call.body):
        body["return_token_ids"] = True
    return body


def _replay(call: EngineCall, ids: tuple[int, ...] | None) -> dict[str, Any]:
    source = call.body
    sampling = {theirs: source[name] for name, theirs in _SAMPLING.items() if source.get(name) is not None}
    # An explicit null means "up to the context's end"; left out, `/generate` would stop after 128 tokens.
    sampling["max_new_tokens"] = call.max_tokens
    if call.min_tokens:
        sampling["min_new_tokens"] = call.min_tokens
    body: dict[str, Any] = {"input_ids": ids, "sampling_params": sampling}
    for name in ("cache_salt", "extra_key"):
        if source.get(name) is not None:
            body[name] = source[name]
    return body
