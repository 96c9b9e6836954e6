"""What a probe finds an engine able to do, what it says is missing, and what makes engines of one KV group."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from agentserve.engines.capabilities import KvDialect, PrioritySign
from agentserve.errors import BadInput, Unavailable
from agentserve.workers.compatibility import MAX_GROUP_CHARS, kv_group
from agentserve.workers.facts import Facts
from agentserve.workers.kinds import Identity, ModelCard
from agentserve.workers.probe import Given, Probe, probe
from agentserve.workers.trials import Skill
from scheduler.events import Role
from tests.integration.worker_parts import FakeEngine, first_listed
from tests.unit.test_workers_discovery import client_of

URL = "http://engine:8000"
ALL_COUNTERS = ("num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens")


async def found(engine: FakeEngine, **options: Any) -> Probe:
    async with client_of(engine) as client:
        return await probe(client, URL, choose=first_listed, **options)


def able(probe: Probe) -> dict[Skill, bool | None]:
    return {skill: finding.found for skill, finding in probe.skills.items()}


async def test_an_engine_with_everything_lacks_nothing() -> None:
    result = await found(FakeEngine(has_kv_transfer=True, counters=dict.fromkeys(ALL_COUNTERS, 0.0)))
    assert able(result) == {**dict.fromkeys(Skill, True), Skill.REASONING: None}
    assert result.capabilities.shortfalls() == ()
    assert result.missing_metrics == ()
    assert (result.capabilities.priority, result.capabilities.kv_dialect) == (
        PrioritySign.LOWER_FIRST,
        KvDialect.NIXL_PULL,
    )


@pytest.mark.parametrize(
    ("lacking", "skills", "told"),
    [
        ({"has_token_ids": False}, {Skill.TOKENS_OUT: False, Skill.TOKENS_IN: None, Skill.CHAT_IDS: False},
         "a running call cannot move"),
        ({"has_priority": False}, {Skill.PRIORITY: False}, "order is kept by holding calls back at the gateway"),
        ({"has_kv_transfer": False}, {Skill.KV_TRANSFER: False}, "prefill and decode cannot be split"),
        ({"has_metrics": False}, {Skill.KV_TRANSFER: None}, "no metrics: load of others is unknown"),
        ({"reports_cached_tokens": False}, {Skill.CACHED_TOKENS: False}, "cached tokens are not reported"),
        ({"has_tool_parser": False}, {Skill.TOOLS: False}, None),
        ({"has_chat": False}, {Skill.CHAT_IDS: None, Skill.TOOLS: None, Skill.GUIDED: True}, None),
    ],
)  # fmt: skip
async def test_what_an_engine_lacks_is_found_and_said(
    lacking: dict[str, bool], skills: dict[Skill, bool | None], told: str | None
) -> None:
    whole = {"has_kv_transfer": True}
    result = await found(FakeEngine(**{**whole, **lacking}))  # type: ignore[arg-type]  # flags of the fake
    expected = {**dict.fromkeys(Skill, True), Skill.REASONING: None, **skills}
    assert able(result) == expected
    shortfalls = result.capabilities.shortfalls()
    if told is None:
        assert shortfalls == ()
    else:
        assert any(told in shortfall for shortfall in shortfalls)


async def test_the_missing_metrics_are_named_exactly() -> None:
    result = await found(FakeEngine(counters={"prompt_tokens": 1, "generation_tokens": 1}))
    assert result.missing_metrics == (
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
    )
    assert result.metrics["running"] == "vllm:num_requests_running"


async def test_a_worker_tries_no_more_than_the_scheduler_must_know() -> None:
    engine = FakeEngine()
    result = await found(engine, thorough=False)
    assert set(result.skills) == {Skill.TOKENS_OUT, Skill.TOKENS_IN, Skill.PRIORITY, Skill.KV_TRANSFER}
    assert engine.completions == 3
    assert engine.priorities == [0, 0, 1]


async def test_what_is_given_is_not_tried() -> None:
    engine = FakeEngine()
    result = await found(engine, thorough=False, given=Given(replay=True, priority=False, kv_transfer=True))
    assert engine.completions == 0
    assert (result.capabilities.can_replay, result.capabilities.priority) == (True, None)
    assert result.kv_group is not None


async def test_a_probe_asks_for_no_kv_since_an_engine_cannot_take_back_what_it_keeps() -> None:
    bodies: list[bytes] = []
    engine = FakeEngine(has_kv_transfer=True)

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        status, body = engine.answer(request.method, request.url.path, json.loads(request.content or b"{}"))
        return httpx.Response(status, content=body)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        assert (await probe(client, URL, choose=first_listed)).kv_group is not None
    assert not any(b"kv_transfer_params" in body for body in bodies)


async def test_a_trial_that_takes_too_long_is_given_up_and_tells_nothing() -> None:
    engine = FakeEngine()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            await asyncio.Event().wait()
        status, body = engine.answer(request.method, request.url.path, {})
        return httpx.Response(status, content=body)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        result = await probe(client, URL, choose=first_listed, timeout_s=0.01)
    tried = set(Skill) - {Skill.KV_TRANSFER, Skill.REASONING}
    assert {skill: result.skills[skill].found for skill in tried} == dict.fromkeys(tried, None)
    assert not result.capabilities.can_replay


async def test_an_answer_without_end_is_cut_off() -> None:
    engine = FakeEngine()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, content=b"x" * (5 * 2**20))
        status, body = engine.answer(request.method, request.url.path, {})
        return httpx.Response(status, content=body)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        result = await probe(client, URL, choose=first_listed)
    assert result.skills[Skill.TOKENS_OUT].found is None


async def test_a_plain_openai_server_is_tried_with_plain_fields_only() -> None:
    engine = FakeEngine(owner="someone", has_metrics=False)
    result = await found(engine)
    assert result.identity.kind == "openai"
    assert not result.capabilities.can_replay
    assert result.capabilities.priority is None
    assert engine.priorities == [0] * engine.completions
    assert result.kv_group is None


async def test_nobody_and_something_else_at_the_url_are_told_apart() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    for answer, said in (
        (refuse, "it does not answer: ConnectError: connection refused"),
        (lambda request: httpx.Response(404), "no OpenAI-compatible server .* /v1/models answered 404"),
        (lambda request: httpx.Response(401), "asks for another key"),
    ):
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
            with pytest.raises(Unavailable, match=said):
                await probe(client, URL, choose=first_listed)


async def test_a_kind_without_an_adapter_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown engine 'tgi'"):
        await found(FakeEngine(), given=Given(kind="tgi"))


async def test_a_server_of_one_phase_is_believed_and_not_made_to_wait_for_its_other_half() -> None:
    told = {"internal_states": [], "version": "0.5.23", "disaggregation_mode": "prefill", "page_size": 64,
            "disaggregation_bootstrap_port": 8998, "enable_priority_scheduling": True, "tool_call_parser": None,
            "reasoning_parser": "qwen3"}  # fmt: skip
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        pages: dict[str, Any] = {"/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]}, "/server_info": told}
        page = pages.get(request.url.path)
        return httpx.Response(404) if page is None else httpx.Response(200, json=page)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        result = await probe(client, URL, choose=first_listed)
    assert not any(request.startswith("POST") for request in asked)
    assert able(result) == {
        Skill.TOKENS_OUT: True,
        Skill.TOKENS_IN: True,
        Skill.PRIORITY: True,
        Skill.KV_TRANSFER: True,
        Skill.TOOLS: False,
        Skill.REASONING: True,
    }
    assert (result.facts.role, result.facts.kv_address) == (Role.PREFILL, "engine:8998")
    assert result.capabilities.priority is PrioritySign.HIGHER_FIRST
    assert result.kv_group == "bootstrap; sglang 0.5.23; m; block 64; cache ?"
    told["schedule_low_priority_values_first"] = True
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        result = await probe(client, URL, choose=first_listed)
    assert result.capabilities.priority is None


VLLM = Identity(kind="vllm", how="", version="0.32.0", models=(ModelCard("llama", "meta-llama/Llama-3.1-8B"),))
SIZES = Facts(block_tokens=16, cache_dtype="auto")


def group(identity: Identity = VLLM, facts: Facts = SIZES, dialect: KvDialect = KvDialect.NIXL_PULL) -> str:
    return kv_group(dialect, identity, identity.names[0], facts)


def test_engines_alike_are_of_one_group_whatever_their_served_names_and_capacity() -> None:
    alias = replace(VLLM, models=(ModelCard("another-name", "meta-llama/Llama-3.1-8B"),))
    assert group() == group(alias, replace(SIZES, kv_capacity_tokens=5, max_num_seqs=7, context_tokens=9))
    assert group() == "nixl pull; vllm 0.32.0; meta-llama/Llama-3.1-8B; block 16; cache auto"


@pytest.mark.parametrize(
    "other",
    [
        group(replace(VLLM, version="0.32.1")),
        group(replace(VLLM, kind="emulator")),
        group(replace(VLLM, models=(ModelCard("llama", "meta-llama/Llama-3.1-70B"),))),
        group(facts=replace(SIZES, block_tokens=32)),
        group(facts=replace(SIZES, cache_dtype="fp8")),
        group(facts=replace(SIZES, parallel={"tp_size": 2})),
        group(facts=replace(SIZES, transfer_mode="push")),
        group(dialect=KvDialect.BOOTSTRAP),
    ],
)
def test_engines_whose_kv_differs_are_of_other_groups(other: str) -> None:
    assert other != group()


def test_a_group_that_would_be_too_long_is_told_by_its_digest() -> None:
    long = replace(VLLM, models=(ModelCard("llama", "/" + "x" * 400),))
    longer = replace(VLLM, models=(ModelCard("llama", "/" + "x" * 401),))
    assert len(group(long)) <= MAX_GROUP_CHARS
    assert group(long) != group(longer)
