"""Prompt sizes and prefix hashes without a tokenizer."""

from typing import Any

from agentserve.orchestrator.prompts import PromptSizer


def chat(*texts: str, **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **extra}


def test_a_prompt_of_ids_is_counted_exactly() -> None:
    estimate = PromptSizer().estimate("m", {"prompt": list(range(600))})
    assert (estimate.tokens, len(estimate.hashes), estimate.block_tokens) == (600, 2, 256)


def test_characters_per_token_are_learned_per_model() -> None:
    sizer = PromptSizer()
    body = chat("x" * 4000)
    first = sizer.estimate("m", body)
    assert 950 < first.tokens < 1050
    sizer.learn("m", first.chars, 2000)
    assert 1950 < sizer.estimate("m", body).tokens < 2050
    assert sizer.estimate("other", body).tokens == first.tokens


def test_a_growing_conversation_shares_its_prefix() -> None:
    sizer = PromptSizer()
    short = sizer.estimate("m", chat("a" * 3000)).hashes
    longer = sizer.estimate("m", chat("a" * 3000, "b" * 3000)).hashes
    assert len(short) == 2
    assert longer[:2] == short
    assert len(set(longer)) == len(longer)


def test_an_early_difference_changes_every_hash() -> None:
    sizer = PromptSizer()
    one, other = sizer.estimate("m", chat("a" + "c" * 4000)), sizer.estimate("m", chat("b" + "c" * 4000))
    assert not set(one.hashes) & set(other.hashes)


def test_tools_come_before_the_messages_and_models_do_not_share() -> None:
    sizer = PromptSizer()
    plain = sizer.estimate("m", chat("a" * 3000))
    assert sizer.estimate("m", chat("a" * 3000, tools=[{"name": "t"}])).hashes[0] != plain.hashes[0]
    assert sizer.estimate("n", chat("a" * 3000)).hashes[0] != plain.hashes[0]


def test_text_parts_and_lone_surrogates_do_no_harm() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "user"}]}
    assert PromptSizer().estimate("m", body).tokens > 0
    assert PromptSizer().estimate("m", {"prompt": "\ud800"}).tokens == 1
