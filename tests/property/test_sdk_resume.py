"""A stream that breaks anywhere, any number of times, reaches the caller whole: no token lost, none doubled."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from agentserve.sdk.resume import StreamProgress

PROMPT_IDS = [1, 2, 3]


def chunk(choice: dict[str, Any], **more: Any) -> bytes:
    return (
        b"data: " + orjson.dumps({"id": "cmpl-1", "model": "m", "choices": [{"index": 0, **choice}], **more}) + b"\n\n"
    )


def serve(pieces: list[str], body: dict[str, Any], stream_id: str) -> bytes:
    """What a gateway sends for a body: token i is pieces[i]; a resumed stream starts behind the ids it was given."""
    resume = body.get("agentserve", {}).get("resume")
    given_ids = resume["token_ids"] if resume else []
    assert given_ids == list(range(len(given_ids)))
    assert not resume or resume["prompt_token_ids"] == PROMPT_IDS
    opening = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    out = chunk(opening, id=stream_id, prompt_token_ids=PROMPT_IDS) + b": keep-alive\n\n"
    for token in range(len(given_ids), len(pieces)):
        choice = {"delta": {"content": pieces[token]}, "token_ids": [token], "finish_reason": None}
        out += chunk(choice, id=stream_id)
    out += chunk({"delta": {}, "token_ids": [], "finish_reason": "stop"}, id=stream_id)
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": len(pieces), "total_tokens": 3 + len(pieces)}
        out += b"data: " + orjson.dumps({"id": stream_id, "model": "m", "choices": [], "usage": usage}) + b"\n\n"
    return out + b"data: [DONE]\n\n"


def receive(body: dict[str, Any], pieces: list[str], breaks: list[float], sizes: list[int]) -> bytes:
    """Everything the caller gets when connection k breaks after the share breaks[k] of its bytes."""
    progress = StreamProgress(body)
    sent, got = orjson.loads(progress.first_body()), b""
    for connection, share in enumerate([*breaks, 1.0]):
        wire = serve(pieces, sent, f"cmpl-{connection}")
        wire, at, turn = wire[: int(len(wire) * share)], 0, 0
        while at < len(wire):
            size = sizes[turn % len(sizes)]
            got, at, turn = got + progress.feed(wire[at : at + size]), at + size, turn + 1
        if progress.ended:
            return got
        if closing := progress.closing():
            return got + closing
        resumption = progress.resume_body()
        assert resumption is not None
        sent = orjson.loads(resumption)
    raise AssertionError("the last connection was whole")


def data_of(got: bytes) -> list[Any]:
    lines = [event.removeprefix(b"data: ") for event in got.split(b"\n\n") if event.startswith(b"data: ")]
    return [orjson.loads(line) if line != b"[DONE]" else "[DONE]" for line in lines]


pieces_of_text = st.lists(st.sampled_from(["a", "", "é", " word", "\n\n", "data: "]), min_size=1, max_size=12)
all_breaks = st.lists(st.floats(0.0, 1.0, exclude_max=True), max_size=4)
all_sizes = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@given(pieces_of_text, all_breaks, all_sizes, st.booleans())
def test_text_arrives_once_and_whole_with_one_id_and_one_end(
    pieces: list[str], breaks: list[float], sizes: list[int], usage: bool
) -> None:
    body: dict[str, Any] = {"model": "m", "stream": True}
    if usage:
        body["stream_options"] = {"include_usage": True}
    *events, end = data_of(receive(body, pieces, breaks, sizes))
    assert end == "[DONE]"
    assert "[DONE]" not in events
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "".join(pieces)
    assert len({event["id"] for event in events}) == 1
    assert sum("role" in delta for delta in deltas) == 1
    assert not any("token_ids" in choice for event in events for choice in event["choices"])
    counts = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    assert counts == ([len(pieces)] if usage else [])


@given(pieces_of_text, all_breaks, all_sizes)
def test_a_caller_that_asked_for_token_ids_gets_each_token_at_least_once_in_order(
    pieces: list[str], breaks: list[float], sizes: list[int]
) -> None:
    events = data_of(receive({"stream": True, "return_token_ids": True}, pieces, breaks, sizes))[:-1]
    ids = [token for event in events for choice in event["choices"] for token in choice.get("token_ids", ())]
    assert list(dict.fromkeys(ids)) == list(range(len(pieces)))
    assert events[0]["prompt_token_ids"] == PROMPT_IDS
