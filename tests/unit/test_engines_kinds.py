"""What each kind of engine is sent and declares: signs of priority, rooms, malformed chunks, the table in the docs."""

from pathlib import Path

import orjson
import pytest

from agentserve.engines import KINDS, open_adapter
from agentserve.engines.adapter import Delta, EngineCall
from agentserve.engines.capabilities import Capabilities, KvDialect, PrioritySign
from agentserve.engines.llamacpp import LLAMACPP
from agentserve.engines.llamacpp_bodies import completion_body, on_ids, parses_reasoning
from agentserve.engines.llamacpp_chunks import CompletionChunks
from agentserve.engines.openai import OPENAI
from agentserve.engines.sglang import SGLANG, SglangAdapter
from agentserve.engines.sglang_bodies import sglang_body
from agentserve.engines.sglang_chunks import GenerateChunks, whole_characters
from agentserve.engines.trtllm import TRTLLM
from agentserve.engines.trtllm_bodies import KNOWN, context_body, engine_priority, trtllm_body
from agentserve.engines.vllm import VLLM
from agentserve.errors import BadInput, EngineFailed

DOC = Path(__file__).parents[2] / "docs" / "engines.md"
ALL = (VLLM, SGLANG, TRTLLM, LLAMACPP, OPENAI)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def call(path: str = COMPLETIONS, body: dict | None = None, **how) -> EngineCall:
    return EngineCall(path=path, body={"model": "m", "prompt": [1]} | (body or {}), request_id="r", **how)


def row(one: Capabilities) -> str:
    """A line of the docs' table."""

    def said(value: bool) -> str:
        return "yes" if value else "no"

    cells = (
        one.engine, said(one.tokens_in), said(one.tokens_out), said(one.can_replay),
        one.priority.value if one.priority is not None else "no", one.kv_dialect.value if one.kv_dialect else "no",
        said(one.reports_cached_tokens), said(one.guided_decoding), str(len(one.metrics)) if one.metrics else "no",
        "passed on" if one.accepts_unknown_fields else "stripped", one.abort,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.engine)
def test_the_docs_table_is_what_the_engines_declare(one: Capabilities) -> None:
    assert row(one) in DOC.read_text().splitlines()


def test_the_docs_name_the_engines_that_were_not_run() -> None:
    lines = [line for line in DOC.read_text().splitlines() if "contract-tested, not run" in line]
    assert {one.engine for one in ALL if not one.is_verified} == {"sglang", "trtllm"}
    assert any("SGLang" in line and "TensorRT-LLM" in line for line in lines)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_opens_and_declares_itself(kind: str) -> None:
    adapter = open_adapter(kind, "http://127.0.0.1:1")
    assert adapter.capabilities.priority is None, "without being told that it has priorities"
    assert not await adapter.is_healthy()
    await adapter.close()


def test_priorities_keep_their_order_in_every_engines_sign() -> None:
    ours = (-(2**31), -7, 0, 7, 100_000, 2**31 - 1)
    higher_first = [PrioritySign.HIGHER_FIRST.to_engine(one) for one in ours]
    assert higher_first == sorted(higher_first, reverse=True)
    assert [sglang_body(call(priority=one), priority=True)["priority"] for one in ours] == higher_first
    bounded = [engine_priority(one) for one in ours]
    assert bounded == sorted(bounded, reverse=True)
    assert all(0.0 <= one <= 1.0 for one in bounded)


def test_no_leg_ever_carries_a_room_or_an_id_that_a_client_chose() -> None:
    theirs = {"bootstrap_room": 1, "bootstrap_port": 1, "bootstrap_host": "x", "rid": "y", "disaggregated_params": {}}
    assert not set(theirs) & (set(sglang_body(call(body=theirs), priority=False)) - {"rid", "disaggregated_params"})
    assert sglang_body(call(body=theirs), priority=False)["rid"] == "r"
    first, second = (context_body(call(body=theirs), priority=False)["disaggregated_params"] for _ in range(2))
    assert first["disagg_request_id"] != second["disagg_request_id"]
    assert 2**42 <= first["disagg_request_id"] < 2**63


@pytest.mark.parametrize("address", ["host", "host:", ":5", "host:port"])
def test_a_bootstrap_address_that_is_none_stops_with_its_text(address: str) -> None:
    with pytest.raises(BadInput, match="host:port"):
        open_adapter("sglang", "http://a:1", kv_address=address)


async def test_a_bootstrap_address_may_be_ipv6() -> None:
    adapter = open_adapter("sglang", "http://a:1", kv_address="[::1]:9")
    assert isinstance(adapter, SglangAdapter)
    handoff = adapter.rendezvous()
    assert (handoff["bootstrap_host"], handoff["bootstrap_port"]) == ("::1", 9)
    await adapter.close()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_trtllm_gets_nothing_that_its_protocol_does_not_list(path: str) -> None:
    theirs = dict.fromkeys((*KNOWN[path], "best_effort", "guided_json", "vllm_xargs"), 1)
    sent = trtllm_body(call(path, theirs, priority=1), priority=True)
    assert set(sent) == {*KNOWN[path], "stream", "stream_options", "priority"}


def test_llamacpp_makes_as_many_tokens_as_openai_would() -> None:
    assert completion_body(call(COMPLETIONS), [1])["n_predict"] == 16
    assert completion_body(call(COMPLETIONS, {"max_tokens": None}), [1])["n_predict"] == -1
    assert completion_body(call(CHAT), [1])["n_predict"] == -1
    assert completion_body(call(CHAT, {"max_tokens": 5, "max_completion_tokens": 3}), [1])["n_predict"] == 3
    assert completion_body(call(replay_ids=(1,), max_tokens=7), [1])["n_predict"] == 7


def test_llamacpp_runs_plain_prompts_on_ids_only() -> None:
    assert on_ids(call(body={"prompt": "a"}))
    assert on_ids(call(body={"response_format": {"type": "text"}, "n": 1}))
    for body in ({"prompt": [1, "a"]}, {"prompt": []}, {"n": 2}, {"stop": "x"}, {"response_format": {"type": "json"}}):
        assert not on_ids(call(body=body))


@pytest.mark.parametrize(
    ("template", "parsed"),
    [("{{ messages }}", False), ("{{ '<think>' }}", True), ("{{ m.reasoning_content }}", True), ("<|channel|>", True)],
)
def test_llamacpp_leaves_templates_with_reasoning_to_the_engine(template: str, parsed: bool) -> None:
    assert parses_reasoning(template) is parsed


@pytest.mark.parametrize(
    "chunk",
    [
        "nonsense", "[]", "{}", '{"text": "a", "output_ids": [1], "meta_info": {}}', '{"error": "x"}', '{"content": 1}',
        '{"meta_info": {"finish_reason": 3}}', '{"content": "a", "tokens": [1], "tokens_predicted": 1, "stop": true}',
    ],
)  # fmt: skip
def test_a_malformed_chunk_is_a_failure_of_the_engine(chunk: str) -> None:
    with pytest.raises(EngineFailed):
        GenerateChunks(is_chat=False).parse(chunk.encode())
    with pytest.raises(EngineFailed):
        CompletionChunks(is_chat=False, prompt_ids=None).read(chunk.encode())


def test_an_error_of_sglang_that_is_the_clients_is_not_tried_elsewhere() -> None:
    for code, retryable in ((400, False), (429, True), (503, True)):
        with pytest.raises(EngineFailed) as caught:
            GenerateChunks(is_chat=False).parse(orjson.dumps({"error": {"message": "no", "code": code}}))
        assert caught.value.retryable is retryable


async def test_text_held_back_comes_out_whole_even_if_the_stream_just_ends() -> None:
    async def made():
        yield Delta(text=" ", token_ids=(1,), choice={"text": " "}, prompt_ids=(9,))
        yield Delta(text="", token_ids=(2,), choice={"text": ""})

    async def decode(ids):
        return "\ufffd"

    got = [delta async for delta in whole_characters(made(), decode)]
    assert got == [Delta(text=" ", token_ids=(1, 2), choice={"text": " "}, prompt_ids=(9,))]


def test_dialects_are_three_and_differ() -> None:
    assert {one.kv_dialect for one in ALL if one.kv_dialect} == set(KvDialect)
