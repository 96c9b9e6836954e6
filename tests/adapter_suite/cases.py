"""What must every engine that speaks vLLM's protocol do for its adapter? One function per case, for any such engine.

The emulator runs them in `make test`, real vLLM in `make engines-test`: the same functions, case by case, so that what
holds in the emulator is known to hold in the engine that it stands for.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from agentserve.engines import open_adapter
from agentserve.engines.adapter import Delta, EngineAdapter, EngineCall
from agentserve.engines.http import EngineRefused
from agentserve.errors import EngineFailed
from tests.integration.gateway_parts import until

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
_LONG: Final = "Größe 敏捷的狐狸 🙂🚀 быстрая лиса plan, call tools, answer. " * 6


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Two engines of the same kind and model, idle, whose KV can pass between them."""

    adapter: EngineAdapter
    other: EngineAdapter
    url: str
    other_url: str
    model: str


@dataclass(frozen=True)
class Whole:
    """A whole stream."""

    deltas: tuple[Delta, ...]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas for token in delta.token_ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        given = [delta.prompt_ids for delta in self.deltas if delta.prompt_ids is not None]
        assert len(given) == 1, "the prompt's ids come once"
        return given[0]

    @property
    def finish(self) -> str:
        (reason,) = [delta.finish_reason for delta in self.deltas if delta.finish_reason is not None]
        return reason

    @property
    def usage(self) -> Mapping[str, Any]:
        given = [delta.usage for delta in self.deltas if delta.usage is not None]
        assert given, "usage comes with the last piece"
        return given[-1]


_numbers = iter(range(1, 10**9))


def call(subject: Subject, path: str = COMPLETIONS, *, text: str = _LONG, tokens: int = 40, **extra: Any) -> EngineCall:
    """A greedy call that ends at `tokens`; its prompt is known to no cache yet."""
    number = next(_numbers)
    body = {"model": subject.model, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, **extra}
    text = f"{number} {text}"
    body |= {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return EngineCall(path=path, body=body, request_id=f"case-{number}")


def again(first: EngineCall, **changes: Any) -> EngineCall:
    """The same call once more, under an id of its own."""
    fields = {"path": first.path, "body": first.body, **changes}
    return EngineCall(request_id=f"case-{next(_numbers)}", **fields)


async def whole(adapter: EngineAdapter, one: EngineCall) -> Whole:
    """All deltas of a call."""
    async with aclosing(adapter.stream(one)) as deltas:
        return Whole(tuple([delta async for delta in deltas]))


async def metric(url: str, name: str, label: str = "") -> float:
    """A metric's sum over its samples with this label; 0 if there is none."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")) and label in line
    )


async def until_free(*urls: str) -> None:
    """Wait until the engines run nothing and keep no KV."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")

    async def is_free() -> bool:
        return not sum([await metric(url, name) for url in urls for name in names])

    await until(is_free, timeout_s=30)


async def agree(subject: Subject, text: str, ids: Sequence[int]) -> None:
    """Check that `text` is that of `ids`, but for a character at the end that is not complete."""
    decoded = await subject.adapter.detokenize(subject.model, ids)
    assert decoded is not None
    assert decoded.startswith(text)
    assert not decoded[len(text) :].strip("\ufffd")


async def completions_stream_text_and_the_ids_of_prompt_and_output(subject: Subject) -> None:
    answer = await whole(subject.adapter, call(subject))
    assert len(answer.ids) == 40
    assert answer.usage["prompt_tokens"] == len(answer.prompt_ids)
    assert answer.usage["completion_tokens"] == 40
    assert answer.finish == "length"
    await agree(subject, answer.text, answer.ids)


async def chats_stream_text_and_the_ids_of_prompt_and_output(subject: Subject) -> None:
    answer = await whole(subject.adapter, call(subject, CHAT))
    assert len(answer.ids) == 40
    assert answer.usage["prompt_tokens"] == len(answer.prompt_ids)
    await agree(subject, answer.text, answer.ids)


async def a_chats_prompt_ids_are_the_engines_own_rendering(subject: Subject) -> None:
    chat = call(subject, CHAT, tokens=1)
    answer = await whole(subject.adapter, chat)
    async with httpx.AsyncClient(base_url=subject.url, trust_env=False, timeout=60) as client:
        body = {"model": subject.model, "messages": chat.body["messages"], "add_generation_prompt": True}
        rendered = (await client.post("/tokenize", json=body)).json()
    assert tuple(rendered["tokens"]) == answer.prompt_ids
    assert rendered["count"] == len(answer.prompt_ids)


async def the_same_call_gives_the_same_tokens_on_either_engine(subject: Subject) -> None:
    first = call(subject)
    answers = [await whole(adapter, again(first)) for adapter in (subject.adapter, subject.other, subject.adapter)]
    assert len({answer.ids for answer in answers}) == 1


async def a_replay_of_ids_goes_on_exactly_from_any_cut(subject: Subject) -> None:
    for path in (COMPLETIONS, CHAT):
        first = call(subject, path)
        expected = await whole(subject.adapter, first)
        for cut in (1, 2, 7, 20, 39):
            replay = (*expected.prompt_ids, *expected.ids[:cut])
            rest = await whole(subject.other, again(first, replay_ids=replay, max_tokens=40 - cut))
            assert rest.ids == expected.ids[cut:], cut
            assert rest.usage["prompt_tokens"] == len(replay)


async def text_comes_in_whole_characters(subject: Subject) -> None:
    answer = await whole(subject.adapter, call(subject, tokens=120))
    shown, ids = "", []
    for delta in answer.deltas:
        shown += delta.text
        ids += delta.token_ids
        if delta.text and not delta.text.endswith("\ufffd"):
            await agree(subject, shown, ids)


async def detokenize_shows_a_broken_character_as_such(subject: Subject) -> None:
    answer = await whole(subject.adapter, call(subject, text="🙂🙂🙂🙂", tokens=1))
    pieces = [
        await subject.adapter.detokenize(subject.model, answer.prompt_ids[:end])
        for end in range(1, len(answer.prompt_ids))
    ]
    assert all(piece is not None for piece in pieces)
    assert any(piece.endswith("\ufffd") for piece in pieces if piece), "an emoji takes several tokens"


async def min_tokens_hold_off_the_end(subject: Subject) -> None:
    one = call(subject, tokens=60, ignore_eos=False, min_tokens=60)
    assert len((await whole(subject.adapter, one)).ids) == 60


async def a_stop_string_ends_the_text_before_it(subject: Subject) -> None:
    first = call(subject)
    expected = await whole(subject.adapter, first)
    stop = expected.text[len(expected.text) // 2 :][:5]
    cut = await whole(subject.adapter, again(first, body={**first.body, "stop": [stop]}))
    assert cut.text == expected.text[: expected.text.find(stop)]
    assert cut.finish == "stop"


async def cached_tokens_are_reported(subject: Subject) -> None:
    first = call(subject, text=_LONG * 4)
    cold, warm = await whole(subject.adapter, first), await whole(subject.adapter, again(first))
    assert not (cold.usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    assert warm.usage["prompt_tokens_details"]["cached_tokens"] > 0.5 * len(warm.prompt_ids)


async def a_cache_salt_keeps_caches_apart(subject: Subject) -> None:
    first = call(subject, text=_LONG * 4, cache_salt="mine")
    await whole(subject.adapter, first)
    other = await whole(subject.adapter, again(first, body={**first.body, "cache_salt": "yours"}))
    assert not (other.usage.get("prompt_tokens_details") or {}).get("cached_tokens")


async def priorities_are_taken(subject: Subject) -> None:
    for priority in (-7, 0, 7):
        assert len((await whole(subject.adapter, again(call(subject), priority=priority))).ids) == 40


async def a_split_call_gives_the_same_tokens(subject: Subject) -> None:
    for path in (COMPLETIONS, CHAT):
        first = call(subject, path, text=_LONG * 3)
        expected = await whole(subject.adapter, first)
        fresh = again(first, body={**first.body, "cache_salt": f"split-{path.count('c')}"})
        pulled = await metric(subject.other_url, "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"')
        handoff = await subject.adapter.prefill(fresh)
        split = await whole(subject.other, again(fresh, handoff=handoff))
        assert split.ids == expected.ids
        assert (
            await metric(subject.other_url, "vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"')
            > pulled
        ), "its KV came by transfer"
    await until_free(subject.url, subject.other_url)


async def a_running_call_goes_on_elsewhere_with_its_kv(subject: Subject) -> None:
    first = call(subject, text=_LONG * 3)
    expected = await whole(subject.adapter, first)
    replay = again(first, replay_ids=(*expected.prompt_ids, *expected.ids[:17]), max_tokens=23)
    rest = await whole(
        subject.other,
        again(replay, replay_ids=replay.replay_ids, max_tokens=23, handoff=await subject.adapter.prefill(replay)),
    )
    assert rest.ids == expected.ids[17:]
    await until_free(subject.url, subject.other_url)


async def kv_that_nobody_takes_is_released(subject: Subject) -> None:
    handoff = await subject.adapter.prefill(call(subject, text=_LONG * 3))
    assert await metric(subject.url, "vllm:kv_cache_usage_perc") > 0, "the KV is kept for the decode leg"
    await subject.other.release(subject.model, handoff)
    await until_free(subject.url, subject.other_url)


async def a_handoff_from_an_engine_that_is_gone_fails_the_call_and_not_the_engine(subject: Subject) -> None:
    one = call(subject, text=_LONG * 3)
    handoff = {
        **await subject.adapter.prefill(one),
        "remote_engine_id": "00000000-dead-beef-0000-000000000000",
        "remote_port": 9,
    }
    with pytest.raises(EngineFailed) as failed:
        await whole(subject.other, again(one, handoff=handoff))
    assert failed.value.retryable
    assert await subject.other.is_healthy()
    assert len((await whole(subject.other, call(subject))).ids) == 40


async def closing_a_stream_aborts_it(subject: Subject) -> None:
    deltas = subject.adapter.stream(call(subject, tokens=1500))
    await anext(deltas)
    assert await metric(subject.url, "vllm:num_requests_running") == 1
    await deltas.aclose()
    await until_free(subject.url)


async def an_unknown_model_is_refused(subject: Subject) -> None:
    one = call(subject)
    with pytest.raises(EngineRefused) as refused:
        await whole(subject.adapter, again(one, body={**one.body, "model": "no-such-model"}))
    assert refused.value.status == 404


async def a_prompt_that_is_too_long_is_refused(subject: Subject) -> None:
    with pytest.raises(EngineRefused) as refused:
        await whole(subject.adapter, again(call(subject), replay_ids=(20,) * 300_000, max_tokens=1))
    assert refused.value.status == 400


async def a_field_of_the_wrong_type_is_refused(subject: Subject) -> None:
    with pytest.raises(EngineRefused) as refused:
        await whole(subject.adapter, call(subject, min_tokens="many"))
    assert refused.value.status in (400, 422)


async def every_metric_of_its_kind_is_there(subject: Subject) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        lines = (await client.get(f"{subject.url}/metrics")).text.splitlines()
    for name in subject.adapter.capabilities.metrics.values():
        assert any(line.startswith((name + "{", name + " ")) for line in lines), name


async def it_is_healthy(subject: Subject) -> None:
    assert await subject.adapter.is_healthy()


CASES: Final[tuple[Callable[[Subject], Awaitable[None]], ...]] = (
    completions_stream_text_and_the_ids_of_prompt_and_output,
    chats_stream_text_and_the_ids_of_prompt_and_output,
    a_chats_prompt_ids_are_the_engines_own_rendering,
    the_same_call_gives_the_same_tokens_on_either_engine,
    a_replay_of_ids_goes_on_exactly_from_any_cut,
    text_comes_in_whole_characters,
    detokenize_shows_a_broken_character_as_such,
    min_tokens_hold_off_the_end,
    a_stop_string_ends_the_text_before_it,
    cached_tokens_are_reported,
    a_cache_salt_keeps_caches_apart,
    priorities_are_taken,
    a_split_call_gives_the_same_tokens,
    a_running_call_goes_on_elsewhere_with_its_kv,
    kv_that_nobody_takes_is_released,
    a_handoff_from_an_engine_that_is_gone_fails_the_call_and_not_the_engine,
    closing_a_stream_aborts_it,
    an_unknown_model_is_refused,
    a_prompt_that_is_too_long_is_refused,
    a_field_of_the_wrong_type_is_refused,
    every_metric_of_its_kind_is_there,
    it_is_healthy,
)


async def run_case(case: Callable[[Subject], Awaitable[None]], url: str, other_url: str, model: str) -> None:
    """Run one case on two idle engines, through adapters of its own."""
    adapters = [open_adapter("vllm", address, supports_priority=True) for address in (url, other_url)]
    try:
        subject = Subject(adapter=adapters[0], other=adapters[1], url=url, other_url=other_url, model=model)
        await case(subject)
    finally:
        for adapter in adapters:
            await adapter.close()
