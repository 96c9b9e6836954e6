"""Targets: what engines stream, as the gateway's adapters and its joined stream take it, and what the SDK takes."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from agentserve.engines.adapter import Delta
from agentserve.engines.chunks import parse_chunk
from agentserve.engines.llamacpp_chunks import CompletionChunks
from agentserve.engines.sglang_chunks import GenerateChunks
from agentserve.engines.sse import DONE, SseSplitter
from agentserve.errors import AgentServeError
from agentserve.gateway.answers import whole_answer
from agentserve.gateway.sse import ChunkWriter
from agentserve.orchestrator.request import CHAT, COMPLETIONS, CallRequest
from agentserve.orchestrator.stream import JoinedStream, Piece
from agentserve.sdk.resume import StreamProgress
from tests.fuzz.mutations import changed, changed_bytes, json_bytes
from tests.fuzz.target import Target

CHAT_CHUNKS: list[dict[str, Any]] = [
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "prompt_token_ids": [1, 2, 3],
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
    },
    {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "Hel"}, "token_ids": [4], "logprobs": None}]},
    {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "lo"}, "token_ids": [5, 6]}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}}]},
    {
        "choices": [
            {"index": 0, "delta": {"content": ""}, "token_ids": [7], "finish_reason": "stop", "stop_reason": None}
        ]
    },
    {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": None},
    },
]
TEXT_CHUNKS: list[dict[str, Any]] = [
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "a", "token_ids": [4], "prompt_token_ids": [1, 2]}]},
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "é", "token_ids": [5, 6], "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    {"error": {"message": "no", "code": 500}},
]
GENERATE_CHUNKS: list[dict[str, Any]] = [
    {"text": "a", "output_ids": [4], "meta_info": {"prompt_tokens": 2, "completion_tokens": 1, "finish_reason": None}},
    {"text": "b", "output_ids": [5], "meta_info": {"finish_reason": {"type": "stop"}, "cached_tokens": 1}},
    {"error": {"message": "no"}},
]
LLAMACPP_CHUNKS: list[dict[str, Any]] = [
    {"content": "a", "tokens": [4], "stop": False, "id_slot": 0, "index": 0},
    {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": 1, "tokens_evaluated": 2},
]
REQUESTS: Sequence[tuple[str, dict[str, Any], str | None]] = (
    (CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stop": ["lo"], "max_tokens": 3}, None),
    (CHAT, {"model": "m", "messages": [], "tools": []}, "tools"),
    (COMPLETIONS, {"model": "m", "prompt": "x", "return_token_ids": True}, None),
)


def _stream(chunks: Sequence[dict[str, Any]], draw: bytes) -> bytes:
    if draw[1] % 4 < 3:
        sent = changed(list(chunks), draw)
        rows = sent if isinstance(sent, list) else [sent]
        return b"".join(b"data: " + json_bytes(row) + b"\n\n" for row in rows) + b"data: [DONE]\n\n"
    raw = b"".join(b"data: " + orjson.dumps(row) + b"\n\n" for row in chunks) + b"data: [DONE]\n\n"
    return changed_bytes(raw, draw)


def _payloads(raw: bytes) -> list[bytes]:
    """The payloads of a stream that comes in pieces of changing sizes."""
    splitter, found, at, size = SseSplitter(4000, 40_000), [], 0, 1
    while at < len(raw):
        found += splitter.feed(raw[at : at + size])
        at, size = at + size, size * 3 % 97 + 1
    return found


def _served(parse: Callable[[bytes], Sequence[Delta]], raw: bytes, which: int) -> None:
    """What an engine streamed, as a client gets it: in chunks and as one answer."""
    path, body, refusal = REQUESTS[which % len(REQUESTS)]
    request = _request(path, body)
    stream = JoinedStream(request, refusal)
    writer = ChunkWriter(request, stream, 1)
    pieces: list[Piece] = []
    try:
        for payload in _payloads(raw):
            if payload == DONE:
                break
            for delta in parse(payload):
                if piece := stream.feed(delta):
                    pieces.append(piece)
                    writer.pieces([piece])
        stream.usage()
        orjson.dumps(whole_answer(request, stream, pieces, 1))
        writer.end()
    except AgentServeError as error:
        writer.error(error)
        stream.cut()
        raise


def _request(path: str, body: dict[str, Any]) -> CallRequest:
    return CallRequest(
        request_id="r", path=path, body=body, model="m", run_id="run", step_id="s", workflow="w", node="n"
    )


def _llamacpp() -> Callable[[bytes], Sequence[Delta]]:
    chunks = CompletionChunks(is_chat=True, prompt_ids=(1, 2))
    return lambda payload: [chunks.read(payload).delta]


def _sdk(raw: bytes) -> None:
    progress = StreamProgress({"model": "m", "stream": True, "stream_options": {"include_usage": True}})
    at, size = 0, 5
    while at < len(raw) and not progress.ended:
        progress.feed(raw[at : at + size])
        at, size = at + size, size * 3 % 97 + 1
    progress.resume_body()
    progress.feed(raw)
    progress.closing()


TARGETS = (
    Target(
        "engine-stream",
        lambda draw: bytes([draw[0]]) + _stream(TEXT_CHUNKS if draw[0] % 3 == 2 else CHAT_CHUNKS, draw),
        lambda given: _served(parse_chunk, given[1:], given[0] if given else 0),
        (AgentServeError,),
    ),
    Target(
        "sglang-stream",
        lambda draw: _stream(GENERATE_CHUNKS, draw),
        lambda given: _served(GenerateChunks(is_chat=True).parse, given, 0),
        (AgentServeError,),
    ),
    Target(
        "llamacpp-stream",
        lambda draw: _stream(LLAMACPP_CHUNKS, draw),
        lambda given: _served(_llamacpp(), given, 0),
        (AgentServeError,),
    ),
    Target("sdk-stream", lambda draw: _stream(CHAT_CHUNKS, draw), _sdk, (AgentServeError,)),
)
