"""The bare engine and the lean client of the comparison with peers count what is really sent, and fail loudly."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from agentserve.engines import open_adapter
from agentserve.engines.adapter import EngineCall
from benchmarks.peers import load
from benchmarks.peers.__main__ import DIRECT, Figures, compare
from benchmarks.peers.engine import MODEL, Engine


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: Engine(MODEL, 64), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_every_chunk_of_every_call_is_counted(url: str) -> None:
    timings = await load.play(url, load.request(url, MODEL, 64, 0.0), concurrency=3, calls=7)
    assert (timings.calls, timings.chunks, len(timings.ttft_s)) == (7, 7 * (64 + 2), 7)  # and usage, and the end mark


async def test_a_paced_call_tells_the_time_between_its_chunks(url: str) -> None:
    timings = await load.play(url, load.request(url, MODEL, 5, 0.001), concurrency=1, calls=2, gap_s=0.001)
    assert (timings.calls, len(timings.ttft_s), len(timings.gaps_s)) == (2, 2, 2 * 4)


async def test_an_answer_that_is_no_stream_ends_the_load(url: str) -> None:
    refused = load.request(url, MODEL, 5, 0.0).replace(b"/v1/chat/completions", b"/v1/elsewhere-wise")
    with pytest.raises(ExceptionGroup) as raised:
        await load.play(url, refused, concurrency=1, calls=1)
    assert isinstance(raised.value.exceptions[0], load.WrongAnswer)


async def test_the_bare_engine_gives_token_ids_as_our_adapter_reads_them(url: str) -> None:
    adapter = open_adapter("vllm", url)
    body = json.loads(load.request(url, MODEL, 3, 0.0).split(b"\r\n\r\n", 1)[1])
    call = EngineCall(path="/v1/chat/completions", body=body, request_id="r")
    deltas = [delta async for delta in adapter.stream(call)]
    await adapter.close()
    assert [delta.token_ids for delta in deltas if delta.choice] == [(1000,), (1001,), (1002,)]
    assert deltas[0].prompt_ids is not None


def figures(router: str, rate: float, load_name: str, concurrency: int, ttft: float) -> Figures:
    return Figures(router, 0, load_name, concurrency, 10, rate, 64 * rate, 1.0, 2**20, ttft, ttft, ttft, ttft)


def test_ratios_and_what_is_added_are_of_one_round() -> None:
    found = [
        figures(name, rate, kind, concurrency, ttft)
        for name, rate, ttft in ((DIRECT, 100.0, 1.0), ("agentserve", 50.0, 1.5), ("vllm-router", 40.0, 1.25))
        for kind, sizes in (("burst", (1, 32, 256)), ("paced", (1, 32)))
        for concurrency in sizes
    ]
    told = compare(found)
    assert told["agentserve / it, requests/s, 32 at a time"]["vllm-router"]["median"] == 1.25
    assert told["added ttft_p99_ms, 1 at a time"]["agentserve"]["median"] == 0.5
