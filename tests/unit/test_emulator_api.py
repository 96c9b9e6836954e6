"""What bodies ask for: limits, stop strings, errors that name the field."""

import pytest

from agentserve.emulator.api import parse_call, prompt_ids_of
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.render import Writer
from agentserve.emulator.replies import Model
from agentserve.emulator.tokens import ASSISTANT, decode, encode
from agentserve.errors import BadInput, NotFound

CONFIG = EmulatorConfig(max_model_len=1000)


def parse(config: EmulatorConfig = CONFIG, *, chat: bool = True, tokens: int = 20, **body):
    prompt = f"hi [[reply tokens={tokens}]]"
    base = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    return parse_call(base | body, config, Model(), is_chat=chat)


def test_max_tokens_cuts_with_reason_length():
    call = parse(max_tokens=5)

    assert (len(call.output_ids), call.finish_reason) == (5, "length")
    assert (len(parse(max_completion_tokens=5).output_ids), parse().finish_reason) == (5, "stop")
    assert parse(max_tokens=20).finish_reason == "stop", "it ends by itself there"


def test_completions_have_sixteen_tokens_unless_told():
    assert len(parse(chat=False).output_ids) == 16


def test_min_tokens_and_ignore_eos_go_on_after_the_end():
    assert len(parse(min_tokens=30).output_ids) == 30
    assert parse(min_tokens=30).finish_reason == "stop"
    assert len(parse(ignore_eos=True, max_tokens=40).output_ids) == 40
    assert parse(ignore_eos=True, max_tokens=40).finish_reason == "length"


def test_a_replayed_prompt_goes_on_where_it_was():
    first = parse(tokens=50)
    held = [*first.prompt_ids, *first.output_ids[:20]]

    second = parse_call({"prompt": held, "max_tokens": 100}, CONFIG, Model(), is_chat=False)

    assert list(second.output_ids) == list(first.output_ids[20:])
    assert list(second.prompt_ids) == held


def test_a_stop_string_ends_the_reply_and_is_not_shown():
    whole = decode(parse(tokens=60).output_ids)
    stop = whole[40:46]
    call = parse(tokens=60, stop=["never said", stop])
    writer = Writer(call, "id", "m")

    shown = "".join(writer._feed([token]) for token in call.output_ids)

    assert shown == whole[: whole.index(stop)]
    assert (call.finish_reason, call.stop_reason) == ("stop", stop)
    assert len(call.output_ids) < 60


def test_a_text_prompt_ends_in_the_assistant_mark():
    assert prompt_ids_of("abc") == [*encode("abc"), ASSISTANT]
    assert prompt_ids_of([20, 3, 21]) == [20, 3, 21]
    assert prompt_ids_of(["abc"]) == prompt_ids_of([encode("abc")]) == prompt_ids_of("abc")


def test_content_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    joined = parse(messages=[{"role": "user", "content": parts}])

    assert joined.prompt_ids == parse(messages=[{"role": "user", "content": "ab"}]).prompt_ids


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": 1}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, r"messages\[0\].tool_calls"),
        ({"n": 2}, "n: "),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5000}, "'max_tokens' is too large: 5000"),
        ({"messages": [{"role": "user", "content": "a b " * 600}]}, "maximum context length is 1000 tokens"),
        ({"stop": [1]}, "stop"),
        ({"priority": 1}, "Priority scheduling is not enabled"),
        ({"priority": "high"}, "priority"),
        ({"stream_options": {}, "kv_transfer_params": 3}, "kv_transfer_params"),
        ({"stream_options": {"include_usage": True}}, "stream=True"),
        ({"cache_salt": 7}, "cache_salt"),
    ],
)
def test_bad_fields_are_named(body, message):
    with pytest.raises(BadInput, match=message):
        parse(**body)


@pytest.mark.parametrize("prompt", [None, [], [-1], [2**31], ["a", "b"], [True], {"a": 1}])
def test_bad_prompts_are_refused(prompt):
    with pytest.raises(BadInput, match="prompt"):
        parse(chat=False, prompt=prompt)


def test_another_model_does_not_exist():
    with pytest.raises(NotFound, match="gpt-4"):
        parse(model="gpt-4")
    assert parse(EmulatorConfig(served_model="mine"), model="mine")


def test_priority_is_taken_where_the_policy_knows_it():
    assert parse(EmulatorConfig(scheduling_policy="priority"), priority=-3).priority == -3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gpu", "b300", "unknown gpu 'b300'"),
        ("model", "x", "unknown model 'x'"),
        ("port", 70000, "port"),
        ("speed", 0, "speed"),
        ("speed", float("inf"), "speed"),
        ("max_num_seqs", 0, "max_num_seqs"),
        ("kv_capacity_tokens", 3, "kv_capacity_tokens"),
        ("scheduling_policy", "lifo", "scheduling_policy"),
        ("role", "boss", "role"),
    ],
)
def test_a_bad_setting_is_named(field, value, message):
    with pytest.raises(BadInput, match=message):
        EmulatorConfig(**{field: value})


def test_a_missing_script_is_named(tmp_path):
    with pytest.raises(BadInput, match="gone"):
        EmulatorConfig(script=tmp_path / "gone")


def test_deeply_nested_tools_are_refused():
    tools: list = []
    for _ in range(5000):
        tools = [tools]

    with pytest.raises(BadInput, match="tools: nested too deeply"):
        parse(tools=tools)
