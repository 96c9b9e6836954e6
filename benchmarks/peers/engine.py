"""A bare engine: every chat is answered with the same chunks, as fast as a socket takes them or one by one at a pace.

    python -m benchmarks.peers.engine PORT [--chunks 64] [--model NAME]

It speaks as much of vLLM's HTTP as routers ask for before they send calls. What a call is to get stands in fields that
every router passes on: `max_tokens` is the number of chunks, and `temperature` (0 to 2) times 10 ms the time between
them, one write each; at 0 all are one write.
Chunks carry token ids if the call asks for them, as vLLM's do.
"""

import argparse
import asyncio
import json
from collections.abc import Callable
from typing import Any

import httptools
import uvloop

MODEL = "llama-3.1-8b"
GAP_S_PER_TEMPERATURE = 0.01
_CREATED = 1_700_000_000
_PROMPT_IDS = list(range(100, 116))


class Engine(asyncio.Protocol):
    """One connection; requests one after the other."""

    def __init__(self, model: str, chunks: int) -> None:
        self._model, self._chunks = model, chunks
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio opened the connection."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The router closed it."""
        if self._timer is not None:
            self._timer.cancel()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer it."""
        path = self._url.split(b"?")[0]
        if path in (b"/v1/chat/completions", b"/v1/completions"):
            self._complete(json.loads(self._body), is_chat=path == b"/v1/chat/completions")
        elif path == b"/v1/models":
            card = {
                "id": self._model,
                "object": "model",
                "owned_by": "vllm",
                "root": self._model,
                "max_model_len": 131072,
            }
            self._json({"object": "list", "data": [card]})
        elif path in _TOLD:
            self._json(_TOLD[path](self._model))
        else:
            self._json({"error": {"message": "no such route", "code": 404}}, b"404 Not Found")

    def _complete(self, body: dict[str, Any], *, is_chat: bool) -> None:
        with_ids = bool(body.get("return_token_ids"))
        if not body.get("stream"):
            self._json(_whole(self._model, with_ids, is_chat=is_chat))
            return
        count = min(body.get("max_tokens") or body.get("max_completion_tokens") or self._chunks, self._chunks)
        parts = _stream(self._model, count, with_ids=with_ids, is_chat=is_chat)
        gap_s = (body.get("temperature") or 0.0) * GAP_S_PER_TEMPERATURE
        if gap_s <= 0:
            self._transport.write(_STREAM_HEAD + b"".join(parts))
            return
        self._transport.write(_STREAM_HEAD + parts[0])
        self._pace(parts, 1, gap_s, self._loop.time() + gap_s)

    def _pace(self, parts: list[bytes], at: int, gap_s: float, due_s: float) -> None:
        def put() -> None:
            self._transport.write(parts[at])
            if at + 1 < len(parts):
                self._pace(parts, at + 1, gap_s, due_s + gap_s)

        self._timer = self._loop.call_at(due_s, put)

    def _json(self, value: object, status: bytes = b"200 OK") -> None:
        content = json.dumps(value).encode()
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(content))
        self._transport.write(head + content)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TOLD: dict[bytes, Callable[[str], object]] = {
    b"/health": lambda _: {},
    b"/health_generate": lambda _: {},
    b"/version": lambda _: {"version": "0.32.0"},
    b"/get_model_info": lambda model: {"model_path": model, "is_generation": True},
    b"/model_info": lambda model: {"model_path": model, "is_generation": True},
}
_MADE: dict[tuple[str, int, bool, bool], list[bytes]] = {}


def _stream(model: str, count: int, *, with_ids: bool, is_chat: bool) -> list[bytes]:
    key = (model, count, with_ids, is_chat)
    if key not in _MADE:
        _MADE[key] = [_framed(event) for event in _events(model, count, with_ids, is_chat)]
    return _MADE[key]


def _framed(events: bytes) -> bytes:
    end = b"0\r\n\r\n" if events.endswith(b"[DONE]\n\n") else b""
    return b"%x\r\n%b\r\n" % (len(events), events) + end


def _events(model: str, count: int, with_ids: bool, is_chat: bool) -> list[bytes]:
    head = {"id": "chatcmpl-canned", "object": "chat.completion.chunk", "created": _CREATED, "model": model}
    events = []
    for number in range(count):
        shown = {"delta": {"content": f" word{number}"}} if is_chat else {"text": f" word{number}"}
        finish = "length" if number == count - 1 else None
        choice: dict[str, Any] = {"index": 0, **shown, "logprobs": None, "finish_reason": finish}
        chunk: dict[str, Any] = {**head, "choices": [choice]}
        if with_ids:
            choice["token_ids"] = [1000 + number]
            if number == 0:
                chunk["prompt_token_ids"] = _PROMPT_IDS
        events.append(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")
    usage = {"prompt_tokens": len(_PROMPT_IDS), "completion_tokens": count, "total_tokens": count + len(_PROMPT_IDS)}
    last = json.dumps({**head, "choices": [], "usage": usage}, separators=(",", ":")).encode()
    events[-1] += b"data: " + last + b"\n\ndata: [DONE]\n\n"
    return events


def _whole(model: str, with_ids: bool, *, is_chat: bool) -> dict[str, Any]:
    shown = {"message": {"role": "assistant", "content": " word"}} if is_chat else {"text": " word"}
    choice: dict[str, Any] = {"index": 0, **shown, "logprobs": None, "finish_reason": "length"}
    if with_ids:
        choice |= {"token_ids": [1000], "prompt_token_ids": _PROMPT_IDS}
    usage = {"prompt_tokens": len(_PROMPT_IDS), "completion_tokens": 1, "total_tokens": 1 + len(_PROMPT_IDS)}
    return {
        "id": "canned",
        "object": "chat.completion",
        "created": _CREATED,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


async def serve(port: int, model: str, chunks: int) -> None:
    """Answer on loopback until stopped."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(model, chunks), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.model, options.chunks))


if __name__ == "__main__":
    main()
