"""llama.cpp's adapter against a server that answers as its README says: rendering, ids, gaps, moves, refusals."""

from contextlib import asynccontextmanager

import pytest

from agentserve.engines import open_adapter
from agentserve.engines.http import EngineRefused, EngineUnreachable
from agentserve.errors import EngineFailed
from tests.contract import words
from tests.contract.llamacpp_server import LlamacppServer
from tests.contract.serving import CHAT, COMPLETIONS, call, cut_and_go_on, deltas, joined, play, serving, until

# The prompt's first token is the one that the server adds to any text.
TEXT_OF_PROMPT = words.text_of(words.PROMPT[1:])
BODY = {"prompt": TEXT_OF_PROMPT, "max_tokens": 40}
SAYS = {"messages": [{"role": "user", "content": TEXT_OF_PROMPT}]}
ROUTES = pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, BODY), (CHAT, SAYS)])
KNOWN_IDS = 11
"""The script's tokens up to its first character of three tokens, whose ids cannot be known."""


@asynccontextmanager
async def engine(server: LlamacppServer, **options):
    async with serving(server.app()) as url:
        adapter = open_adapter("llamacpp", url, **options)
        try:
            yield adapter
        finally:
            await adapter.close()


@ROUTES
async def test_a_plain_call_is_run_on_the_engines_own_rendering(path: str, body: dict) -> None:
    server = LlamacppServer()
    async with engine(server) as adapter:
        got = await deltas(adapter, call(path, body))
    assert "".join(delta.text for delta in got) == words.TEXT
    assert got[0].prompt_ids == words.PROMPT
    assert [delta.prompt_ids for delta in got[1:]] == [None] * (len(got) - 1)
    assert got[-1].finish_reason == "stop"
    assert got[-1].usage == {
        "prompt_tokens": 4, "completion_tokens": 33, "total_tokens": 37, "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip
    asked = next(sent for at, sent in server.seen.requests if at == "/tokenize")
    assert asked == {"content": TEXT_OF_PROMPT, "add_special": True, "parse_special": True}
    shown = {"delta": {"content": "the"}} if path == CHAT else {"text": "the"}
    assert got[0].choice == {"index": 0, "finish_reason": None, "logprobs": None, **shown}


async def test_the_ids_of_a_character_of_two_tokens_are_found_again() -> None:
    async with engine(LlamacppServer()) as adapter:
        got = await deltas(adapter, call(COMPLETIONS, BODY | {"max_tokens": KNOWN_IDS - 3}))
    assert [(delta.text, delta.token_ids) for delta in got] == [
        ("the", (1,)), (" caf", (2,)), ("é", (3, 4)), (", ", (5,)), ("你", (6, 7)), (" ok", (15,)), ("", ()),
    ]  # fmt: skip
    assert got[-1].finish_reason == "length"


async def test_a_character_of_three_tokens_has_no_ids_and_keeps_the_call_where_it_is() -> None:
    async with engine(LlamacppServer()) as adapter:
        stream = joined(COMPLETIONS, BODY)
        text, was_left = await play(adapter, stream, call(COMPLETIONS, BODY), leave_after=7)
    assert was_left
    assert text.endswith(" 😀")
    assert not stream.can_go_on


@ROUTES
async def test_a_call_cut_anywhere_before_that_goes_on_exactly(path: str, body: dict) -> None:
    async with engine(LlamacppServer()) as adapter:
        for leave_after in range(1, 7):
            text, stream = await cut_and_go_on(adapter, adapter, path, body, leave_after)
            assert text == words.TEXT
            assert stream.usage()["prompt_tokens"] == 4


async def test_a_replay_from_every_cut_has_the_rest() -> None:
    # The gateway cuts at whole characters only: of a broken one, the engine would show the rest as broken.
    cuts = [at for at in range(len(words.OUTPUT)) if not words.text_of(words.OUTPUT[:at]).endswith("\ufffd")]
    async with engine(LlamacppServer()) as adapter:
        for done in cuts:
            replay = call(CHAT, SAYS, replay_ids=(*words.PROMPT, *words.OUTPUT[:done]), max_tokens=50)
            got = await deltas(adapter, replay)
            assert "".join(delta.text for delta in got) == words.text_of(words.OUTPUT[done:])


async def test_a_replay_sends_what_samples_and_nothing_else() -> None:
    server = LlamacppServer()
    body = SAYS | {
        "temperature": 0, "seed": 7, "repetition_penalty": 1.1, "min_tokens": 3, "max_tokens": 9, "id_slot": 1,
        "agentserve": {}, "priority": 3, "stream_options": {"include_usage": True}, "chat_template_kwargs": {"a": 1},
        "a_field_of_tomorrow": 1,
    }  # fmt: skip
    async with engine(server) as adapter:
        await deltas(adapter, call(CHAT, body, replay_ids=words.PROMPT, priority=5))
    assert server.seen.requests[0] == (
        "/completion",
        {
            "model": "m", "temperature": 0, "seed": 7, "repeat_penalty": 1.1, "a_field_of_tomorrow": 1,
            "prompt": list(words.PROMPT), "n_predict": -1, "stream": True, "return_tokens": True,
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        (CHAT, {"tools": [{"type": "function"}]}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (CHAT, {"logprobs": True}),
        (CHAT, {"n": 2}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (COMPLETIONS, {"grammar": "root ::= [a-z]"}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"stop": ["x"]}),
    ],
)
async def test_what_the_engine_parses_or_constrains_is_left_to_its_openai_route(path: str, extra: dict) -> None:
    server = LlamacppServer()
    body = (SAYS if path == CHAT else BODY) | extra | {"agentserve": {}, "id_slot": 1}
    async with engine(server) as adapter:
        got = await deltas(adapter, call(path, body))
    assert server.seen.paths() == [path]
    assert not {"agentserve", "id_slot"} & set(server.seen.body(path))
    assert [delta.token_ids for delta in got] == [()] * 3
    assert got[-1].usage is not None


async def test_chats_on_a_template_with_reasoning_are_left_to_the_chat_route() -> None:
    server = LlamacppServer(template=TEXT_OF_PROMPT + "<think>")
    async with engine(server) as adapter:
        got = await deltas(adapter, call(CHAT, SAYS))
    assert server.seen.paths() == [CHAT]
    assert got[0].choice is not None
    assert got[0].choice["delta"] == {"reasoning_content": "hm"}


async def test_a_malformed_chat_is_refused_in_the_engines_words() -> None:
    async with engine(LlamacppServer()) as adapter:
        with pytest.raises(EngineRefused, match="Expected 'messages' to be an array"):
            await deltas(adapter, call(CHAT, {"messages": "x"}))
        with pytest.raises(EngineRefused, match="type must be"):
            await deltas(adapter, call(COMPLETIONS, BODY | {"temperature": "hot"}))


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (429, True), (503, True)])
@ROUTES
async def test_a_status_says_whether_another_instance_may_serve(
    path: str, body: dict, status: int, retryable: bool
) -> None:
    async with engine(LlamacppServer(refuse_with=status)) as adapter:
        with pytest.raises(EngineFailed, match="refused") as caught:
            await deltas(adapter, call(path, body))
    assert caught.value.retryable is retryable


async def test_an_error_or_an_end_in_mid_stream_is_a_failure() -> None:
    async with engine(LlamacppServer(break_after=3)) as adapter:
        with pytest.raises(EngineFailed, match="Compute error"):
            await deltas(adapter, call(COMPLETIONS, BODY))
    async with engine(LlamacppServer(stop_after=3)) as adapter:
        with pytest.raises(EngineUnreachable, match="before its finish"):
            await deltas(adapter, call(COMPLETIONS, BODY))


async def test_the_server_sees_a_client_that_leaves() -> None:
    server = LlamacppServer(hang_after=2)
    async with engine(server) as adapter:
        await play(adapter, joined(CHAT, SAYS), call(CHAT, SAYS), leave_after=1)
        await until(lambda: server.seen.left == ["/completion"])


async def test_it_is_healthy_once_its_model_is_loaded() -> None:
    server = LlamacppServer(is_loading=True)
    async with engine(server) as adapter:
        assert not await adapter.is_healthy()
        server.is_loading = False
        assert await adapter.is_healthy()


async def test_there_are_no_split_calls() -> None:
    async with engine(LlamacppServer()) as adapter:
        assert adapter.rendezvous() is None
        assert adapter.capabilities.kv_dialect is None
        with pytest.raises(EngineFailed):
            await adapter.prefill(call(COMPLETIONS, BODY))
        with pytest.raises(EngineFailed):
            await deltas(adapter, call(COMPLETIONS, BODY, handoff={"room": 1}))
