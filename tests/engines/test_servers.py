"""Do the real engines behave as the other tests here take for granted?"""

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.engines.calls import client_of, complete, events, stream, until_metrics
from tests.engines.servers import BLOCK_TOKENS, EngineServer, sample

PROMPTS = 8
ANSWER_TOKENS = 48


@pytest.fixture
def prompts(tiny_model: Path) -> list[list[int]]:
    """Random ids that end in plain letters: after a piece of a character, vLLM's first text repeats the prompt's."""
    rng = random.Random(11)
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    letters = [vocabulary[letter] for letter in "end"]
    return [[rng.randrange(len(vocabulary)) for _ in range(rng.randrange(8, 200))] + letters for _ in range(PROMPTS)]


async def tokenize(server: EngineServer, text: str) -> list[int]:
    async with client_of(server) as client:
        return (await client.post("/tokenize", json={"model": server.model, "prompt": text})).json()["tokens"]


async def detokenize(server: EngineServer, ids: list[int]) -> str:
    async with client_of(server) as client:
        return (await client.post("/detokenize", json={"model": server.model, "tokens": ids})).json()["prompt"]


async def test_greedy_answers_are_the_same_alone_and_under_load_on_either_server(vllm_pair, prompts) -> None:
    first, second = vllm_pair
    alone = [await complete(first, prompt, ANSWER_TOKENS) for prompt in prompts]
    assert len({answer.ids for answer in alone}) == PROMPTS
    assert sum(len(set(answer.ids)) for answer in alone) > PROMPTS * ANSWER_TOKENS / 2  # no answer that repeats itself

    for server in (first, second):
        loaded = await asyncio.gather(*(stream(server, prompt, ANSWER_TOKENS) for prompt in prompts))
        assert [(a.ids, a.text, a.finish) for a in loaded] == [(a.ids, a.text, a.finish) for a in alone]


async def test_the_same_answer_comes_twenty_times(vllm_pair, prompts) -> None:
    first, _ = vllm_pair
    once = await complete(first, prompts[0], ANSWER_TOKENS)
    again = await asyncio.gather(*(stream(first, prompts[0], ANSWER_TOKENS, cache_salt=f"{i % 2}") for i in range(20)))
    assert {answer.ids for answer in again} == {once.ids}


@pytest.mark.parametrize(
    "text",
    ["plain words", "größer als früher", "敏捷的棕色狐狸", "🙂🚀👩‍💻👍🏽🇵🇹", "ᚠᛇᚻ 𝄞 \t\n", "</think> <tool_call>"],
)
async def test_any_text_survives_the_tokenizer(vllm_pair, text: str) -> None:
    for server in vllm_pair:
        assert await detokenize(server, await tokenize(server, text)) == text


async def test_answers_hold_characters_that_took_several_tokens(vllm_pair, prompts) -> None:
    answers = await asyncio.gather(*(stream(vllm_pair[0], prompt, ANSWER_TOKENS) for prompt in prompts))
    held_back = [
        late
        for answer in answers
        for early, late in zip(answer.chunks, answer.chunks[1:], strict=False)
        if early == "" and late and "\N{REPLACEMENT CHARACTER}" not in late
    ]
    assert held_back


async def test_prefill_on_one_and_decode_on_the_other_gives_the_same_answer(vllm_pair, prompts) -> None:
    prompt = (prompts[0] * 8)[: 4 * BLOCK_TOKENS + 5] + prompts[0][-3:]
    for prefill, decode in (vllm_pair, vllm_pair[::-1]):
        salt = f"split-{prefill.url[-5:]}"  # neither side knows this prompt yet
        whole = await complete(prefill, prompt, ANSWER_TOKENS, cache_salt=f"whole-{salt}")
        before = (
            sample(await decode.metrics(), "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") or 0
        )

        leg = await complete(prefill, prompt, 1, cache_salt=salt, kv_transfer_params={"do_remote_decode": True})
        assert leg.handoff is not None
        split = await stream(decode, prompt, ANSWER_TOKENS, cache_salt=salt, kv_transfer_params=leg.handoff)

        assert (split.ids, split.text) == (whole.ids, whole.text)

        def moved(page: str, before: float = before) -> bool:
            after = sample(page, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") or 0
            return after - before >= 4 * BLOCK_TOKENS

        await until_metrics(decode, moved)


async def test_spans_of_an_engine_join_the_callers_trace(vllm_pair, spans) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with client_of(vllm_pair[0]) as client:
        body = {"model": vllm_pair[0].model, "prompt": "hi", "max_tokens": 2}
        await client.post("/v1/completions", json=body, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    async with asyncio.timeout(30):
        while (trace, "llm_request") not in [(span.trace_id.hex(), span.name) for span in list(spans.spans)]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_another_kind_of_server_streams_a_chat(transformers_server) -> None:
    body = {
        "model": transformers_server.model,
        "messages": [{"role": "user", "content": "Which GPU should decode? 🙂"}],
        "max_tokens": 12,
    }
    chunks = [chunk async for chunk in events(transformers_server, "/v1/chat/completions", body, marks_end=False)]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text
    assert [choice["finish_reason"] for choice in chunks[-1]["choices"]] in (["stop"], ["length"], [])
