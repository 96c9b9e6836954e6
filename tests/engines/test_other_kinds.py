"""Real engines that are not vLLM: llama.cpp moves calls and is kept in order by us; a plain server does what it can."""

import asyncio
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from agentserve.headers import REQUEST_ID, RUN_ID
from tests.e2e.live import agentserve
from tests.engines.conftest import Pair
from tests.engines.live import gateway_process
from tests.engines.servers import MODEL, EngineServer, sample
from tests.engines.steering import Answer, Plan, ask, steered
from tests.integration.gateway_parts import chunks, said, until

CUT_CALLS: Final = 40
_WORDS: Final = (
    "plan",
    "call",
    "tools",
    "größe",
    "où",
    "敏捷的狐狸",
    "быстрая",
    "лиса",
    "🙂🚀",
    "deadline",
    "piñas",
    '{"a":',
)
_QUESTION: Final = ({"role": "user", "content": "Which GPU should decode?"},)


def drawn(number: int) -> tuple[dict[str, Any], Plan]:
    """One greedy request and after how many tokens it moves, once or to and fro."""
    draw = random.Random(number)
    words = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(3, 80)))
    length = draw.randint(24, 100)
    body: dict[str, Any] = {"temperature": 0, "max_tokens": length, "ignore_eos": True}
    body |= {"messages": [{"role": "user", "content": words}]} if number % 2 else {"prompt": words}
    cuts = sorted(draw.sample(range(1, length - 2), draw.choice((1, 1, 2))))
    return body, Plan(moves=tuple(zip(cuts, ("e1", "e0"), strict=False)))


async def test_cut_calls_on_llamacpp_equal_those_of_its_own_routes(llamacpp_pair: Pair) -> None:
    async with steered(*llamacpp_pair) as (gate, core):
        url, differing = str(gate.client.base_url), []

        async def one(number: int) -> tuple[Answer, Answer]:
            body, plan = drawn(number)
            core.plans[f"cut-{number}"] = plan
            own = await ask(llamacpp_pair[0].url, body)
            whole = await ask(url, body)
            cut = await ask(url, body, request_id=f"cut-{number}")
            if not own.text == whole.text == cut.text or whole.token_ids != cut.token_ids:
                differing.append(f"{number} {plan.moves}: {own} against {whole} against {cut}")
            return own, cut

        pairs = [await one(number) for number in range(CUT_CALLS)]
    names = [f"cut-{number}" for number in range(CUT_CALLS)]
    moved = [core.attempts[name] - 1 - len(core.refused.get(name, ())) for name in names]
    stayed = sum(len(reasons) for reasons in core.refused.values())
    print(
        f"\nllama.cpp: {CUT_CALLS - len(differing)} of {CUT_CALLS} greedy calls equal in text to its own routes; "
        f"{sum(map(bool, moved))} of them moved {sum(moved)} times, {stayed} moves refused for unknown ids; "
        f"{sum(own.usage['completion_tokens'] for own, _ in pairs)} tokens"
    )
    assert not differing, "\n".join(differing[:3])
    assert sum(map(bool, moved)) >= CUT_CALLS / 2, "too few calls moved"
    for own, cut in pairs:
        assert (cut.finish_reasons, len(cut.ids)) == (own.finish_reasons, 1)
        assert cut.usage["prompt_tokens"] == own.usage["prompt_tokens"]
        assert cut.usage["completion_tokens"] == own.usage["completion_tokens"]


async def test_a_client_that_leaves_frees_its_slot_of_llamacpp(llamacpp_pair: Pair) -> None:
    asked = 4000
    body = {"model": MODEL, "prompt": "leave", "max_tokens": asked, "ignore_eos": True, "stream": True}
    server = llamacpp_pair[0]
    steps_before = await _steps(server)
    async with steered(*llamacpp_pair) as (gate, _):
        async with gate.client.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
            await until(lambda: _busy_slots(server))

        async def is_idle() -> bool:
            return await _busy_slots(server) == 0

        await until(is_idle)
        await until(lambda: not gate.orchestrator.calls)
    steps = await _steps(server) - steps_before
    print(f"\nllama.cpp's slot was free after {steps:.0f} steps of a call for {asked} tokens")
    assert 0 < steps < asked / 2


async def test_a_probe_names_llamacpp_and_what_it_lacks(llamacpp_pair: Pair) -> None:
    found = await _probed(llamacpp_pair[0].url)
    assert (found["kind"], found["model"], found["max_num_seqs"]) == ("llamacpp", MODEL, 4)
    skills = {name: skill["found"] for name, skill in found["capabilities"].items()}
    assert skills["token ids in"] is skills["token ids out"] is skills["token ids in chat streams"] is True
    assert skills["priorities"] is skills["KV transfer"] is False
    assert found["missing_metrics"] == []
    lacks = " ".join(found["shortfalls"])
    print(f"\nllama.cpp {found['version']}: {skills}; {lacks}")
    assert "order is kept by holding calls back at the gateway" in lacks
    assert "prefill and decode cannot be split" in lacks
    assert "cannot move" not in lacks


async def test_calls_on_llamacpp_are_served_in_the_order_of_their_deadlines(
    one_slot: EngineServer, tmp_path: Path
) -> None:
    slos_s = [60, 90, 120, 180, 240, 300, 400, 500]
    ended: list[int] = []
    async with (
        gateway_process(one_slot, folder=tmp_path) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as client,
    ):

        async def call(slo_s: int, tokens: int) -> None:
            headers = {"x-agentserve-slo-s": str(slo_s), RUN_ID: f"run-{slo_s}"}
            body = {"model": MODEL, "prompt": f"{slo_s}", "max_tokens": tokens, "ignore_eos": True}
            answer = await client.post("/v1/completions", json=body, headers=headers)
            assert answer.is_success, answer.text
            ended.append(slo_s)

        async def held_back() -> int:
            (instance,) = (await client.get("/v1/cluster")).json()["instances"]
            return int(instance["held_back"])

        async def all_wait() -> bool:
            return await held_back() == len(slos_s)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(30, 4000))  # keeps the engine busy until all others wait
            await until(lambda: _busy_slots(one_slot))
            shuffled = list(slos_s)
            random.Random(3).shuffle(shuffled)
            for slo_s in shuffled:
                tasks.create_task(call(slo_s, 8))
            await until(all_wait)
            page = await one_slot.metrics()
            inside = [sample(page, f"llamacpp:requests_{state}") for state in ("processing", "deferred")]
    print(f"\norder on llama.cpp, {len(slos_s)} held back, {inside} inside: sent {shuffled}, served {ended[1:]}")
    assert inside == [1, 0], "nothing waits inside the engine"
    assert ended == [30, *slos_s]


async def test_a_plain_server_answers_through_the_gateway_and_its_calls_stay(transformers_server: EngineServer) -> None:
    foreign = {"cache_salt": "s", "return_token_ids": True, "min_tokens": 1}
    body = {"model": transformers_server.model, "messages": list(_QUESTION), "max_tokens": 12, "temperature": 0}
    async with httpx.AsyncClient(base_url=transformers_server.url, trust_env=False, timeout=60) as client:
        refused = await client.post("/v1/chat/completions", json={**body, **foreign})
        own = (await client.post("/v1/chat/completions", json=body)).json()
    assert refused.status_code == 422
    expected = own["choices"][0]["message"]["content"]

    async with steered(transformers_server, transformers_server) as (gate, core):
        core.plans["plain"] = Plan(moves=((1, "e1"),))
        streaming = {**body, **foreign, "stream": True, "stream_options": {"include_usage": True}}
        headers = {REQUEST_ID: "plain", RUN_ID: "plain-run"}
        streamed = await gate.client.post("/v1/chat/completions", json=streaming, headers=headers)
        whole = await gate.client.post("/v1/chat/completions", json={**body, **foreign})
        traced = await agentserve("trace", "plain-run", "--gateway", str(gate.client.base_url))
    assert streamed.is_success, streamed.text
    assert whole.is_success, whole.text
    parts = chunks(streamed.text)
    assert said(parts) == whole.json()["choices"][0]["message"]["content"] == expected
    usages = [parts[-1]["usage"], whole.json()["usage"], own["usage"]]
    print(f"\ntransformers serve: usage streamed {usages[0]}, whole {usages[1]}, its own {usages[2]}")
    for counted in ("prompt_tokens", "completion_tokens"):
        assert len({usage[counted] for usage in usages}) == 1
    assert core.refused["plain"] == ["its engines give no token ids"]
    assert "migration refused" in traced.out
    assert "its engines give no token ids" in traced.out


async def test_a_plain_server_whose_model_is_not_listed_serves_agents_calls(
    transformers_server: EngineServer, tmp_path: Path
) -> None:
    model = transformers_server.model
    async with gateway_process(transformers_server, folder=tmp_path) as url:
        body = {"model": model, "messages": list(_QUESTION), "max_tokens": 4, "temperature": 0}
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            answer = await client.post("/v1/chat/completions", json=body, headers={"x-agentserve-slo-s": "60"})
            (instance,) = (await client.get("/v1/cluster")).json()["instances"]
    assert answer.is_success, answer.text
    assert (instance["engine"], instance["model"]) == ("openai", model)

    found = await _probed(transformers_server.url, "--model", model)
    print(f"\ntransformers serve: {found['kind']}, {found['kind_known_by']}; lacks: {found['shortfalls']}")
    assert found["kind"] == "openai"
    lacks = " ".join(found["shortfalls"])
    for lack in ("a running call cannot move", "no priorities", "cannot be split", "no metrics"):
        assert lack in lacks


async def _probed(url: str, *options: str) -> Mapping[str, Any]:
    probed = await agentserve("engine", "probe", url, *options, "--json", within_s=120)
    assert probed.code == 0, probed.err
    return dict(json.loads(probed.out))


async def _slots(server: EngineServer) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        return list((await client.get("/slots")).raise_for_status().json())


async def _busy_slots(server: EngineServer) -> int:
    return sum(slot["is_processing"] for slot in await _slots(server))


async def _steps(server: EngineServer) -> float:
    """Decode steps since it started; one call alone takes one for each token."""
    return sample(await server.metrics(), "llamacpp:n_decode_total") or 0
