"""What does each client see when something is wrong? Refusals, broken engines, limits, timeouts, clients that leave."""

import asyncio
from typing import Any, Final

import httpx

from tests.clients.bench import MAX_BODY_BYTES, MAX_LIVE_CALLS, RECORDED, Bench
from tests.clients.cases_answers import chat
from tests.clients.heard import Client, Refused
from tests.clients.recorder import Script, text
from tests.clients.table import case
from tests.integration.gateway_parts import MODEL, until

ERRORS: Final = "Errors"
TIMES: Final = "Timeouts and leaving"


def engine_error(status: int, message: str, **more: Any) -> Script:
    """An engine that answers with an error in vLLM's shape."""
    error = {"error": {"message": message, "type": "SomeError", "param": None, "code": status}}
    return Script(status=status, error=error, **more)


@case(ERRORS, "a bad field: 400 that names it")
async def bad_field(bench: Bench, client: Client) -> None:
    try:
        await client.call(bench.url, chat("hi", n=0))
    except Refused as refused:
        assert "n: must be a whole number of at least 1" in refused.message
        raise


@case(ERRORS, "no such model: 404 that names those there are")
async def no_such_model(bench: Bench, client: Client) -> None:
    try:
        await client.call(bench.url, chat("hi", "no-such-model"))
    except Refused as refused:
        assert MODEL in refused.message
        raise


@case(ERRORS, "the same, streamed: a status, not an event")
async def no_such_model_streamed(bench: Bench, client: Client) -> None:
    await client.call(bench.url, chat("hi", "no-such-model", stream=True))


@case(ERRORS, "a prompt over the model's context, in the engine's words")
async def too_long(bench: Bench, client: Client) -> None:
    try:
        await client.call(bench.url, chat("[[reply tokens=60]] " + "word " * 30, max_tokens=1_000_000))
    except Refused as refused:
        assert "context length" in refused.message
        raise


@case(ERRORS, "the engine refuses (400): status and words reach the client")
async def engine_refuses(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-refuses"] = engine_error(400, "top_k must be positive")
    try:
        await client.call(bench.url, chat("engine-refuses", RECORDED))
    except Refused as refused:
        assert "top_k must be positive" in refused.message
        raise


@case(ERRORS, "the engine refuses (422)")
async def engine_refuses_422(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-422"] = engine_error(422, "cannot be processed")
    await client.call(bench.url, chat("engine-422", RECORDED))


@case(ERRORS, "the engine is overloaded (429), and so on every try")
async def engine_overloaded(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-429"] = engine_error(429, "too many requests", headers={"retry-after": "3"})
    await client.call(bench.url, chat("engine-429", RECORDED))


@case(ERRORS, "the engine fails (500), and so on every try")
async def engine_fails(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-500"] = engine_error(500, "broken")
    await client.call(bench.url, chat("engine-500", RECORDED))


@case(ERRORS, "the engine is not ready (503), and so on every try")
async def engine_not_ready(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-503"] = engine_error(503, "loading")
    await client.call(bench.url, chat("engine-503", RECORDED, stream=True))


@case(ERRORS, "a stream that cannot move breaks after its first token: an error event")
async def stream_breaks(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["stream-breaks"] = Script(choices=[[text("a")]], then="nothing")
    await client.call(bench.url, chat("stream-breaks", RECORDED, n=1, logprobs=True, stream=True))


@case(ERRORS, "too many calls in flight: 429 with Retry-After")
async def too_many_calls(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["in-flight"] = Script(choices=[[text("a")]], then="pings")
    async with httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=30) as others:
        body = chat("in-flight", RECORDED, stream=True)
        held = [asyncio.create_task(others.post("/v1/chat/completions", json=body)) for _ in range(MAX_LIVE_CALLS)]
        try:
            await until(lambda: bench.live_calls() == MAX_LIVE_CALLS)
            await client.call(bench.url, chat("hi"))
        except Refused as refused:
            assert refused.retry_after == "1"
            raise
        finally:
            for call in held:
                call.cancel()
            await asyncio.wait(held)
            await bench.until_idle()


@case(ERRORS, "a body over the limit: 413")
async def body_too_large(bench: Bench, client: Client) -> None:
    await client.call(bench.url, chat("x" * MAX_BODY_BYTES))


@case(ERRORS, "an SLO that is none: 400")
async def bad_slo(bench: Bench, client: Client) -> None:
    await client.call(bench.url, chat("hi"), headers={"x-agentserve-slo-s": "soon"})


@case(ERRORS, "embeddings: no such route")
async def embeddings(bench: Bench, client: Client) -> None:
    await client.embeddings(bench.url, MODEL)


@case(ERRORS, "the Responses API: no such route")
async def responses(bench: Bench, client: Client) -> None:
    await client.responses(bench.url, MODEL)


@case(ERRORS, "the client's own retry after a 502 succeeds")
async def retried(bench: Bench, client: Client) -> None:
    """The engine fails until the gateway gives up once, and serves the repetition."""
    marker = f"retried-{client.name}"
    bench.recorder.scripts[marker] = engine_error(500, "broken")

    async def mend() -> None:
        await until(lambda: bench.recorder.received(marker) and bench.live_calls() == 0)
        del bench.recorder.scripts[marker]

    async with asyncio.TaskGroup() as group:
        group.create_task(mend())
        heard = await client.call(bench.url, chat(marker, RECORDED), retries=3)
    assert heard.first.text == "recorded answer"


@case(TIMES, "the client's timeout, nothing said yet: the engine is free again")
async def client_times_out(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["impatient"] = Script(choices=[[]], then="pings")
    try:
        await client.call(bench.url, chat("impatient", RECORDED), timeout_s=0.5)
    finally:
        assert bench.recorder.received("impatient")
        await bench.until_idle()


@case(TIMES, "the same, streamed")
async def client_times_out_streaming(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["impatient-stream"] = Script(choices=[[text("a")]], then="pings")
    try:
        await client.call(bench.url, chat("impatient-stream", RECORDED, stream=True), timeout_s=0.5)
    finally:
        assert bench.recorder.received("impatient-stream")
        await bench.until_idle()


@case(TIMES, "a stream that its reader leaves: the engine is free again")
async def reader_leaves(bench: Bench, client: Client) -> None:
    marker = f"reader-leaves-{client.name}"
    bench.recorder.scripts[marker] = Script(choices=[[text("a")]], then="tokens")
    heard = await client.call(bench.url, chat(marker, RECORDED, stream=True), leave_after=5)
    assert len(heard.first.pieces) >= 5
    await bench.until_idle()


@case(TIMES, "an engine that falls silent before its first token")
async def engine_silent(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["engine-silent"] = Script(choices=[[]], then="silence")
    try:
        await client.call(bench.url, chat("engine-silent", RECORDED))
    finally:
        await bench.until_idle()


@case(TIMES, "the same after its first token, streamed, in a call that cannot move: an error event")
async def engine_silent_later(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["silent-later"] = Script(choices=[[text("a")]], then="silence")
    try:
        await client.call(bench.url, chat("silent-later", RECORDED, logprobs=True, stream=True))
    finally:
        await bench.until_idle()
