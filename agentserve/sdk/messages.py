"""How do LangChain messages look in OpenAI's chat format, and answers in LangChain's? Pure conversion."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from agentserve.errors import BadInput

_ROLES: Mapping[type[BaseMessage], str] = {HumanMessage: "user", SystemMessage: "system", AIMessage: "assistant"}


def to_openai(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The messages as OpenAI's chat API takes them; BadInput for a kind that it has no role for."""
    return [_to_openai(message) for message in messages]


def _to_openai(message: BaseMessage) -> dict[str, Any]:
    if isinstance(message, ToolMessage):
        return {"role": "tool", "content": _content(message), "tool_call_id": message.tool_call_id}
    if isinstance(message, FunctionMessage):
        return {"role": "function", "content": _content(message), "name": message.name}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": _content(message)}
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)
    if role is None:
        raise BadInput(f"a {type(message).__name__} cannot be sent to a chat model")
    converted: dict[str, Any] = {"role": role, "content": _content(message)}
    if message.name:
        converted["name"] = message.name
    if isinstance(message, AIMessage) and message.tool_calls:
        converted["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        converted["content"] = converted["content"] or None
    return converted


def _content(message: BaseMessage) -> Any:
    if isinstance(message.content, str):
        return message.content
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in message.content]


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": orjson.dumps(call["args"]).decode()}
    return {"id": call["id"], "type": "function", "function": function}


def message_of(choice: Mapping[str, Any], usage: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> AIMessage:
    """The answer in `choice` of a whole completion."""
    message = choice.get("message") or {}
    calls, broken = _tool_calls(message.get("tool_calls") or ())
    return AIMessage(
        content=message.get("content") or "",
        tool_calls=calls,
        invalid_tool_calls=broken,
        usage_metadata=usage_of(usage),
        response_metadata={**metadata, "finish_reason": choice.get("finish_reason")},
    )


def _tool_calls(given: Sequence[Mapping[str, Any]]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    calls: list[ToolCall] = []
    broken: list[InvalidToolCall] = []
    for call in given:
        name, text, call_id = call["function"]["name"], call["function"].get("arguments") or "{}", call.get("id")
        try:
            args = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            broken.append(InvalidToolCall(name=name, args=text, id=call_id, error=str(error), type="invalid_tool_call"))
        else:
            calls.append(ToolCall(name=name, args=args, id=call_id, type="tool_call"))
    return calls, broken


def chunk_of(chunk: Mapping[str, Any], metadata: Mapping[str, Any]) -> AIMessageChunk | None:
    """What a stream's chunk adds to the message; None if nothing."""
    usage = usage_of(chunk.get("usage"))
    choices = chunk.get("choices") or ()
    if not choices:
        return None if usage is None else AIMessageChunk(content="", usage_metadata=usage)
    delta, finish = choices[0].get("delta") or {}, choices[0].get("finish_reason")
    calls = [
        tool_call_chunk(
            name=(call.get("function") or {}).get("name"),
            args=(call.get("function") or {}).get("arguments"),
            id=call.get("id"),
            index=call.get("index"),
        )
        for call in delta.get("tool_calls") or ()
    ]
    text = delta.get("content") or ""
    if not (text or calls or finish or usage):
        return None
    said = {**metadata, "finish_reason": finish} if finish else {}
    return AIMessageChunk(content=text, tool_call_chunks=calls, usage_metadata=usage, response_metadata=said)


def usage_of(usage: Mapping[str, Any] | None) -> UsageMetadata | None:
    """OpenAI's token counts as LangChain's; None if the server gave none."""
    if not usage:
        return None
    prompt, output = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    counted = UsageMetadata(input_tokens=prompt, output_tokens=output, total_tokens=prompt + output)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached is not None:
        counted["input_token_details"] = {"cache_read": int(cached)}
    return counted
