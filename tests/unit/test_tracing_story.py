"""How journal events are read into the story of a run."""

from agentserve.journal import Kind
from agentserve.telemetry.story import Phase, event_from_plain, tell_call, tell_run
from tests.unit.made_up_run import (
    RUN,
    START_S,
    arrived,
    decided,
    dispatch,
    event,
    finished,
    first_token,
    migrate,
    run_still_going,
    whole_run,
)


def phases(call):
    return [
        (
            p.phase.value,
            round(p.start_s - START_S, 3),
            None if p.end_s is None else round(p.end_s - START_S, 3),
            p.instance,
        )
        for p in call.phases
    ]


def calls_of(story):
    return {call.request_id: call for step in story.steps for call in step.calls}


def test_a_split_call_queues_prefills_transfers_and_decodes():
    call = calls_of(tell_run(whole_run()))["c-plan"]
    assert phases(call) == [
        ("queue", 0.1, 0.2, None),
        ("prefill", 0.2, 0.7, "h100-1"),
        ("transfer", 0.7, 0.9, "a100-1"),
        ("decode", 0.9, 2.4, "a100-1"),
    ]
    assert call.split
    assert not call.migrations


def test_a_migration_lasts_from_its_decision_to_the_targets_first_token():
    call = calls_of(tell_run(whole_run()))["c-a"]
    assert phases(call)[-3:] == [
        ("decode", 3.0, 4.0, "a100-1"),
        ("migration", 4.0, 4.4, "h200-1"),
        ("decode", 4.4, 5.5, "h200-1"),
    ]
    (move,) = call.migrations
    assert (move.source, move.target, move.cause, move.replayed_tokens) == ("a100-1", "h200-1", "late", 87)
    assert round(move.end_s - move.start_s, 3) == 0.4


def test_a_migration_told_after_its_first_token_is_the_same_migration():
    events = [
        arrived(0.0, "s", "c", "n"),
        decided(0.0, "s", "c", dispatch("c", 1, "a", "a")),
        first_token(0.5, "s", "c", "a"),
        decided(1.0, "s", "c", migrate("c", 2, "a", "b")),
        first_token(1.4, "s", "c", "b"),
        event(Kind.CALL_MIGRATED, 1.4, "s", "c", source="a", target="b", cause="late", replayed_tokens=9),
        finished(2.0, "s", "c"),
    ]
    call = tell_call(events)
    (move,) = call.migrations
    assert (move.cause, move.replayed_tokens, round(move.end_s - START_S, 3)) == ("late", 9, 1.4)
    assert [p.phase for p in call.phases][-2:] == [Phase.MIGRATION, Phase.DECODE]


def test_a_failed_attempt_queues_again_and_prefills_elsewhere():
    call = calls_of(tell_run(whole_run()))["c-b"]
    assert phases(call) == [
        ("queue", 2.4, 2.45, None),
        ("prefill", 2.45, 3.2, "a100-2"),
        ("queue", 3.2, 3.2, None),
        ("prefill", 3.2, 3.6, "h100-1"),
        ("decode", 3.6, 5.0, "h100-1"),
    ]
    assert call.attempts == 2
    assert [(instance, error) for _, instance, error in call.failures] == [("a100-2", "connection lost")]


def test_a_move_after_a_lost_instance_counts_as_a_migration_from_its_new_dispatch():
    events = [
        arrived(0.0, "s", "c", "n"),
        decided(0.0, "s", "c", dispatch("c", 1, "a", "a")),
        first_token(0.5, "s", "c", "a"),
        event(Kind.CALL_ATTEMPT_FAILED, 1.0, "s", "c", instance="a", error="lost", output_tokens=40),
        decided(1.1, "s", "c", dispatch("c", 2, "b", "b")),
        first_token(1.5, "s", "c", "b"),
        event(Kind.CALL_MIGRATED, 1.5, "s", "c", source="a", target="b", cause="lost", replayed_tokens=40),
        finished(2.0, "s", "c"),
    ]
    (move,) = tell_call(events).migrations
    assert (move.source, move.cause, round(move.start_s - START_S, 3), round(move.end_s - START_S, 3)) == (
        "a",
        "lost",
        1.1,
        1.5,
    )


def test_a_refused_migration_leaves_the_call_decoding_where_it_was():
    events = [
        arrived(0.0, "s", "c", "n"),
        decided(0.0, "s", "c", dispatch("c", 1, "a", "a")),
        first_token(0.5, "s", "c", "a"),
        decided(1.0, "s", "c", migrate("c", 2, "a", "b")),
        event(Kind.CALL_MIGRATION_REFUSED, 1.0, "s", "c", reason="guided decoding"),
        finished(2.0, "s", "c"),
    ]
    call = tell_call(events)
    assert phases(call)[-1] == ("decode", 0.5, 2.0, "a")
    assert call.migrations == []
    assert [reason for _, reason in call.refusals] == ["guided decoding"]


def test_steps_keep_their_last_deadlines_parents_and_outcome():
    story = tell_run(whole_run())
    assert [step.step_id for step in story.steps] == ["plan", "search-a", "search-b", "fetch", "write"]
    write = story.steps[-1]
    assert (write.kind, write.parents, write.outcome) == ("llm", ("fetch",), "ok")
    assert write.target_deadline_s == START_S + 11.0
    assert story.steps[3].kind == "tool"


def test_a_journal_that_lost_its_oldest_events_is_still_told():
    events = whole_run()
    for start in range(1, len(events)):
        story = tell_run(events[start:])
        assert story.run_id == RUN
        assert story.e2e_s == 9.5
        assert story.submitted_s <= START_S + 9.5


def test_what_still_runs_has_no_end():
    story = tell_run(run_still_going())
    assert story.finished_s is None
    assert story.steps[-1].finished_s is None
    assert story.steps[-1].calls[0].phases[-1].end_s is None


def test_an_event_from_the_rest_answer_is_the_event():
    for one in whole_run():
        plain = {name: getattr(one, name) for name in ("run_id", "at_s", "step_id", "request_id", "data")}
        assert event_from_plain(RUN, {**plain, "kind": str(one.kind)}) == one
