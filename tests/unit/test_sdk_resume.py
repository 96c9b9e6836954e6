"""Which streams go on after a break, and what is asked of the gateway then."""

from typing import Any

import orjson
import pytest

from agentserve.errors import TooLarge
from agentserve.sdk import resume
from agentserve.sdk.resume import StreamProgress


def event(**chunk: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "c", **chunk}) + b"\n\n"


def token(text: str, *ids: int, **choice: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "token_ids": list(ids), **choice}])


OPENING = event(prompt_token_ids=[5, 6], choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])


def test_the_first_request_asks_for_token_ids() -> None:
    body = {"model": "m", "stream": True}
    assert orjson.loads(StreamProgress(body).first_body()) == {**body, "return_token_ids": True}


def test_a_resumption_names_the_ids_whose_text_was_delivered() -> None:
    progress = StreamProgress({"model": "m", "stream": True})
    progress.feed(OPENING + token("a", 7) + token("b", 8, 9) + token("", 10) + token("lost", 11)[:-3])
    body = orjson.loads(progress.resume_body() or b"")
    assert body["agentserve"] == {"resume": {"prompt_token_ids": [5, 6], "token_ids": [7, 8, 9]}}
    assert body["model"] == "m"


def test_a_stream_without_delivered_text_starts_again() -> None:
    progress = StreamProgress({"stream": True})
    progress.feed(OPENING + token("", 7))
    assert orjson.loads(progress.resume_body() or b"") == {"stream": True, "return_token_ids": True}


def test_prompt_ids_inside_the_choice_are_understood_too() -> None:
    progress = StreamProgress({"stream": True, "prompt": "x"})
    passed = progress.feed(event(choices=[{"index": 0, "text": "a", "token_ids": [7], "prompt_token_ids": [5]}]))
    assert orjson.loads(passed[6:])["choices"] == [{"index": 0, "text": "a"}]
    resumption = orjson.loads(progress.resume_body() or b"")
    assert resumption["agentserve"]["resume"] == {"prompt_token_ids": [5], "token_ids": [7]}


@pytest.mark.parametrize(
    "sent",
    [
        event(choices=[{"index": 0, "delta": {"content": "no ids"}}]),
        event(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "token_ids": [7]}]),
        token("second choice", 7, index=1),
        token("with logprobs", 7, logprobs={"content": []}),
        b"data: not json\n\n",
    ],
)
def test_a_stream_that_cannot_be_continued_exactly_is_not_continued(sent: bytes) -> None:
    progress = StreamProgress({"stream": True})
    progress.feed(OPENING + sent)
    assert progress.resume_body() is None


def test_after_the_last_token_only_the_end_is_made_up() -> None:
    progress = StreamProgress({"stream": True})
    progress.feed(OPENING + token("a", 7, finish_reason="stop"))
    assert progress.resume_body() is None
    assert progress.closing() == b"data: [DONE]\n\n"


def test_an_error_of_the_engine_ends_the_stream_and_reaches_the_caller() -> None:
    progress = StreamProgress({"stream": True})
    error = event(error={"message": "out of memory", "code": "engine_failed"})
    assert progress.feed(OPENING + error).endswith(error)
    assert progress.ended


def test_a_gateway_that_says_it_stops_is_a_break_like_any_other() -> None:
    progress = StreamProgress({"stream": True})
    progress.feed(OPENING + token("a", 7))
    assert progress.feed(event(error={"message": "stopping", "code": "unavailable"}) + b"data: [DONE]\n\n") == b""
    assert not progress.ended
    assert progress.resume_body() is not None


def test_bytes_pass_unchanged_where_there_is_nothing_to_take_out() -> None:
    progress = StreamProgress({"stream": True, "return_token_ids": True})
    sent = b": ping\r\n\r\n" + OPENING.replace(b"\n", b"\r\n") + token("a", 7) + b"data: [DONE]\n\n"
    assert progress.feed(sent) == sent
    assert progress.ended


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "MAX_EVENT_BYTES", 100)
    with pytest.raises(TooLarge, match="100 bytes"):
        StreamProgress({"stream": True}).feed(b"data: " + b"x" * 100)
