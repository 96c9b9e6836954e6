"""Does every field that a client sends arrive at the engine unchanged, and what does the gateway add or keep?"""

from typing import Any, Final

from tests.clients.bench import RECORDED, WEATHER, Bench
from tests.clients.cases_answers import chat, completion
from tests.clients.heard import Client, NotApplicable
from tests.clients.table import case

FIELDS: Final = "Fields"
IMAGE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
AUDIO: Final = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}

SET: Final = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
"""What the gateway sets on every call to a vLLM-like engine; `request_id` too, and `priority` where it is honoured."""
OWN: Final = {"priority": -12345, "request_id": "mine", "kv_transfer_params": {"a": 1}}
"""What a client may not set on the engine."""

SAMPLING: Final[dict[str, Any]] = {
    "temperature": 0.3, "top_p": 0.9, "seed": 42, "frequency_penalty": 0.5, "presence_penalty": -0.5,
    "logit_bias": {"50256": -100}, "max_completion_tokens": 9, "n": 1, "user": "someone",
}  # fmt: skip
OTHERS: Final[dict[str, Any]] = {
    "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low", "verbosity": "low",
    "parallel_tool_calls": False, "tools": [WEATHER],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "prediction": {"type": "content", "content": "x"}, "modalities": ["text"], "safety_identifier": "s",
}  # fmt: skip
EXTENSIONS: Final[dict[str, Any]] = {
    "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [2], "cache_salt": "s",
    "chat_template_kwargs": {"enable_thinking": False}, "structured_outputs": {"regex": "a+"}, "bad_words": ["x"],
}  # fmt: skip
NEW: Final[dict[str, Any]] = {"a_field_of_tomorrow": {"deep": [1, 2.5, None, "é"]}, "another": True}


async def arrives(bench: Bench, client: Client, marker: str, fields: dict[str, Any], **others: Any) -> None:
    """Send `fields` in a chat and compare what came."""
    await client.call(bench.url, chat(marker, RECORDED, **fields, **others))
    received = bench.recorder.received(marker)[-1]
    assert {name: received.get(name, "nothing came") for name in fields} == fields, received


@case(FIELDS, "sampling: temperature, top_p, seed, penalties, logit_bias, user, …")
async def sampling(bench: Bench, client: Client) -> None:
    await arrives(bench, client, f"sampling-{client.name}", SAMPLING)


@case(FIELDS, "others of OpenAI's: metadata, service_tier, reasoning_effort, tool_choice by name, prediction, …")
async def others(bench: Bench, client: Client) -> None:
    await arrives(bench, client, f"others-{client.name}", OTHERS)


@case(FIELDS, "vLLM's: top_k, min_p, structured_outputs, chat_template_kwargs, …")
async def extensions(bench: Bench, client: Client) -> None:
    await arrives(bench, client, f"extensions-{client.name}", EXTENSIONS)


@case(FIELDS, "fields that nobody knows yet")
async def new_fields(bench: Bench, client: Client) -> None:
    await arrives(bench, client, f"tomorrow-{client.name}", NEW)


@case(FIELDS, "images and audio in a message")
async def multimodal(bench: Bench, client: Client) -> None:
    parts = [{"type": "text", "text": f"multimodal-{client.name}"}, IMAGE, AUDIO]
    await client.call(bench.url, chat(parts, RECORDED))
    assert bench.recorder.received(f"multimodal-{client.name}")[-1]["messages"][0]["content"] == parts


@case(FIELDS, "completions: suffix, echo, logprobs, best_of")
async def completion_fields(bench: Bench, client: Client) -> None:
    marker = f"completion-fields-{client.name}"
    fields: dict[str, Any] = {"suffix": "end", "echo": True, "logprobs": 2, "best_of": 1, "max_tokens": 5}
    await client.call(bench.url, completion(marker, RECORDED, **fields))
    received = bench.recorder.received(marker)[-1]
    assert {name: received.get(name, "nothing came") for name in fields} == fields, received


@case(FIELDS, "a field that the gateway sets itself: the client's value does not reach the engine")
async def own_fields(bench: Bench, client: Client) -> None:
    marker = f"own-{client.name}"
    await client.call(bench.url, chat(marker, RECORDED, **OWN, agentserve={}))
    received = bench.recorder.received(marker)[-1]
    assert {name: received[name] for name in SET} == SET
    assert received["request_id"] != OWN["request_id"]
    assert received.get("priority") != OWN["priority"]
    assert not {"agentserve", "kv_transfer_params"} & set(received)


@case(FIELDS, "nothing else is added or changed")
async def nothing_else(bench: Bench, client: Client) -> None:
    if client.name != "curl":
        raise NotApplicable("adds fields of its own")
    body = chat("nothing-else", RECORDED, **SAMPLING, **OTHERS, **EXTENSIONS, **NEW)
    await client.call(bench.url, body)
    received = bench.recorder.received("nothing-else")[-1]
    added = {name: value for name, value in received.items() if name not in body}
    assert {name: value for name, value in received.items() if name in body} == body
    assert set(added) - {"priority"} == {*SET, "request_id"}


@case(FIELDS, "the client's key and headers stay at the gateway")
async def secrets(bench: Bench, client: Client) -> None:
    marker = f"secrets-{client.name}"
    await client.call(bench.url, chat(marker, RECORDED), headers={"authorization": "Bearer secret", "x-secret": "no"})
    assert "secret" not in str(bench.recorder.headers)
