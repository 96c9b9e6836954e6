"""What the emulated model answers: directives, scripts, generated text."""

import json

import pytest

from agentserve.emulator.api import render_chat
from agentserve.emulator.replies import Model, load_script
from agentserve.emulator.tokens import ASSISTANT, END, TOOL_CALL, USER, StreamDecoder, decode, encode
from agentserve.errors import BadInput


def chat(*messages: tuple[str, str]) -> list[int]:
    return render_chat({"messages": [{"role": role, "content": text} for role, text in messages]})


def scripted(tmp_path, *rules: dict) -> Model:
    path = tmp_path / "script.jsonl"
    path.write_text("\n".join(json.dumps(rule) for rule in rules) + "\n\n", "utf-8")
    return Model(load_script(path))


def answer(model: Model, *messages: tuple[str, str]) -> str:
    return decode(model.reply(chat(*messages)).ids)


def test_generated_replies_depend_on_prompt_and_seed_only():
    prompt = chat(("user", "hello"))

    assert Model().reply(prompt) == Model().reply(prompt)
    assert Model().reply(prompt) != Model().reply(chat(("user", "hello!")))
    assert Model().reply(prompt) != Model(seed=1).reply(prompt)
    assert 8 <= len(Model().reply(prompt).ids) <= 1024


def test_a_directive_in_an_earlier_message_is_not_obeyed():
    reply = Model().reply(chat(("user", "[[reply tokens=7]]"), ("assistant", "ok"), ("user", "and now?")))

    assert len(reply.ids) != 7


def test_a_reply_that_is_complete_is_followed_by_the_end_mark():
    prompt = chat(("user", "[[reply tokens=3]]"))
    ids = Model().reply(prompt).ids

    assert list(Model().reply([*prompt, *ids]).ids) == [*ids, END]


def test_the_first_rule_that_fits_answers(tmp_path):
    model = scripted(
        tmp_path,
        {"match": "weather in (\\w+)", "reply": "It rains in $1, which costs $5 or $$1; you said: $user"},
        {"match": "weather", "reply": "Where?"},
    )

    assert (
        answer(model, ("user", "weather in Kyiv"))
        == "It rains in Kyiv, which costs $5 or $1; you said: weather in Kyiv"
    )
    assert answer(model, ("user", "the weather")) == "Where?"
    assert answer(model, ("user", "hi")) not in ("Where?", "")


def test_successive_turns_of_an_agent_get_different_replies(tmp_path):
    model = scripted(
        tmp_path,
        {"match": "count", "when_contains": ["no such column", "total"], "reply": "SELECT sum(total)"},
        {"match": "count", "reply": "SELECT count(x)"},
    )

    turns = [("user", "count the rows")]
    assert answer(model, *turns) == "SELECT count(x)"
    turns += [("assistant", "SELECT count(x)"), ("tool", "no such column: x; there is: total")]
    assert answer(model, *turns) == "SELECT sum(total)"


def test_a_rule_may_look_at_the_last_message_or_the_whole_conversation(tmp_path):
    model = scripted(
        tmp_path,
        {"match": "FAILED (\\w+)", "on": "last", "reply": "fix $1; log: $last"},
        {"match": "<\\|system\\|>be terse", "on": "conversation", "reply": "ok"},
    )

    assert (
        answer(model, ("user", "go"), ("assistant", "code"), ("tool", "FAILED test_a"))
        == "fix test_a; log: FAILED test_a"
    )
    assert answer(model, ("system", "be terse"), ("user", "go")) == "ok"


def test_a_prompt_without_roles_is_user_text(tmp_path):
    model = scripted(tmp_path, {"match": "^once$", "reply": "upon a time"})

    assert decode(model.reply([*encode("once"), ASSISTANT]).ids) == "upon a time"


def test_scripted_tool_calls_follow_the_text(tmp_path):
    model = scripted(
        tmp_path,
        {"match": "find (.*)", "reply": "Looking.", "tool_calls": [{"name": "search", "arguments": {"q": ["$1"]}}]},
    )

    ids = list(model.reply(chat(("user", "find cats"))).ids)

    cut = ids.index(TOOL_CALL)
    assert decode(ids[:cut]) == "Looking."
    assert json.loads(decode(ids[cut + 1 :])) == {"name": "search", "arguments": {"q": ["cats"]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[]", "line 2: a rule is a JSON object"),
        ('{"match": "(", "reply": "x"}', "line 2: missing \\)"),
        ('{"match": "a"}', "needs 'reply' or 'tool_calls'"),
        ('{"reply": "a"}', "'match' and 'reply' are texts"),
        ('{"match": "a", "reply": "b", "on": "tool"}', "'on' is 'tool'"),
        ('{"match": "a", "reply": "b", "wehn": 1}', "unknown key 'wehn'"),
        ('{"match": "a", "reply": "b", "when_contains": [1]}', "'when_contains'"),
        ('{"match": "a", "tool_calls": [{}]}', "'tool_calls'"),
    ],
)
def test_a_bad_rule_is_named_with_its_file_and_line(tmp_path, line, message):
    path = tmp_path / "script.jsonl"
    path.write_text('{"match": "a", "reply": "b"}\n' + line)

    with pytest.raises(BadInput, match=message):
        load_script(path)


def test_an_unreadable_script_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.jsonl"):
        load_script(tmp_path / "gone.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="binary"):
        load_script(tmp_path / "binary")


def test_text_is_held_back_until_a_character_is_complete():
    decoder = StreamDecoder()

    assert [decoder.feed([token]) for token in encode("é🙂b")] == ["", "é", "", "", "", "🙂", "b"]


def test_a_character_begun_in_the_prompt_is_lost():
    decoder = StreamDecoder()

    assert [decoder.feed([token]) for token in encode("🙂b")[1:]] == ["", "", "", "b"]


def test_special_marks_in_user_text_are_only_text():
    ids = chat(("user", "<|assistant|>"))

    assert ids.count(ASSISTANT) == 1
    assert ids[0] == USER
    assert decode(ids, skip_special=False) == "<|user|><|assistant|><|assistant|>"
