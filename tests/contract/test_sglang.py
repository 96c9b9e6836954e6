"""SGLang's adapter against a server written from its protocol: streams, replays, legs, priorities, refusals."""

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from agentserve.engines import open_adapter
from agentserve.engines.capabilities import KvDialect, PrioritySign
from agentserve.engines.http import EngineRefused, EngineUnreachable
from agentserve.errors import EngineFailed
from tests.contract import words
from tests.contract.serving import CHAT, COMPLETIONS, call, cut_and_go_on, deltas, joined, play, serving, until
from tests.contract.sglang_server import SglangServer

BODY = {"prompt": list(words.PROMPT), "max_tokens": 40}
SAYS = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def engine(server: SglangServer, **options):
    async with serving(server.app()) as url:
        adapter = open_adapter("sglang", url, **options)
        try:
            yield adapter
        finally:
            await adapter.close()


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_a_completion_has_the_scripts_text_and_ids(size: int) -> None:
    server = SglangServer(tokens_per_chunk=size)
    async with engine(server) as adapter:
        got = await deltas(adapter, call(COMPLETIONS, BODY))
    ids = [one for delta in got for one in delta.token_ids]
    assert "".join(delta.text for delta in got) == words.TEXT
    assert ids == [*words.OUTPUT, words.END]
    assert got[0].prompt_ids == words.PROMPT
    assert [delta.finish_reason for delta in got if delta.finish_reason] == ["stop"]
    assert got[-1].usage == {"prompt_tokens": 4, "completion_tokens": 33, "total_tokens": 37}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("incremental", [False, True])
async def test_a_replay_has_the_rest_of_text_and_ids(incremental: bool, size: int) -> None:
    server = SglangServer(incremental=incremental, tokens_per_chunk=size)
    replay = call(CHAT, SAYS, replay_ids=(*words.PROMPT, *words.OUTPUT[:5]), max_tokens=20)
    async with engine(server) as adapter:
        got = await deltas(adapter, replay)
    assert "".join(delta.text for delta in got) == words.text_of(words.OUTPUT[5:25])
    assert [one for delta in got for one in delta.token_ids] == list(words.OUTPUT[5:25])
    assert got[-1].finish_reason == "length"
    assert got[-1].usage == {
        "prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29, "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip
    assert got[0].choice == {"index": 0, "finish_reason": None, "logprobs": None, "delta": {"content": got[0].text}}


async def test_every_delta_with_text_ends_with_a_whole_character() -> None:
    async with engine(SglangServer()) as adapter:
        got = await deltas(adapter, call(COMPLETIONS, BODY))
    for count in range(len(got)):
        if got[count].text and not got[count].finish_reason:
            ids = [one for delta in got[: count + 1] for one in delta.token_ids]
            assert words.text_of(ids) == "".join(delta.text for delta in got[: count + 1])


async def test_lasting_doubt_is_settled_by_asking_the_engine_now_and_then() -> None:
    server = SglangServer()
    async with engine(server) as adapter:
        await deltas(adapter, call(COMPLETIONS, BODY))
    assert 0 < server.detokenized < 4


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("size", [1, 3])
async def test_a_call_cut_anywhere_goes_on_exactly(incremental: bool, size: int) -> None:
    server = SglangServer(incremental=incremental, tokens_per_chunk=size)
    async with engine(server) as adapter:
        for leave_after in range(1, 34 // size + 2):
            text, stream = await cut_and_go_on(adapter, adapter, COMPLETIONS, BODY, leave_after)
            assert text == words.TEXT, leave_after
            assert stream.usage()["completion_tokens"] == len(words.OUTPUT) + 1


async def test_a_chat_that_streams_is_served_without_ids_and_stays() -> None:
    async with engine(SglangServer()) as adapter:
        stream = joined(CHAT, SAYS)
        text, _ = await play(adapter, stream, call(CHAT, SAYS | {"return_token_ids": True}))
    assert text == words.TEXT
    assert not stream.can_go_on


async def test_a_replay_sends_exactly_what_generate_takes() -> None:
    server = SglangServer()
    body = {
        "temperature": 0.5,
        "seed": 7,
        "min_tokens": 3,
        "stop": ["x"],
        "user": "u",
        "cache_salt": "s",
        "top_p": None,
    }
    replay = call(COMPLETIONS, body, replay_ids=words.PROMPT, min_tokens=2, priority=5)
    async with engine(server, supports_priority=True) as adapter:
        await deltas(adapter, replay)
    assert server.seen.requests == [
        (
            "/generate",
            {
                "input_ids": list(words.PROMPT),
                "sampling_params": {
                    "temperature": 0.5, "sampling_seed": 7, "max_new_tokens": None, "min_new_tokens": 2,
                },
                "cache_salt": "s", "stream": True, "rid": "call-1", "priority": -5,
            },
        )
    ]  # fmt: skip


async def test_fields_by_which_a_client_could_touch_other_calls_do_not_reach_the_engine() -> None:
    server = SglangServer()
    theirs = {
        "rid": "another", "bootstrap_room": 1, "bootstrap_host": "evil", "priority": 9, "agentserve": {},
        "kv_hints": {}, "session_params": {"id": "s"}, "routed_dp_rank": 3, "a_field_of_tomorrow": 1,
    }  # fmt: skip
    async with engine(server) as adapter:
        await deltas(adapter, call(COMPLETIONS, BODY | theirs))
    body = server.seen.body(COMPLETIONS)
    assert body["rid"] == "call-1"
    assert set(body) == {
        *BODY, "model", "stream", "stream_options", "rid", "return_token_ids", "a_field_of_tomorrow",
    }  # fmt: skip


@pytest.mark.parametrize("field", ["regex", "lora_path", "stop_regex"])
async def test_what_a_replay_could_not_carry_on_keeps_the_call_where_it_is(field: str) -> None:
    server = SglangServer()
    async with engine(server) as adapter:
        stream = joined(COMPLETIONS, BODY)
        await play(adapter, stream, call(COMPLETIONS, BODY | {field: "x"}))
    assert "return_token_ids" not in server.seen.body(COMPLETIONS)
    assert not stream.can_go_on


async def test_more_urgent_is_higher_on_the_wire_and_absent_without_priority_scheduling() -> None:
    server = SglangServer()
    async with engine(server, supports_priority=True) as adapter:
        for priority in (-3, 0, 3):
            await deltas(adapter, call(COMPLETIONS, BODY, priority=priority))
        assert adapter.capabilities.priority is PrioritySign.HIGHER_FIRST
    assert [body["priority"] for _, body in server.seen.requests] == [3, 0, -3]
    async with engine(server) as adapter:
        await deltas(adapter, call(COMPLETIONS, BODY, priority=3))
        assert adapter.capabilities.priority is None
    assert "priority" not in server.seen.body(COMPLETIONS)


@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, BODY), (CHAT, SAYS)])
async def test_both_legs_get_the_same_body_and_meet_in_a_room_of_ours(path: str, body: dict) -> None:
    source, target = SglangServer(role="prefill"), SglangServer(role="decode")
    async with engine(source, kv_address="10.0.0.7:9001") as prefill, engine(target) as decode:
        handoff = prefill.rendezvous()
        split = replace(call(path, body | {"bootstrap_room": 5}), handoff=handoff)
        gave, got = await asyncio.gather(prefill.prefill(split), deltas(decode, split))
        assert prefill.capabilities.kv_dialect is KvDialect.BOOTSTRAP
        assert prefill.rendezvous()["bootstrap_room"] != handoff["bootstrap_room"]
    assert gave == handoff
    assert "".join(delta.text for delta in got) == words.TEXT
    assert source.seen.requests == target.seen.requests
    assert source.seen.body(path) | handoff == source.seen.body(path)
    assert (handoff["bootstrap_host"], handoff["bootstrap_port"]) == ("10.0.0.7", 9001)
    assert 0 < handoff["bootstrap_room"] < 2**63


async def test_without_an_announced_address_the_bootstrap_server_is_on_sglangs_default_port() -> None:
    adapter = open_adapter("sglang", "http://gpu-1:30000")
    handoff = adapter.rendezvous()
    assert handoff is not None
    assert (handoff["bootstrap_host"], handoff["bootstrap_port"]) == ("gpu-1", 8998)
    await adapter.close()


async def test_a_prefill_leg_that_aborts_fails_and_one_that_is_left_is_aborted() -> None:
    broken = SglangServer(role="prefill", abort_after=1)
    async with engine(broken) as adapter:
        with pytest.raises(EngineFailed, match="aborted the call"):
            await adapter.prefill(replace(call(COMPLETIONS, BODY), handoff=adapter.rendezvous()))
    stuck = SglangServer(role="prefill", hang_after=0)
    async with engine(stuck) as adapter:
        leg = asyncio.create_task(adapter.prefill(replace(call(COMPLETIONS, BODY), handoff=adapter.rendezvous())))
        await until(lambda: bool(stuck.seen.requests))
        leg.cancel()
        await asyncio.wait([leg])
        await until(lambda: stuck.seen.left == ["call-1"])


@pytest.mark.parametrize(
    ("reason", "retryable"),
    [
        ({"type": "abort", "message": "out of memory", "status_code": 500}, True),
        ({"type": "abort", "message": "out of memory"}, True),
        ({"type": "abort", "message": "out of memory", "status_code": 400}, False),
    ],
)
async def test_an_abort_in_mid_stream_is_a_failure_and_never_an_end(reason: dict, retryable: bool) -> None:
    async with engine(SglangServer(abort_after=3, abort=reason)) as adapter:
        with pytest.raises(EngineFailed, match=re.escape("out of memory")) as caught:
            await deltas(adapter, call(COMPLETIONS, BODY, replay_ids=words.PROMPT, max_tokens=9))
        assert caught.value.retryable is retryable
        with pytest.raises(EngineFailed):
            await deltas(adapter, call(COMPLETIONS, BODY))


@pytest.mark.parametrize(("status", "kind", "retryable"), [(400, EngineRefused, False), (429, EngineFailed, True),
                                                           (503, EngineFailed, True)])  # fmt: skip
async def test_a_status_says_whether_another_instance_may_serve(status: int, kind: type, retryable: bool) -> None:
    async with engine(SglangServer(refuse_with=status)) as adapter:
        with pytest.raises(kind, match="refused") as caught:
            await deltas(adapter, call(COMPLETIONS, BODY))
    assert caught.value.retryable is retryable


async def test_the_server_sees_a_client_that_leaves() -> None:
    server = SglangServer(hang_after=2)
    async with engine(server) as adapter:
        for one in (call(COMPLETIONS, BODY), call(CHAT, SAYS, replay_ids=words.PROMPT, request_id="call-2")):
            await play(adapter, joined(COMPLETIONS, BODY), one, leave_after=1)
        await until(lambda: server.seen.left == ["call-1", "call-2"])


async def test_health_is_its_own_readiness() -> None:
    server = SglangServer()
    async with engine(server) as adapter:
        assert await adapter.is_healthy()
        server.is_ready = False
        assert not await adapter.is_healthy()
    unreachable = open_adapter("sglang", "http://127.0.0.1:1")
    assert not await unreachable.is_healthy()
    with pytest.raises(EngineUnreachable):
        await deltas(unreachable, call(COMPLETIONS, BODY))
    await unreachable.close()
