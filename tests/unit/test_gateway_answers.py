"""What clients get: chunks and whole answers in OpenAI's shape, from the same pieces."""

import json
from typing import Any

from agentserve.engines.adapter import Delta
from agentserve.errors import EngineFailed
from agentserve.gateway.answers import merge, whole_answer
from agentserve.gateway.sse import ChunkWriter
from agentserve.orchestrator.request import CHAT, COMPLETIONS, CallRequest
from agentserve.orchestrator.stream import JoinedStream, Piece


def call(path: str = CHAT, refusal: str | None = None, **body: Any) -> tuple[CallRequest, JoinedStream]:
    request = CallRequest(
        request_id="r", path=path, body=body, model="m", run_id="run", step_id=None, workflow="w", node="n"
    )
    return request, JoinedStream(request, refusal)


def parts(content: bytes) -> list[Any]:
    events = [line[6:] for line in content.decode().split("\n") if line]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def test_a_chat_stream_opens_with_the_role_and_ends_with_usage_if_asked() -> None:
    request, stream = call(stream_options={"include_usage": True})
    stream.feed(Delta(usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}))
    writer = ChunkWriter(request, stream, 5)
    opening, text = parts(writer.pieces([Piece('é "', (), "stop")]))
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"] == [{"index": 0, "delta": {"content": 'é "'}, "logprobs": None, "finish_reason": "stop"}]
    assert (text["id"], text["created"], text["model"]) == ("chatcmpl-r", 5, "m")
    usage, done = parts(writer.end())
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 2, "[DONE]")


def test_token_ids_are_passed_on_only_if_asked_for() -> None:
    request, stream = call(COMPLETIONS, return_token_ids=True)
    stream.prompt_ids = (7, 8)
    opening, text = parts(ChunkWriter(request, stream, 5).pieces([Piece("a", (1,))]))
    assert opening["choices"][0]["prompt_token_ids"] == [7, 8]
    assert text["choices"][0] == {"index": 0, "text": "a", "logprobs": None, "finish_reason": None, "token_ids": [1]}
    request, stream = call("/v1/chat/completions", "tools")
    passed = Piece("a", (1,), None, {"index": 1, "delta": {"content": "a"}, "token_ids": [1]})
    assert parts(ChunkWriter(request, stream, 5).pieces([passed]))[0]["choices"] == [
        {"index": 1, "delta": {"content": "a"}}
    ]


def test_an_error_in_a_stream_is_an_event_and_an_end() -> None:
    request, stream = call()
    error, done = parts(ChunkWriter(request, stream, 5).error(EngineFailed("gone")))
    assert (error["error"]["message"], error["error"]["code"], done) == ("gone", "engine_failed", "[DONE]")


def test_tool_calls_and_several_choices_are_put_together() -> None:
    request, stream = call(CHAT, "tools", n=2)
    deltas = [
        {"index": 0, "delta": {"role": "assistant", "content": None}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f"}}]}},
        {"index": 1, "delta": {"content": "x"}, "logprobs": {"content": [1]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}},
        {"index": 1, "delta": {"content": "y"}, "logprobs": {"content": [2]}, "finish_reason": "stop"},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}},
        {"index": 0, "delta": {}, "finish_reason": "tool_calls"},
    ]
    pieces = [piece for each in deltas if (piece := stream.feed(Delta(choice=each))) is not None]
    first, second = whole_answer(request, stream, pieces, 5)["choices"]
    assert first["message"]["tool_calls"] == [
        {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert first["finish_reason"] == "tool_calls"
    assert (second["message"]["content"], second["logprobs"]) == ("xy", {"content": [1, 2]})


def test_merging_keeps_what_only_one_side_says() -> None:
    assert merge(None, "a") == "a"
    assert merge({"a": 1}, {"b": None, "a": 2}) == {"a": 2, "b": None}
    assert merge([1], [2]) == [1, 2]
