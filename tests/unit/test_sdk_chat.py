"""Our chat model: what it sends, what it makes of answers, and which errors it raises."""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from agentserve import ChatModel
from agentserve.errors import AgentServeError, BadInput, EngineFailed, NotFound, TooLarge, Unavailable
from agentserve.sdk.messages import message_of, to_openai

CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call-1", "type": "tool_call"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}


def sse(*chunks: Any) -> httpx.Response:
    content = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})


def model(answer: Any, seen: list[Any] | None = None, **fields: Any) -> ChatModel:
    """A model whose gateway always answers the same; requests are kept in `seen`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(orjson.loads(request.content))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ahandle(request: httpx.Request) -> httpx.Response:
        return handle(request)

    return ChatModel(
        model="m",
        gateway="http://gateway.test",
        transport=httpx.MockTransport(handle),
        async_transport=httpx.MockTransport(ahandle),
        **fields,
    )


def whole(message: dict[str, Any], finish: str = "stop") -> httpx.Response:
    answer = {"id": "c-1", "model": "m-1", "choices": [{"message": message, "finish_reason": finish}], "usage": USAGE}
    return httpx.Response(200, json=answer, headers={"x-agentserve-instance": "h100-1"})


def test_messages_become_openais() -> None:
    given = [
        SystemMessage("be brief"),
        HumanMessage([{"type": "text", "text": "hi"}], name="ines"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("3", tool_call_id="call-1"),
        ChatMessage("note", role="developer"),
        AIMessage("three"),
    ]
    function = {"name": "add", "arguments": '{"a":1,"b":2}'}
    assert to_openai(given) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ines"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "call-1"},
        {"role": "developer", "content": "note"},
        {"role": "assistant", "content": "three"},
    ]


def test_a_message_without_a_role_is_refused() -> None:
    with pytest.raises(BadInput, match="RemoveMessage"):
        to_openai([RemoveMessage(id="x")])


def test_tool_arguments_that_are_no_json_are_kept_as_invalid() -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{"}}, {"id": "2", "function": {"name": "g"}}]
    message = message_of({"message": {"content": None, "tool_calls": calls}}, None, {})
    assert [call["name"] for call in message.tool_calls] == ["g"]
    assert [call["args"] for call in message.invalid_tool_calls] == ["{"]
    assert message.content == ""


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_answer_carries_usage_instance_and_request(asynchronous: bool) -> None:
    seen: list[Any] = []
    chat = model(whole({"content": "hello"}), seen, temperature=0.0, max_tokens=9, extra_body={"seed": 3})
    answer = await chat.ainvoke("hi", stop=["."]) if asynchronous else chat.invoke("hi", stop=["."])
    assert answer.content == "hello"
    assert answer.usage_metadata == {
        "input_tokens": 5,
        "output_tokens": 2,
        "total_tokens": 7,
        "input_token_details": {"cache_read": 4},
    }
    metadata = answer.response_metadata
    assert (metadata["instance"], metadata["finish_reason"], metadata["model_name"]) == ("h100-1", "stop", "m-1")
    assert metadata["request_id"].startswith("call-")
    asked = {"model": "m", "temperature": 0.0, "max_tokens": 9, "seed": 3, "stop": ["."]}
    assert seen == [{**asked, "messages": [{"role": "user", "content": "hi"}]}]


def deltas() -> httpx.Response:
    call = {"index": 0, "id": "call-1", "function": {"name": "add", "arguments": '{"a":1,'}}
    return sse(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "hel"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "lo", "tool_calls": [call]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"b":2}'}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": USAGE},
    )


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_streams_chunks_add_up_to_the_message(asynchronous: bool) -> None:
    seen: list[Any] = []
    chat = model(deltas(), seen)
    chunks = [chunk async for chunk in chat.astream("hi")] if asynchronous else list(chat.stream("hi"))
    message = chunks[0]
    for chunk in chunks[1:]:
        message = message + chunk
    assert message.content == "hello"
    assert message.tool_calls == [CALL]
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 2
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert (seen[0]["stream"], seen[0]["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize(
    ("choice", "sent"),
    [("any", "required"), ("none", "none"), ("add", {"type": "function", "function": {"name": "add"}})],
)
def test_bound_tools_are_sent_in_openais_shape(choice: str, sent: Any) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    seen: list[Any] = []
    model(whole({"content": None, "tool_calls": []}), seen).bind_tools([add], tool_choice=choice).invoke("hi")
    assert seen[0]["tools"][0]["function"]["name"] == "add"
    assert seen[0]["tool_choice"] == sent


def refusals() -> Iterator[tuple[Any, type[AgentServeError], str]]:
    for status, kind in [(400, BadInput), (404, NotFound), (413, TooLarge), (502, EngineFailed), (503, Unavailable)]:
        yield httpx.Response(status, json={"error": {"message": "too bad"}}), kind, "too bad"
    yield httpx.Response(500, text="<html>"), Unavailable, "500"
    yield httpx.ReadTimeout("slow"), Unavailable, "took too long"
    yield httpx.UnsupportedProtocol("no"), Unavailable, "cannot reach the gateway at http://gateway.test"


@pytest.mark.parametrize(("answer", "kind", "words"), list(refusals()))
@pytest.mark.parametrize("streamed", [False, True])
def test_every_way_to_fail_is_one_of_our_errors(
    answer: Any, kind: type[AgentServeError], words: str, streamed: bool
) -> None:
    chat = model(answer)
    with pytest.raises(kind, match=words):
        list(chat.stream("hi")) if streamed else chat.invoke("hi")


def test_an_error_in_mid_stream_is_raised() -> None:
    opening = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    broken = sse(opening, {"error": {"message": "the engine died", "code": "engine_failed"}})
    with pytest.raises(EngineFailed, match="the engine died"):
        list(model(broken).stream("hi"))


def test_an_answer_that_is_no_completion_is_an_engine_failure() -> None:
    with pytest.raises(EngineFailed, match="not JSON"):
        model(httpx.Response(200, text="hello")).invoke("hi")
    with pytest.raises(EngineFailed, match="no choices"):
        model(httpx.Response(200, json={})).invoke("hi")


def test_a_gateway_that_is_no_url_is_refused() -> None:
    with pytest.raises(BadInput, match="gateway"):
        ChatModel(model="m", gateway="nowhere")
