"""The lean transport against engines that misbehave: every ending is an error of ours, and nothing hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agentserve.engines import open_adapter
from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.bodies import prefill_body, vllm_body
from agentserve.engines.http import EngineBusy, EngineHttp, EngineRefused, EngineUnreachable, Limits
from agentserve.engines.sse import SseSplitter
from agentserve.errors import BadInput, EngineFailed

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def saying(*parts: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answer


async def stream(url: str, **limits: float) -> list[Delta]:
    adapter = open_adapter("vllm", url, limits=Limits(**{"stall_timeout_s": 5.0, **limits}))  # type: ignore[arg-type]  # floats and ints alike
    try:
        return [delta async for delta in adapter.stream(EngineCall(path="/v1/completions", body={}, request_id="r"))]
    finally:
        await adapter.close()


FINISH = b'data: {"choices":[{"text":"b","finish_reason":"stop"}]}\n\n'
TEXT = b'data: {"choices":[{"text":"a","token_ids":[1]}]}\n\n'


async def test_a_stream_is_read_whatever_the_framing() -> None:
    whole = (
        HEAD + chunk(b": ping\n\n" + TEXT[:20]) + chunk(TEXT[20:]) + chunk(FINISH + b"data: [DONE]\n\n") + b"0\r\n\r\n"
    )
    for size in (1, 7, 1000):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        async with engine(saying(*pieces)) as url:
            assert [delta.text for delta in await stream(url)] == ["a", "b"]


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((HEAD + chunk(TEXT),), EngineUnreachable),
        ((HEAD + chunk(TEXT) + b"0\r\n\r\n",), EngineUnreachable),
        ((b"SSH-2.0-OpenSSH\r\n",), EngineUnreachable),
        ((b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,), EngineUnreachable),
        ((HEAD + chunk(b"data: nonsense\n\n"),), EngineFailed),
        ((HEAD + chunk(b'data: {"choices":[{"text":3}]}\n\n'),), EngineFailed),
        ((HEAD + chunk(b'data: {"error":{"message":"boom","code":500}}\n\n'),), EngineFailed),
        ((HEAD + chunk(b'data: {"choices":[{"text":"","finish_reason":"abort"}]}\n\n'),), EngineFailed),
        ((b"HTTP/1.1 400 Bad\r\ncontent-length: 31\r\n\r\n" + b'{"error":{"message":"no such"}}',), EngineRefused),
        ((b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",), EngineBusy),
        ((b"HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n",), EngineFailed),
    ],
)
async def test_every_bad_ending_is_one_error(parts: tuple[bytes, ...], error: type[EngineFailed]) -> None:
    async with engine(saying(*parts)) as url:
        with pytest.raises(error) as caught:
            await stream(url)
        assert type(caught.value) is error


async def test_a_stream_of_two_choices_is_whole_with_two_finishes() -> None:
    async with engine(saying(HEAD + chunk(TEXT) + chunk(FINISH) + b"0\r\n\r\n")) as url:
        adapter = open_adapter("vllm", url)
        with pytest.raises(EngineUnreachable):
            async for _ in adapter.stream(EngineCall(path="/v1/completions", body={"n": 2}, request_id="r")):
                pass
        await adapter.close()


async def test_a_silent_engine_is_given_up() -> None:
    hold = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(TEXT))
        await hold.wait()

    async with engine(silent) as url:
        with pytest.raises(EngineFailed, match="silent"):
            await stream(url, stall_timeout_s=0.05)
        hold.set()


async def test_endless_lines_and_streams_are_cut() -> None:
    with pytest.raises(EngineFailed, match="line"):
        SseSplitter(10, 1000).feed(b"data: " + b"x" * 20)
    splitter = SseSplitter(100, 50)
    with pytest.raises(EngineFailed, match="stream"):
        for _ in range(10):
            splitter.feed(b"data: x\n\n")


async def test_nobody_listening_is_unreachable_and_unhealthy() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    with pytest.raises(EngineUnreachable):
        await stream(url)
    http = EngineHttp(url, Limits())
    assert not await http.is_healthy()
    await http.close()


async def test_a_connection_is_used_again_and_a_stale_one_is_replaced() -> None:
    accepted = 0

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with engine(one_each) as url:
        http = EngineHttp(url, Limits())
        for _ in range(4):
            assert await http.json("/x", {}, {}) == {}
        await http.close()
    assert accepted == 2


async def test_leaving_a_stream_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(TEXT))
        await reader.read()
        closed.set()

    async with engine(endless) as url:
        adapter = open_adapter("vllm", url)
        deltas = adapter.stream(EngineCall(path="/v1/completions", body={}, request_id="r"))
        await anext(deltas)
        await deltas.aclose()
        await asyncio.wait_for(closed.wait(), 5)
        await adapter.close()


def test_bodies_of_first_replay_and_prefill_attempts() -> None:
    body = {"model": "m", "messages": [], "max_tokens": 9, "min_tokens": 2, "tools": [], "top_p": 0.5, "priority": 9}
    call = EngineCall(path="/v1/chat/completions", body=body, request_id="r", priority=-3)
    first = vllm_body(call, priority=True)
    assert (first["priority"], first["stream"], first["return_token_ids"]) == (-3, True, True)
    assert "priority" not in vllm_body(call, priority=False)
    replay = EngineCall(path=call.path, body=body, request_id="r", replay_ids=(1, 2), max_tokens=None, min_tokens=1)
    again = vllm_body(replay, priority=False)
    assert {key: again[key] for key in ("prompt", "max_tokens", "min_tokens", "top_p")} == {
        "prompt": (1, 2), "max_tokens": None, "min_tokens": 1, "top_p": 0.5,
    }  # fmt: skip
    assert not {"messages", "tools"} & set(again)
    seeded = EngineCall(path=call.path, body={**body, "seed": 5}, request_id="r", replay_ids=(1, 2))
    assert vllm_body(seeded, priority=False)["seed"] == 7  # with 5 the engine would repeat its first draws
    prefill = prefill_body(call, priority=False)
    assert (prefill["stream"], prefill["max_tokens"], prefill["max_completion_tokens"]) == (False, 1, 1)
    assert prefill["kv_transfer_params"]["do_remote_decode"] is True
    assert not {"stream_options", "min_tokens"} & set(prefill)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(BadInput, match="unknown engine 'x'"):
        open_adapter("x", "http://127.0.0.1:1")


async def test_a_long_first_chunk_that_comes_with_the_head_is_no_long_head() -> None:
    whole = chunk(b"data: " + b'{"choices":[{"text":"%s"}]}' % (b"a" * 100_000) + b"\n\n") + chunk(FINISH)
    async with engine(saying(HEAD + whole + chunk(b""))) as url:
        deltas = await stream(url)
    assert sum(len(delta.text) for delta in deltas) == 100_001


async def test_a_head_without_end_is_refused() -> None:
    async with engine(saying(b"HTTP/1.1 200 OK\r\n", *[b"x-filler: " + b"a" * 8000 + b"\r\n"] * 10)) as url:
        with pytest.raises(EngineUnreachable, match="head is too long"):
            await stream(url)
