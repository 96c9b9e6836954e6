"""The emulated engine over real HTTP, as vLLM's clients use it."""

import httpx
import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.emulator.server import serve
from agentserve.errors import Unavailable
from tests.integration.emulator_client import chat, client_of, metric, stream, until


async def test_a_chat_answer_has_vllms_shape():
    async with client_of() as client:
        response = await client.post(
            "/v1/chat/completions", json=chat("hi [[reply tokens=12]]", return_token_ids=True, request_id="r1")
        )

    answer = response.json()
    assert answer["id"] == "chatcmpl-r1"
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["token_ids"]) == 12
    assert answer["usage"] == {
        "prompt_tokens": len(answer["prompt_token_ids"]),
        "completion_tokens": 12,
        "total_tokens": len(answer["prompt_token_ids"]) + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream_gives_the_same_tokens_and_text():
    body = chat("hi [[reply tokens=60]]", return_token_ids=True)
    async with client_of() as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        chunks = await stream(client, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})

    first, *deltas, last = chunks
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [i for chunk in deltas for i in chunk["choices"][0]["token_ids"]] == whole["choices"][0]["token_ids"]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 60


async def test_usage_comes_with_every_chunk_where_asked():
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with client_of() as client:
        chunks = await stream(client, "/v1/chat/completions", chat("[[reply tokens=5]]", stream_options=options))

    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][-2:] == [5, 5]
    assert chunks[0]["usage"]["completion_tokens"] == 0


async def test_a_stream_goes_on_exactly_on_other_emulators_after_several_hops():
    body = chat("tell [[reply tokens=90]]", return_token_ids=True)
    async with client_of() as one, client_of(gpu="a100") as two, client_of(gpu="h200") as three:
        whole = (await one.post("/v1/chat/completions", json=body)).json()
        prompt, ids = whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
        held = ids[:31]
        for hop, client in enumerate((two, three, one)):
            replay = {"prompt": prompt + held, "max_tokens": 20 if hop < 2 else 1000, "return_token_ids": True}
            chunks = await stream(client, "/v1/completions", replay)
            assert chunks[0]["choices"][0]["prompt_token_ids"] == prompt + held
            held += [i for chunk in chunks for i in chunk["choices"][0]["token_ids"]]

    assert held == ids
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_growing_conversation_hits_the_prefix_cache():
    text = "a long story " * 40
    async with client_of() as client:
        first = (await client.post("/v1/chat/completions", json=chat(text))).json()
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": first["choices"][0]["message"]["content"]},
            {"role": "user", "content": "go on"},
        ]
        second = (await client.post("/v1/chat/completions", json={"messages": messages})).json()
        hits = await metric(client, "vllm:prefix_cache_hits_total")

    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == hits
    assert cached >= (first["usage"]["total_tokens"] - 1) // 16 * 16 - 16


async def test_closing_the_connection_frees_the_kv():
    async with client_of(speed=1.0) as client:
        async with client.stream(
            "POST", "/v1/chat/completions", json=chat("[[reply tokens=5000]]", stream=True)
        ) as response:
            async for line in response.aiter_lines():
                if line:
                    break
            assert await metric(client, "vllm:kv_cache_usage_perc") > 0

        async def is_idle() -> bool:
            return await metric(client, "vllm:num_requests_running") == 0

        await until(is_idle)
        assert await metric(client, "vllm:kv_cache_usage_perc") == 0


async def test_a_closed_connection_aborts_an_answer_that_does_not_stream():
    async with client_of(speed=0.1) as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post("/v1/chat/completions", json=chat("[[reply tokens=5000]]"), timeout=0.3)

        async def is_idle() -> bool:
            return await metric(client, "vllm:num_requests_running") == 0

        await until(is_idle)


async def test_the_metrics_page_has_vllms_names():
    async with client_of() as client:
        await client.post("/v1/chat/completions", json=chat("[[reply tokens=7]]"))
        page = (await client.get("/metrics")).text
        assert await metric(client, "vllm:generation_tokens_total") == 7
        assert await metric(client, "vllm:num_requests_waiting") == 0

    for name in (
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:cache_config_info",
        "vllm:nixl_num_kv_expired_reqs_total",
        "emulator:lag_seconds",
    ):
        assert f"\n{name}{{" in page


async def test_a_repeated_prompt_is_reported_as_cached_even_by_an_answer_of_one_token():
    body = {"prompt": "word " * 40, "max_tokens": 1}
    async with client_of(speed=1000.0) as client:
        first, second = [(await client.post("/v1/completions", json=body)).json()["usage"] for _ in range(2)]

    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= 32


async def test_chunks_hold_several_tokens_where_the_engine_is_told():
    async with client_of(stream_interval=8, speed=1000.0) as client:
        chunks = await stream(client, "/v1/completions", {"prompt": "x", "max_tokens": 40, "return_token_ids": True})

    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) <= 40
    assert all(len(chunk["choices"][0]["token_ids"]) >= 8 for chunk in chunks[1:-1])


async def test_scripted_tool_calls_reach_the_client(tmp_path):
    script = tmp_path / "s.jsonl"
    script.write_text('{"match": "find (.*)", "tool_calls": [{"name": "search", "arguments": {"q": "$1"}}]}')
    async with client_of(script=script) as client:
        whole = (await client.post("/v1/chat/completions", json=chat("find cats"))).json()
        chunks = await stream(client, "/v1/chat/completions", chat("find cats"))

    call = whole["choices"][0]["message"]["tool_calls"][0]
    assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "search", "arguments": '{"q": "cats"}'}
    assert chunks[-1]["choices"][0]["delta"]["tool_calls"][0]["function"] == call["function"]
    assert whole["choices"][0]["message"]["content"] is None


async def test_tokenize_and_back():
    async with client_of() as client:
        messages = chat("héllo")["messages"]
        tokens = (await client.post("/tokenize", json={"messages": messages})).json()
        plain = (await client.post("/tokenize", json={"prompt": "abc", "add_special_tokens": False})).json()
        text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()

    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == 131072
    assert text == {"prompt": "<|user|>héllo<|assistant|>"}
    assert plain["count"] == 1


async def test_it_says_what_it_is():
    async with client_of(gpu="a100", served_model="mine", role="prefill") as client:
        assert (await client.get("/health")).status_code == 200
        assert "version" in (await client.get("/version")).json()
        assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["mine"]
        info = (await client.get("/emulator/info")).json()

    assert (info["gpu"], info["model"], info["role"], info["speed"]) == ("a100-80g", "llama-3.1-8b", "prefill", 50.0)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, "JSON object"),
        ("/v1/chat/completions", b'{"model": "gpt-9"}', 404, "gpt-9"),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "' + b"a b " * 99 + b'"}]}',
            400,
            "context",
        ),
        ("/v1/completions", b'{"prompt": "x", "priority": 1}', 400, "Priority"),
        ("/v1/completions", b'{"prompt": "x", "request_id": 7}', 400, "request_id"),
        ("/v1/completions", b'{"prompt": "' + b"x" * 4000 + b'"}', 413, "2048 bytes"),
        ("/v1/completions", b'{"prompt": "x", "kv_transfer_params": {"do_remote_prefill": true}}', 400, "remote_host"),
        ("/tokenize", b"{}", 400, "prompt"),
        ("/detokenize", b'{"tokens": [-1]}', 400, "tokens"),
        ("/emulator/slow", b'{"factor": 2}', 404, "--chaos"),
        ("/v1/embeddings", b"{}", 404, "no such route"),
        ("/emulator/kv/nothing", b"", 404, "nothing"),
    ],
)
async def test_bad_requests_get_one_clear_error_and_leave_the_engine_running(path, body, status, words):
    async with client_of(max_model_len=100, max_body_bytes=2048) as client:
        response = await client.post(path, content=body)

        assert response.status_code == status
        error = response.json()["error"]
        assert words in error["message"]
        assert error["code"] == status
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_chaos_slows_the_engine():
    async with client_of(chaos=True) as client:
        assert (await client.post("/emulator/slow", json={"factor": 4})).json() == {"slowdown": 4.0}
        assert (await client.get("/emulator/info")).json()["slowdown"] == 4.0
        assert (await client.post("/emulator/slow", json={"factor": 0})).status_code == 400


async def test_a_port_in_use_is_said_plainly():
    async with client_of() as client:
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{client.base_url.port}"):
            await serve(EmulatorConfig(port=client.base_url.port))


async def test_stopping_cuts_open_streams_and_ends():
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        async with running(EmulatorConfig(speed=0.1)) as url:
            request = client.build_request("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True})
            response = await client.send(request, stream=True)
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in lines:
                pass
        await response.aclose()
