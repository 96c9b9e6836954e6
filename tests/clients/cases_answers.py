"""Do answers reach each client whole? Chat, completions, streams, usage, tools, schemas, choices, logprobs."""

import json
from typing import Any, Final

from tests.clients.bench import CITY, RECORDED, WEATHER, Bench
from tests.clients.heard import Client, NotApplicable
from tests.clients.recorder import Script, delta, text, usage
from tests.clients.table import case
from tests.integration.gateway_parts import MODEL

ANSWERS: Final = "Answers"
USAGE: Final = {"stream_options": {"include_usage": True}}
SCHEMA: Final = {
    "type": "json_schema",
    "json_schema": {"name": "city", "strict": True, "schema": {"type": "object", "properties": {"n": {"const": 1}}}},
}


def chat(content: Any, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """The body of a chat of one user message."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: Any, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """The body of a completion."""
    return {"model": model, "prompt": prompt, **fields}


@case(ANSWERS, "chat")
async def chat_whole(bench: Bench, client: Client) -> None:
    heard = await client.call(bench.url, chat("[[reply tokens=30]]"))
    assert heard.first.text
    assert heard.first.finish_reasons == ["stop"]
    assert heard.usage is not None
    assert heard.usage[1] == 30
    assert heard.usage[0] + heard.usage[1] == heard.usage[2]


@case(ANSWERS, "chat, streamed: same text, one id, one role, one finish reason")
async def chat_streamed(bench: Bench, client: Client) -> None:
    whole = await client.call(bench.url, chat("[[reply tokens=30]]"))
    heard = await client.call(bench.url, chat("[[reply tokens=30]]", stream=True))
    assert heard.first.text == whole.first.text
    assert heard.first.finish_reasons == ["stop"]
    if client.name != "langchain-openai":  # it names chunks after its own run
        assert len(heard.ids) == 1
    assert set(heard.first.roles) <= {"assistant"}
    assert heard.usage is None


@case(ANSWERS, "usage in a stream (`stream_options.include_usage`), once")
async def chat_usage(bench: Bench, client: Client) -> None:
    heard = await client.call(bench.url, chat("[[reply tokens=30]]", stream=True, **USAGE))
    assert heard.usages == 1
    assert heard.usage is not None
    assert heard.usage[1] == 30


@case(ANSWERS, "completions of a text")
async def completion_whole(bench: Bench, client: Client) -> None:
    heard = await client.call(bench.url, completion("[[reply tokens=30]]", max_tokens=20))
    assert heard.first.text
    assert heard.first.finish_reasons == ["length"]
    assert heard.usage is not None
    assert heard.usage[1] == 20


@case(ANSWERS, "completions, streamed")
async def completion_streamed(bench: Bench, client: Client) -> None:
    whole = await client.call(bench.url, completion("[[reply tokens=30]]", max_tokens=20))
    heard = await client.call(bench.url, completion("[[reply tokens=30]]", max_tokens=20, stream=True))
    assert heard.first.text == whole.first.text


@case(ANSWERS, "completions of token ids")
async def completion_of_ids(bench: Bench, client: Client) -> None:
    ids = [11, 22, 33]
    heard = await client.call(bench.url, completion(ids, RECORDED, user="completion-of-ids"))
    assert bench.recorder.received("completion-of-ids")[-1]["prompt"] == ids
    assert heard.first.text == "recorded answer"


@case(ANSWERS, "completions of several prompts, one choice each")
async def completion_of_several(bench: Bench, client: Client) -> None:
    if client.name == "langchain-openai":
        raise NotApplicable("sends one call for each")
    bench.recorder.scripts["several-prompts"] = Script(
        choices=[[text("a", False)], [text("b", False, "stop", index=1)], [text("c", False, "stop")]]
    )
    heard = await client.call(bench.url, completion(["several-prompts", "two"], RECORDED))
    assert {index: choice.text for index, choice in heard.choices.items()} == {0: "ac", 1: "b"}


@case(ANSWERS, "tools: the model calls one")
async def tool_call(bench: Bench, client: Client) -> None:
    heard = await client.call(bench.url, chat(f"weather of {CITY}?", tools=[WEATHER], tool_choice="auto"))
    assert heard.first.calls == [("weather", {"city": CITY})]
    assert heard.first.tool_calls[0][0]
    assert heard.first.finish_reasons == ["tool_calls"]
    assert not heard.first.text


@case(ANSWERS, "tools, streamed: two calls in fragments")
async def tool_calls_streamed(bench: Bench, client: Client) -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        name = {"name": more.pop("name")} if "name" in more else {}
        return {"index": index, **more, "function": {**name, "arguments": arguments}}

    fragments = [
        call(0, "", id="call-a", type="function", name="weather"), call(0, '{"city": "Zü'), call(0, 'rich"}'),
        call(1, "", id="call-b", type="function", name="weather"), call(1, '{"city": "漢"}'),
    ]  # fmt: skip
    bench.recorder.scripts["streamed-tools"] = Script(
        choices=[
            [delta(role="assistant", content=None)],
            *([delta(tool_calls=[each])] for each in fragments),
            [delta(finish="tool_calls")],
        ]
    )
    body = chat("streamed-tools", RECORDED, tools=[WEATHER], parallel_tool_calls=True)
    for streams in (True, False):
        heard = await client.call(bench.url, {**body, "stream": streams})
        assert heard.first.calls == [("weather", {"city": "Zürich"}), ("weather", {"city": "漢"})]
        assert [told[0] for told in heard.first.tool_calls.values()] == ["call-a", "call-b"]
        assert heard.first.finish_reasons == ["tool_calls"]


@case(ANSWERS, "tools: a conversation with a tool's result goes on")
async def tool_result(bench: Bench, client: Client) -> None:
    made = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
    messages = [
        {"role": "user", "content": "conversation-with-tools"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call-1", "content": "sunny"},
    ]
    body = {"model": RECORDED, "messages": messages, "tools": [WEATHER]}
    heard = await client.call(bench.url, body)
    assert heard.first.text == "recorded answer"
    received = bench.recorder.received("conversation-with-tools")[-1]["messages"]
    assert received[1]["tool_calls"] == [made]
    assert received[2] == messages[2]


@case(ANSWERS, "JSON schema (`response_format`) reaches the engine unchanged")
async def json_schema(bench: Bench, client: Client) -> None:
    opening = delta(role="assistant", content="")
    script = Script(choices=[[opening], [text('{"n"')], [text(": 1}", finish="stop")]])
    bench.recorder.scripts["json-schema"] = script
    heard = await client.call(bench.url, chat("json-schema", RECORDED, response_format=SCHEMA))
    assert json.loads(heard.first.text) == {"n": 1}
    assert bench.recorder.received("json-schema")[-1]["response_format"] == SCHEMA


@case(ANSWERS, "JSON schema, streamed")
async def json_schema_streamed(bench: Bench, client: Client) -> None:
    opening = delta(role="assistant", content="")
    script = Script(choices=[[opening], [text('{"n"')], [text(": 1}", finish="stop")]])
    bench.recorder.scripts["json-stream"] = script
    heard = await client.call(bench.url, chat("json-stream", RECORDED, response_format=SCHEMA, stream=True))
    assert json.loads(heard.first.text) == {"n": 1}
    assert bench.recorder.received("json-stream")[-1]["response_format"] == SCHEMA


@case(ANSWERS, "several choices (`n`)")
async def several_choices(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["two-choices"] = _two_choices()
    heard = await client.call(bench.url, chat("two-choices", RECORDED, n=2))
    assert {index: choice.text for index, choice in heard.choices.items()} == {0: "ac", 1: "b"}
    assert [choice.finish_reasons for choice in heard.choices.values()] == [["stop"], ["length"]]
    assert bench.recorder.received("two-choices")[-1]["n"] == 2


@case(ANSWERS, "several choices, streamed")
async def several_choices_streamed(bench: Bench, client: Client) -> None:
    bench.recorder.scripts["choices-streamed"] = _two_choices()
    heard = await client.call(bench.url, chat("choices-streamed", RECORDED, n=2, stream=True))
    assert {index: choice.text for index, choice in heard.choices.items()} == {0: "ac", 1: "b"}


def _two_choices() -> Script:
    return Script(
        choices=[
            [delta(role="assistant", content=""), delta(1, role="assistant", content="")],
            [text("a"), text("b", finish="length", index=1)],
            [text("c", finish="stop")],
        ],
        usage=usage(3, 3),
    )


@case(ANSWERS, "logprobs of a chat, whole and streamed")
async def logprobs(bench: Bench, client: Client) -> None:
    def told(token: str) -> dict[str, Any]:
        top = {"token": token, "logprob": -0.5, "bytes": [*token.encode()]}
        return {"content": [{**top, "top_logprobs": [top]}]}

    bench.recorder.scripts["case-logprobs"] = Script(
        choices=[[{**text("é"), "logprobs": told("é")}], [{**text("b", finish="stop"), "logprobs": told("b")}]]
    )
    for streams in (False, True):
        body = chat("case-logprobs", RECORDED, logprobs=True, top_logprobs=1, stream=streams)
        heard = await client.call(bench.url, body)
        assert heard.first.text == "éb"
        assert heard.first.logprob_tokens == ["é", "b"]


@case(ANSWERS, "logprobs of completions")
async def completion_logprobs(bench: Bench, client: Client) -> None:
    def told(token: str, at: int) -> dict[str, Any]:
        return {"tokens": [token], "token_logprobs": [-0.5], "top_logprobs": [{token: -0.5}], "text_offset": [at]}

    bench.recorder.scripts["lp-completions"] = Script(
        choices=[
            [{**text("a", False), "logprobs": told("a", 0)}],
            [{**text("b", False, "stop"), "logprobs": told("b", 1)}],
        ]
    )
    heard = await client.call(bench.url, completion("lp-completions", RECORDED, logprobs=1))
    assert heard.first.logprob_tokens == ["a", "b"]


@case(ANSWERS, "stop strings, whole and streamed")
async def stop_strings(bench: Bench, client: Client) -> None:
    whole = (await client.call(bench.url, chat("[[reply tokens=60]]"))).first.text
    stop = whole[40:47]
    for streams in (False, True):
        heard = await client.call(bench.url, chat("[[reply tokens=60]]", stop=[stop], stream=streams))
        assert heard.first.text == whole[: whole.find(stop)]
        assert heard.first.finish_reasons == ["stop"]


@case(ANSWERS, "`max_tokens` and `max_completion_tokens`")
async def budgets(bench: Bench, client: Client) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        heard = await client.call(bench.url, chat("[[reply tokens=60]]", **{name: 7}))
        assert heard.usage is not None
        assert heard.usage[1] == 7
        assert heard.first.finish_reasons == ["length"]


@case(ANSWERS, "reasoning text of the engine's parser is passed on")
async def reasoning(bench: Bench, client: Client) -> None:
    if client.name == "langchain-openai":
        raise NotApplicable("drops the field")
    script = Script(choices=[[delta(role="assistant", reasoning_content="thus")], [text("so", finish="stop")]])
    bench.recorder.scripts["case-reasoning"] = script
    for streams in (False, True):
        heard = await client.call(bench.url, chat("case-reasoning", RECORDED, stream=streams))
        assert (heard.first.reasoning, heard.first.text) == ("thus", "so")


@case(ANSWERS, "characters of several bytes, cut anywhere in the engine's stream")
async def unicode_across_chunks(bench: Bench, client: Client) -> None:
    said = "é漢🙂 👩‍👩‍👧 ملح"
    bench.recorder.scripts["cut-bytes"] = Script(choices=[[text(said)], [text(said, finish="stop")]], split_bytes=7)
    heard = await client.call(bench.url, chat("cut-bytes", RECORDED, stream=True))
    assert heard.first.text == said * 2
    heard = await client.call(bench.url, chat("say unicode", stream=True))
    assert heard.first.text == "é漢🙂 – ملح"
    assert "\ufffd" not in "".join(heard.first.pieces)


@case(ANSWERS, "a prompt of 1.2 MB")
async def large_body(bench: Bench, client: Client) -> None:
    content = "large-body " + "é" * 600_000
    heard = await client.call(bench.url, chat(content, RECORDED))
    assert heard.first.text == "recorded answer"
    assert bench.recorder.received("large-body")[-1]["messages"][0]["content"] == content


@case(ANSWERS, "the list of models and one model")
async def models(bench: Bench, client: Client) -> None:
    assert await client.models(bench.url) == sorted((MODEL, RECORDED))


@case(ANSWERS, "headers: run, node, SLO; unknown ones are ignored")
async def run_headers(bench: Bench, client: Client) -> None:
    run_id = f"of-{client.name}"
    headers = {"x-agentserve-run-id": run_id, "x-agentserve-node": "plan", "x-agentserve-slo-s": "20", "x-odd": "é"}
    if client.name != "curl":
        headers["x-odd"] = "odd"  # httpx refuses to send what is not ASCII
    await client.call(bench.url, chat("hi", max_tokens=4), headers=headers)
    run = bench.get(f"/v1/runs/{run_id}")
    assert run["slo_s"] == 20
    assert [step["node"] for step in run["steps"]] == ["plan"]
