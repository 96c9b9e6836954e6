"""What lies under the clients: connections, encodings, odd requests, and what a call's name is good for."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.clients.bench import RECORDED, Bench, running_bench
from tests.clients.cases_answers import chat, completion
from tests.clients.heard import Refused
from tests.clients.recorder import Script, delta, text
from tests.clients.with_curl import get, post
from tests.clients.with_openai import KEY
from tests.integration.gateway_parts import MODEL, chunks


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running_bench() as made:
        yield made


@pytest.fixture
def http(bench: Bench) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=bench.url, trust_env=False, timeout=30) as client:
        yield client


def test_calls_share_one_connection(http: httpx.Client) -> None:
    body = chat("hi", max_tokens=3)
    used = []
    for fields in (body, {**body, "stream": True}, {**body, "n": 0}, body):
        with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
            used.append(answer.extensions["network_stream"].get_extra_info("client_addr"))
            answer.read()
    assert len(set(used)) == 1


def test_an_answer_is_not_compressed_for_a_client_that_could_read_it(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=chat("hi", max_tokens=3), headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert answer.json()["usage"]["completion_tokens"] == 3


async def test_a_compressed_body_is_refused_with_what_to_do(bench: Bench) -> None:
    content = gzip.compress(json.dumps(chat("hi")).encode())
    with pytest.raises(Refused) as refused:
        await post(f"{bench.url}/v1/chat/completions", content, "-H", "content-encoding: gzip")
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")


async def test_curl_may_send_what_it_sends_by_default(bench: Bench) -> None:
    """A form's content type, a slash too many in the path, HTTP/1.0, a body that waits for 100 Continue."""
    content = json.dumps(chat("hi", max_tokens=3)).encode()
    route = f"{bench.url}/v1/chat/completions"
    for options in (
        ("-H", "content-type: application/x-www-form-urlencoded"), ("--http1.0",), ("-H", "expect: 100-continue"),
    ):  # fmt: skip
        assert (await post(route, content, *options))["usage"]["completion_tokens"] == 3
    assert (await post(f"{route}/", content, "--location"))["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"text"', b'{"model": "x"', b'{"a": "\\ud800"}', b"\xff\xfe", b"[" * 100_000, b'{"model": 7}'],
    ids=["empty", "cut", "list", "string", "open", "surrogate", "not-utf8", "deep", "model"],
)
def test_a_broken_body_is_400_in_openais_shape(content: bytes, http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("route", ["embeddings", "responses", "images/generations", "audio/speech", "moderations"])
async def test_routes_that_there_are_not_are_404_in_openais_shape(route: str, bench: Bench) -> None:
    with pytest.raises(Refused) as refused:
        await post(f"{bench.url}/v1/{route}", b"{}")
    assert (refused.value.status, refused.value.code) == (404, "not_found")
    assert refused.value.message == f"no such route: POST /v1/{route}"
    with pytest.raises(Refused) as refused:
        await get(f"{bench.url}/v1/chat/completions")
    assert refused.value.status == 405


async def test_the_name_of_a_call_is_where_openai_looks_for_it(bench: Bench) -> None:
    async with openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = await client.chat.completions.create(**chat("hi", max_tokens=3))
        assert answer._request_id is not None
        assert answer.id == f"chatcmpl-{answer._request_id}"
        bench.recorder.scripts["engine-418"] = Script(status=418, error={"error": {"message": "a teapot"}})
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(**chat("engine-418", RECORDED))
        assert refused.value.request_id is not None
        assert refused.value.request_id.startswith("call-")


@pytest.mark.parametrize("prompt", ["list-of-one", [1, 2, 3]], ids=["text", "ids"])
def test_a_list_of_one_prompt_may_move_between_engines_as_the_prompt_may(
    prompt: Any, bench: Bench, http: httpx.Client
) -> None:
    answer = http.post("/v1/completions", json=completion([prompt], RECORDED, user="one-prompt"))
    assert bench.recorder.received("one-prompt")[-1]["prompt"] == prompt
    run_id = answer.headers["x-agentserve-run-id"]
    assert answer.json()["choices"][0]["text"] == "recorded answer"
    arrived = [
        event for event in http.get(f"/v1/runs/{run_id}/events").json()["data"] if event["kind"] == "call.decided"
    ]
    assert "several" not in str(arrived)


def test_a_stream_is_events_of_one_answer_and_an_end_mark(http: httpx.Client) -> None:
    body = chat("say unicode", stream=True, stream_options={"include_usage": True})
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = chunks(answer.text)
    assert {(part["object"], part["model"]) for part in parts} == {("chat.completion.chunk", MODEL)}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [part["choices"] for part in parts].count([]) == 1
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_whole_answer_with_tool_calls_has_no_text_and_no_index(bench: Bench, http: httpx.Client) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    bench.recorder.scripts["tool-shape"] = Script(
        choices=[[delta(role="assistant", content="")], [delta(tool_calls=[call])], [delta(finish="tool_calls")]]
    )
    for fields in ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}):
        answer = http.post("/v1/chat/completions", json=chat("tool-shape", RECORDED, **fields)).json()
        message = answer["choices"][0]["message"]
        del call["index"]
        assert message == {"role": "assistant", "content": None, "tool_calls": [call]}
        call["index"] = 0


def test_an_engine_that_repeats_its_finish_reason_is_heard_once(bench: Bench, http: httpx.Client) -> None:
    bench.recorder.scripts["twice-finished"] = Script(
        choices=[[text("a", finish="stop", stop_reason="x")], [text("", finish="stop", stop_reason="x")]]
    )
    answer = http.post("/v1/chat/completions", json=chat("twice-finished", RECORDED, logprobs=True)).json()
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["stop_reason"]) == ("stop", "x")
