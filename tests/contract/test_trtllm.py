"""TensorRT-LLM's adapter against a server written from its protocol, which refuses every field it does not list."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agentserve.engines import open_adapter
from agentserve.engines.capabilities import KvDialect, PrioritySign
from agentserve.engines.http import EngineRefused
from agentserve.errors import EngineFailed
from tests.contract import words
from tests.contract.serving import CHAT, COMPLETIONS, call, deltas, joined, play, serving, until
from tests.contract.trtllm_server import MIN_GLOBAL_ID, TrtllmServer

BODY = {"prompt": list(words.PROMPT), "max_tokens": 40}
SAYS = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES = pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, BODY), (CHAT, SAYS)])


@asynccontextmanager
async def engine(server: TrtllmServer, **options):
    async with serving(server.app()) as url:
        adapter = open_adapter("trtllm", url, **options)
        try:
            yield adapter
        finally:
            await adapter.close()


@ROUTES
async def test_a_stream_has_the_scripts_text_its_finish_and_usage(path: str, body: dict) -> None:
    async with engine(TrtllmServer()) as adapter:
        got = await deltas(adapter, call(path, body))
    assert "".join(delta.text for delta in got) == words.TEXT
    assert [delta.finish_reason for delta in got if delta.finish_reason] == ["stop"]
    assert got[-1].usage == {
        "prompt_tokens": 4, "completion_tokens": 33, "total_tokens": 37, "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip


@ROUTES
async def test_a_running_call_has_no_ids_and_stays(path: str, body: dict) -> None:
    async with engine(TrtllmServer()) as adapter:
        stream = joined(path, body)
        await play(adapter, stream, call(path, body), leave_after=4)
        assert not adapter.capabilities.can_replay
    assert not stream.can_go_on


async def test_a_prompt_of_ids_goes_on_from_any_cut() -> None:
    async with engine(TrtllmServer()) as adapter:
        for done in (0, 1, 4, 7, 20, 31):
            replay = call(CHAT, SAYS, replay_ids=(*words.PROMPT, *words.OUTPUT[:done]), max_tokens=50)
            got = await deltas(adapter, replay)
            assert "".join(delta.text for delta in got) == words.text_of(words.OUTPUT[done:])


@ROUTES
async def test_fields_that_it_does_not_know_and_nulls_are_stripped(path: str, body: dict) -> None:
    server = TrtllmServer()
    extra = {
        "agentserve": {}, "return_token_ids": True, "a_field_of_tomorrow": 1, "store": True, "metadata": {"a": "b"},
        "request_id": "x", "rid": "x", "kv_transfer_params": {}, "priority": 5, "top_k": None, "stop": None, "n": None,
        "temperature": 0.5, "stream_options": {"include_usage": True, "include_obfuscation": False},
        "disaggregated_params": {"request_type": "context_only"}, "prompt_token_ids": [1], "conversation_params": {},
    }  # fmt: skip
    async with engine(server) as adapter:
        await deltas(adapter, call(path, body | extra, priority=4))
    assert server.seen.body(path) == body | {
        "model": "m", "temperature": 0.5, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def test_both_names_of_the_budget_are_sent_as_one() -> None:
    server = TrtllmServer()
    async with engine(server) as adapter:
        got = await deltas(adapter, call(CHAT, SAYS | {"max_completion_tokens": 3, "max_tokens": 9}))
    assert got[-2].finish_reason == "length"
    assert server.seen.body(CHAT)["max_tokens"] == 3


async def test_more_urgent_is_higher_on_the_wire_within_its_bounds() -> None:
    server = TrtllmServer()
    ours = (-(2**31), -5, 0, 1_000, 1_000_000, 2**31 - 1)
    async with engine(server, supports_priority=True) as adapter:
        for priority in ours:
            await deltas(adapter, call(COMPLETIONS, BODY, priority=priority))
        assert adapter.capabilities.priority is PrioritySign.HIGHER_FIRST
    sent = [body["priority"] for _, body in server.seen.requests]
    assert sent == sorted(sent, reverse=True)
    assert len(set(sent[2:])) == 4
    assert sent[0] == 1.0
    async with engine(server) as adapter:
        await deltas(adapter, call(COMPLETIONS, BODY, priority=3))
    assert "priority" not in server.seen.body(COMPLETIONS)


@ROUTES
async def test_a_split_call_is_a_context_leg_then_a_generation_leg_with_what_came_back(path: str, body: dict) -> None:
    source = TrtllmServer(role="context")
    target = TrtllmServer(role="generation", peer=source)
    one = call(path, body | {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}})
    async with engine(source) as prefill, engine(target) as decode:
        assert prefill.rendezvous() is None
        handoff = await prefill.prefill(one)
        got = await deltas(decode, replace(one, handoff=handoff))
        assert decode.capabilities.kv_dialect is KvDialect.DISAGGREGATED_PARAMS
    assert "".join(delta.text for delta in got) == words.TEXT
    assert source.kept == {}
    context = source.seen.body(path)
    call_id = context["disaggregated_params"].pop("disagg_request_id")
    assert MIN_GLOBAL_ID <= call_id < 2**63
    sent = body | {"model": "m", "temperature": 0}
    assert context == sent | {"stream": False, "disaggregated_params": {"request_type": "context_only"}}
    prompt = {"prompt_token_ids": list(words.PROMPT)} if path == CHAT else {"prompt": list(words.PROMPT)}
    assert target.seen.body(path) == sent | prompt | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "disaggregated_params": {
            "request_type": "generation_only", "disagg_request_id": call_id, "first_gen_tokens": [1],
            "ctx_request_id": 77, "encoded_opaque_state": "opaque", "return_prompt_token_ids_b64": False,
        },
    }  # fmt: skip


async def test_an_answer_that_ended_with_its_first_token_needs_no_generation_leg() -> None:
    source, target = TrtllmServer(role="context"), TrtllmServer(role="generation")
    one = call(COMPLETIONS, {"prompt": [*words.PROMPT, *words.OUTPUT]})
    async with engine(source) as prefill, engine(target) as decode:
        got = await deltas(decode, replace(one, handoff=await prefill.prefill(one)))
    assert [(delta.text, delta.finish_reason) for delta in got] == [("", "stop")]
    assert got[0].usage is not None
    assert target.seen.requests == []
    assert source.kept == {}


async def test_a_generation_leg_without_its_kv_fails() -> None:
    source, target = TrtllmServer(), TrtllmServer(peer=TrtllmServer())
    async with engine(source) as prefill, engine(target) as decode:
        handoff = await prefill.prefill(call(COMPLETIONS, BODY))
        with pytest.raises(EngineRefused, match="no KV"):
            await deltas(decode, replace(call(COMPLETIONS, BODY), handoff=handoff))


@ROUTES
async def test_a_call_that_the_engine_gives_up_is_a_failure_and_never_an_end(path: str, body: dict) -> None:
    async with engine(TrtllmServer(give_up_after=3)) as adapter:
        with pytest.raises(EngineFailed, match="gave the call up") as caught:
            await deltas(adapter, call(path, body))
    assert caught.value.retryable


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (429, True), (503, True)])
async def test_a_status_says_whether_another_instance_may_serve(status: int, retryable: bool) -> None:
    async with engine(TrtllmServer(refuse_with=status)) as adapter:
        for attempt in (deltas(adapter, call(COMPLETIONS, BODY)), adapter.prefill(call(COMPLETIONS, BODY))):
            with pytest.raises(EngineFailed, match="refused") as caught:
                await attempt
            assert caught.value.retryable is retryable
            assert isinstance(caught.value, EngineRefused) is (status == 400)


async def test_what_it_finds_wrong_is_told_in_its_words() -> None:
    async with engine(TrtllmServer()) as adapter:
        with pytest.raises(EngineRefused, match="temperature: Input should be"):
            await deltas(adapter, call(COMPLETIONS, BODY | {"temperature": "hot"}))


async def test_the_server_sees_a_client_that_leaves() -> None:
    server = TrtllmServer(hang_after=2)
    async with engine(server) as adapter:
        await play(adapter, joined(CHAT, SAYS), call(CHAT, SAYS), leave_after=2)
        await until(lambda: server.seen.left == [CHAT])


async def test_health_is_its_own() -> None:
    server = TrtllmServer()
    async with engine(server) as adapter:
        assert await adapter.is_healthy()
        server.is_up = False
        assert not await adapter.is_healthy()
