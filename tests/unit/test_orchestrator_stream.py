"""One stream over several engines: the cases that a reader would ask about."""

from typing import Any

from agentserve.engines.adapter import Delta
from agentserve.orchestrator.request import CHAT, CallRequest, Resume, migration_refusal
from agentserve.orchestrator.stops import StopMatcher
from agentserve.orchestrator.stream import JoinedStream, Piece


def make(refusal: str | None = None, *, resume: Resume | None = None, **body: Any) -> JoinedStream:
    request = CallRequest(
        request_id="r",
        path=CHAT,
        body=body,
        model="m",
        run_id="run",
        step_id=None,
        workflow="w",
        node="n",
        resume=resume,
    )
    return JoinedStream(request, refusal)


def delta(text: str, *ids: int, finish: str | None = None, prompt: tuple[int, ...] | None = None) -> Delta:
    choice = {"index": 0, "delta": {"content": text}}
    return Delta(text=text, token_ids=ids, finish_reason=finish, prompt_ids=prompt, choice=choice)


def test_the_first_attempt_sends_the_body_and_a_later_one_replays_prompt_and_emitted_ids() -> None:
    stream = make(max_tokens=10, min_tokens=4)
    assert stream.replay_ids is None
    stream.feed(delta("a", 1, prompt=(5, 6)))
    stream.feed(delta("b", 2))
    stream.cut()
    assert stream.replay_ids == (5, 6, 1, 2)
    assert (stream.max_tokens_left, stream.min_tokens_left) == (8, 2)


def test_tokens_of_an_incomplete_character_are_neither_shown_nor_replayed() -> None:
    stream = make(return_token_ids=True)
    assert stream.feed(delta("a", 1, prompt=(5,))) == Piece("a", (1,))
    assert stream.feed(delta("", 2)) is None
    stream.cut()
    assert stream.replay_ids == (5, 1)
    assert stream.feed(delta("", 2)) is None
    assert stream.feed(delta("é", 3)) == Piece("é", (2, 3))


def test_text_that_may_begin_a_stop_string_is_held_with_its_tokens() -> None:
    stream = make(stop=["STOP"], return_token_ids=True)
    assert stream.feed(delta("go S", 1, prompt=(5,))) is None
    stream.cut()
    assert stream.feed(delta("TEP", 2)) == Piece("go STEP", (1, 2))
    assert stream.feed(delta(" ST", 3)) is None
    stream.cut()
    assert stream.feed(delta("OP now", 4)) == Piece(" ", (3, 4), "stop")
    assert stream.stopped


def test_an_engine_is_not_told_of_stop_strings_that_we_find_ourselves() -> None:
    assert make(stop="x").owns_stops
    assert not make("tools", stop="x").owns_stops


def test_a_stop_string_before_min_tokens_does_not_stop() -> None:
    stream = make(stop="x", min_tokens=2)
    assert stream.feed(delta("x", 1, prompt=(5,))) == Piece("x")
    assert stream.feed(delta("x", 2)) == Piece("x")
    assert stream.feed(delta("x", 3)) == Piece("", (), "stop")


def test_the_stop_string_stays_when_the_client_wants_it() -> None:
    stream = make(stop="END", include_stop_str_in_output=True)
    assert stream.feed(delta("the END.", 1, prompt=(5,))) == Piece("the END", (), "stop")


def test_usage_is_the_engines_own_until_the_stream_is_cut() -> None:
    reported = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "x": 1}
    stream = make()
    stream.feed(delta("a", 1, finish="stop", prompt=(5,)))
    stream.feed(Delta(usage=reported))
    assert stream.usage() == reported


def test_usage_after_a_cut_counts_the_original_prompt_and_every_token() -> None:
    stream = make()
    stream.feed(
        Delta(
            text="a",
            token_ids=(1,),
            prompt_ids=(5, 6),
            choice={},
            usage={"prompt_tokens_details": {"cached_tokens": 1}},
        )
    )
    stream.cut()
    stream.feed(delta("b", 2, finish="stop", prompt=(5, 6, 1)))
    stream.feed(Delta(usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}))
    assert stream.usage() == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_usage_after_a_cut_has_the_tokens_of_unknown_ids_as_the_engine_counts_them() -> None:
    stream = make()
    stream.feed(delta("ab", 1, 2, prompt=(5,)))
    stream.cut()
    stream.feed(delta("c", 3))
    stream.feed(delta("🙂"))  # three tokens, whose ids are not known
    stream.feed(delta("", finish="length"))
    stream.feed(Delta(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}))
    assert stream.usage() == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}


def test_a_budget_that_was_used_up_before_the_cut_needs_no_engine() -> None:
    stream = make(max_tokens=2)
    stream.feed(delta("a", 1, prompt=(5,)))
    assert stream.finish_if_exhausted() is None
    stream.feed(delta("b", 2))
    stream.cut()
    assert stream.finish_if_exhausted() == Piece("", (), "length")


def test_a_resumed_stream_replays_even_if_nothing_was_received() -> None:
    stream = make(resume=Resume((5, 6), ()))
    assert stream.replay_ids == (5, 6)
    assert stream.can_go_on


def test_what_an_engines_parser_made_binds_the_call_to_that_engine() -> None:
    stream = make()
    thought = {"index": 0, "delta": {"reasoning_content": "hm"}}
    piece = stream.feed(Delta(token_ids=(1,), prompt_ids=(5,), choice=thought))
    assert piece is not None
    assert piece.choice == thought
    assert stream.refusal == "the engine parses its output"
    assert not stream.can_go_on


def test_text_without_token_ids_cannot_go_on_elsewhere() -> None:
    stream = make()
    stream.feed(Delta(text="a", choice={"delta": {"content": "a"}}))
    assert not stream.can_go_on
    stream.restart()
    assert stream.can_go_on
    assert stream.output_tokens == 0


def test_a_passed_through_stream_hands_on_the_engines_choices() -> None:
    stream = make("several choices", n=2)
    first = {"index": 1, "delta": {"content": "a"}}
    piece = stream.feed(Delta(text="a", choice=first))
    assert piece is not None
    assert piece.choice is first


def test_a_stop_string_is_found_across_any_number_of_pieces() -> None:
    matcher = StopMatcher(("abc",))
    assert matcher.feed("xa") is None
    assert matcher.held == 1
    assert matcher.feed("b") is None
    assert matcher.feed("c!") == (-2, 1)


def test_the_stop_string_that_ends_first_wins() -> None:
    assert StopMatcher(("bcd", "c")).feed("abcd") == (2, 3)


def test_what_may_move_and_what_may_not() -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    assert migration_refusal(CHAT, chat) is None
    assert migration_refusal(CHAT, {**chat, "response_format": {"type": "text"}, "tool_choice": "none"}) is None
    assert migration_refusal(CHAT, {**chat, "seed": 1}) is None
    refused = [
        {"n": 2},
        {"logprobs": True},
        {"logprobs": 0},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a+"},
        {"tools": [{}]},
        {"tool_choice": "required"},
        {"presence_penalty": 0.5},
        {"best_of": 2},
        {"echo": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ]
    assert all(migration_refusal(CHAT, {**chat, **extra}) for extra in refused)
    assert migration_refusal("/v1/completions", {"prompt": ["a", "b"]}) == "several prompts"
    assert migration_refusal("/v1/completions", {"prompt": [1, 2]}) is None
