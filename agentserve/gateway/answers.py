"""What does a client that does not stream get? One answer, put together from the same pieces."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentserve.gateway.sse import answer_id
from agentserve.orchestrator.request import CallRequest
from agentserve.orchestrator.stream import JoinedStream, Piece

_OUR_CHOICE_KEYS = ("token_ids", "prompt_token_ids")
_WHOLE_FIELDS = ("index", "type", "id", "role", "finish_reason", "stop_reason")


def whole_answer(request: CallRequest, stream: JoinedStream, pieces: Sequence[Piece], created: int) -> dict[str, Any]:
    """The complete (chat) completion."""
    passed_on = [piece.choice for piece in pieces if piece.choice is not None]
    choices = _merged(request, passed_on) if passed_on and not stream.owned else [_joined(request, stream, pieces)]
    answer: dict[str, Any] = {
        "id": answer_id(request),
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": created,
        "model": request.model,
        "choices": choices,
        "usage": stream.usage(),
    }
    if request.wants_token_ids and request.is_chat:
        answer["prompt_token_ids"] = stream.prompt_ids
    return answer


def _joined(request: CallRequest, stream: JoinedStream, pieces: Sequence[Piece]) -> dict[str, Any]:
    text = "".join(piece.text for piece in pieces)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": stream.finish_reason}
    if request.is_chat:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        for piece in pieces:
            delta = (piece.choice or {}).get("delta") or {}
            for name, value in delta.items():
                if name not in ("role", "content"):
                    message[name] = merge(message.get(name), value)
        choice["message"] = _whole_message(message)
    else:
        choice["text"] = text
    if request.wants_token_ids:
        choice["token_ids"] = [token for piece in pieces for token in piece.token_ids]
        if not request.is_chat:
            choice["prompt_token_ids"] = stream.prompt_ids
    return choice


def _merged(request: CallRequest, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        choice = choices.setdefault(part.get("index", 0), {"index": part.get("index", 0), "finish_reason": None})
        for name, value in part.items():
            if name == "index" or (name in _OUR_CHOICE_KEYS and not request.wants_token_ids):
                continue
            choice[name] = _merge_field(name, choice.get(name), value)
    for choice in choices.values():
        choice.setdefault("logprobs", None)
        if request.is_chat:
            choice["message"] = _whole_message({"role": "assistant", "content": None, **choice.pop("delta", {})})
    return [choices[index] for index in sorted(choices)]


def _whole_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message put together from deltas as it is where nothing streams: calls without index, no text beside them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    shown = [
        {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call
        for call in (calls if isinstance(calls, list) else [calls])
    ]
    return {**message, "content": message["content"] or None, "tool_calls": shown}


def merge(old: Any, new: Any) -> Any:
    """What a field of deltas adds up to: texts and lists grow, objects merge, list items with an index merge by it."""
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: _merge_field(name, old.get(name), value) for name, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        if all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in (*old, *new)):
            items: dict[Any, Any] = {}
            for item in (*old, *new):
                items[item["index"]] = merge(items.get(item["index"]), item)
            return list(items.values())
        return [*old, *new]
    return old + new if isinstance(old, str) and isinstance(new, str) else new


def _merge_field(name: str, old: Any, new: Any) -> Any:
    # These come whole, and some engines repeat them in every delta.
    return new if name in _WHOLE_FIELDS and new is not None else merge(old, new)
