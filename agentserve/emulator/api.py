"""What does a client ask for? An OpenAI body, with vLLM's extra fields, becomes a Call, or one clear error."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.replies import Model
from agentserve.emulator.tokens import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    TOOL_CALL,
    USER,
    StreamDecoder,
    decode,
    encode,
    is_token,
)
from agentserve.errors import BadInput, NotFound

_ROLE_IDS: Final = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
}
_MAX_STOPS: Final = 16
_DEFAULT_COMPLETION_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One completion as asked for and, since replies are known beforehand, as it will be answered."""

    is_chat: bool
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    text_limit: int
    """Characters of the reply that are shown: a stop string and what follows are not."""
    finish_reason: str
    stop_reason: str | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    priority: int
    salt: str | None
    kv_transfer_params: Mapping[str, Any] | None


def parse_call(body: Any, config: EmulatorConfig, model: Model, *, is_chat: bool) -> Call:
    """Validate a body and settle its answer. Raises NotFound for another model, BadInput naming the field otherwise."""
    if not isinstance(body, dict):
        raise BadInput("the body must be a JSON object")
    check_model(body, config)
    _refuse_unsupported(body)
    prompt_ids = render_chat(body) if is_chat else _prompt_ids(body)
    limit = _token_limit(body, len(prompt_ids), config.context_limit, is_chat=is_chat)
    minimum = min(limit, _integer(body, "min_tokens", 0, low=0))
    if body.get("ignore_eos"):
        minimum = limit
    reply = model.reply(prompt_ids, minimum)
    output_ids = reply.ids[reply.given : reply.given + limit]
    finish_reason = "length" if len(reply.ids) - reply.given > limit or body.get("ignore_eos") else "stop"
    if is_chat and finish_reason == "stop" and TOOL_CALL in output_ids:
        finish_reason = "tool_calls"
    output_ids, text_limit, stop = _cut_at_stop(output_ids, _stops(body))
    options = body.get("stream_options") or {}
    return Call(
        is_chat=is_chat,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        text_limit=text_limit,
        finish_reason=finish_reason if stop is None else "stop",
        stop_reason=stop,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")),
        priority=_priority(body, config),
        salt=body.get("cache_salt"),
        kv_transfer_params=body.get("kv_transfer_params"),
    )


def check_model(body: Mapping[str, Any], config: EmulatorConfig) -> None:
    """Raise NotFound unless the body names the served model, or none."""
    name = body.get("model")
    if name is not None and name not in (config.model_name, config.model):
        raise NotFound(f"The model `{name}` does not exist.")


def render_chat(body: Mapping[str, Any], *, add_generation_prompt: bool = True) -> list[int]:
    """Prompt ids of `messages` (and `tools`): a role's id, then its text, message by message."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadInput("messages: a list of at least one message is required")
    ids: list[int] = []
    if body.get("tools"):
        ids += [SYSTEM, *encode(_to_text(body["tools"], "tools"))]
    for index, message in enumerate(messages):
        ids += _message_ids(message, f"messages[{index}]")
    return [*ids, ASSISTANT] if add_generation_prompt else ids


def prompt_ids_of(prompt: Any) -> list[int]:
    """Ids of a completion prompt: a text or ids, ending in `<|assistant|>` unless it already holds one."""
    if isinstance(prompt, str):
        ids = encode(prompt)
    elif isinstance(prompt, list) and prompt and all(map(is_token, prompt)):
        ids = prompt
    elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        return prompt_ids_of(prompt[0])
    else:
        raise BadInput("prompt: one text, or one list of this model's token ids, is required")
    return ids if ASSISTANT in ids else [*ids, ASSISTANT]


def _prompt_ids(body: Mapping[str, Any]) -> list[int]:
    return prompt_ids_of(body.get("prompt"))


def _message_ids(message: Any, where: str) -> list[int]:
    if not isinstance(message, dict) or message.get("role") not in _ROLE_IDS:
        raise BadInput(f"{where}.role: one of {', '.join(_ROLE_IDS)} is required")
    ids = [_ROLE_IDS[message["role"]], *encode(_content_text(message.get("content"), f"{where}.content"))]
    for call in message.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise BadInput(f"{where}.tool_calls: functions are required")
        ids += [TOOL_CALL, *encode(_tool_call_text(function, f"{where}.tool_calls"))]
    return ids


def _tool_call_text(function: Mapping[str, Any], where: str) -> str:
    """The text that the model itself gives for a call, so that a conversation's next turn has the same prefix."""
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError, RecursionError):
        arguments = function.get("arguments")
    return _to_text({"name": function.get("name"), "arguments": arguments}, where)


def _to_text(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply") from None


def _content_text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise BadInput(f"{where}: a text or a list of text parts is required")


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise BadInput("n: the emulator gives one choice")
    for name in ("stream_options", "kv_transfer_params"):
        if not isinstance(body.get(name), dict | None):
            raise BadInput(f"{name}: an object is required")
    if not isinstance(body.get("cache_salt"), str | None):
        raise BadInput("cache_salt: a text is required")
    if body.get("stream_options") and not body.get("stream"):
        raise BadInput("Stream options can only be defined when `stream=True`.")


def _token_limit(body: Mapping[str, Any], prompt_tokens: int, context_limit: int, *, is_chat: bool) -> int:
    names = ("max_completion_tokens", "max_tokens") if is_chat else ("max_tokens",)
    name = next((name for name in names if body.get(name) is not None), None)
    if prompt_tokens >= context_limit:
        raise BadInput(
            f"This model's maximum context length is {context_limit} tokens. However, your request has "
            f"{prompt_tokens} input tokens. Please reduce the length of the input messages."
        )
    if name is None:
        left = context_limit - prompt_tokens
        # As in vLLM, an explicit null lifts the default of completions.
        return left if is_chat or "max_tokens" in body else min(left, _DEFAULT_COMPLETION_TOKENS)
    asked = _integer(body, name, 1, low=1)
    if prompt_tokens + asked > context_limit:
        raise BadInput(
            f"'{name}' is too large: {asked}. This model's maximum context length is {context_limit} tokens and your "
            f"request has {prompt_tokens} input tokens ({asked} > {context_limit} - {prompt_tokens})."
        )
    return asked


def _integer(body: Mapping[str, Any], name: str, default: int, *, low: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or value < low:
        raise BadInput(f"{name}: a whole number of at least {low} is required, got {value!r:.50}")
    return value


def _priority(body: Mapping[str, Any], config: EmulatorConfig) -> int:
    priority = _integer(body, "priority", 0, low=-(2**53))
    if priority and config.scheduling_policy != "priority":
        raise BadInput(f"Got priority {priority} but Priority scheduling is not enabled.")
    return priority


def _stops(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadInput(f"stop: a text or a list of at most {_MAX_STOPS} texts is required")
    return stops


def _cut_at_stop(ids: Sequence[int], stops: Sequence[str]) -> tuple[Sequence[int], int, str | None]:
    """Output ids up to the token that completes a stop string, the characters shown, and that string."""
    text = decode(ids) if stops else ""
    found = min(((text.find(stop) + len(stop), stop) for stop in stops if stop in text), default=None)
    if found is None:
        return ids, 2**63, None
    end, stop = found
    decoder, shown = StreamDecoder(), 0
    for count, token in enumerate(ids, start=1):
        shown += len(decoder.feed((token,)))
        if shown >= end:
            return ids[:count], end - len(stop), stop
    return ids, end - len(stop), stop
