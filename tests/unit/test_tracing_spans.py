"""What spans a run becomes, from journal events alone."""

import json

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from agentserve.errors import BadInput
from agentserve.journal import Kind, RunEvent
from agentserve.telemetry import names
from agentserve.telemetry.exporter import make_span_processor
from agentserve.telemetry.sampling import parse_traceparent, trace_id_of
from agentserve.telemetry.tracing import SpanSink
from tests.unit.made_up_run import (
    RUN,
    START_S,
    arrived,
    decided,
    dispatch,
    event,
    finished,
    first_token,
    submitted,
    whole_run,
)
from tests.unit.traced import Traced

CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def ns(at_s):
    return round((START_S + at_s) * 1e9)


def test_a_run_is_a_tree_of_workflow_steps_calls_and_phases():
    traced = Traced().take(whole_run())
    (root,) = traced.named("invoke_workflow researcher")
    assert root.parent is None
    assert sorted(s.name for s in traced.children_of(root)) == [
        "execute_tool fetch",
        "invoke_agent plan",
        "invoke_agent search",
        "invoke_agent search",
        "invoke_agent write",
    ]
    (plan,) = traced.named("invoke_agent plan")
    (chat,) = traced.children_of(plan)
    assert chat.name == "chat llama-3.1-8b"
    assert chat.kind is SpanKind.CLIENT
    assert [s.name for s in traced.children_of(chat)] == ["queue", "prefill", "kv_transfer", "decode"]
    assert {span.context.trace_id for span in traced.spans} == {trace_id_of(RUN)}


def test_spans_have_the_times_of_the_events():
    traced = Traced().take(whole_run())
    (root,) = traced.named("invoke_workflow researcher")
    assert (root.start_time, root.end_time) == (ns(0.0), ns(9.5))
    (transfer,) = traced.named("kv_transfer")
    assert (transfer.start_time, transfer.end_time) == (ns(0.7), ns(0.9))


def test_each_migration_is_a_span_with_source_target_and_cause():
    traced = Traced().take(whole_run())
    (move,) = traced.named("migration")
    assert dict(move.attributes) == {
        names.MIGRATION_SOURCE: "a100-1",
        names.MIGRATION_TARGET: "h200-1",
        names.MIGRATION_CAUSE: "late",
        names.MIGRATION_BY: "replay",
        names.REPLAYED_TOKENS: 87,
    }
    assert (move.start_time, move.end_time) == (ns(4.0), ns(4.4))


def test_a_migration_links_the_leg_that_it_left_and_the_one_it_led_to_and_that_one_the_first():
    traced = Traced().take(whole_run())
    (move,) = traced.named("migration")
    source = next(s for s in traced.named("decode") if s.end_time == ns(4.0))
    target = next(s for s in traced.named("decode") if s.start_time == ns(4.4))
    links = [(link.attributes[names.LINK], link.context.span_id) for link in move.links]
    assert links == [(names.SOURCE_LEG, source.context.span_id), (names.TARGET_LEG, target.context.span_id)]
    (link,) = target.links
    assert (link.attributes[names.LINK], link.context.span_id) == (names.CONTINUES, source.context.span_id)
    assert {one.context.trace_id for one in (*move.links, link)} == {move.context.trace_id}
    assert source.links == ()


def test_a_step_tells_its_plan_and_the_slack_before_and_after_it():
    """Its deadlines may move while it runs; what was planned is what was said first."""
    moved = event(
        Kind.STEP_DEADLINES,
        1.0,
        "plan",
        node="plan",
        target_deadline_s=START_S + 5.0,
        latest_deadline_s=START_S + 9.5,
        slack_s=2.5,
        predicted_s=1.2,
        downstream_s=6.0,
    )
    events = whole_run()
    known = Traced().take([*events[:5], moved, *events[5:]]).named("invoke_agent plan")[0].attributes
    assert (known[names.SLACK_BEFORE_S], known[names.PREDICTED_S]) == (3.0, 2.0)
    assert (known[names.TARGET_DEADLINE], known[names.LATEST_DEADLINE]) == (START_S + 5.0, START_S + 9.5)
    assert known[names.SLACK_AFTER_S] == pytest.approx(12.0 - 2.4 - 6.0)


def test_a_phase_compares_with_what_was_predicted_for_it():
    (plan,) = Traced().take(whole_run()).named("invoke_agent plan")
    traced = Traced().take(whole_run())
    (chat,) = traced.children_of(plan)
    told = {s.name: dict(s.attributes) for s in traced.children_of(chat)}
    assert told["queue"] == {}
    assert told["prefill"] == {
        names.INSTANCE: "h100-1",
        names.ATTEMPT: 1,
        names.PREDICTED_S: 0.3,
        names.PREDICTED_QUEUE_S: 0.0,
    }
    assert told["decode"] == {names.INSTANCE: "a100-1", names.ATTEMPT: 1, names.PREDICTED_S: 1.0}


def test_a_run_that_missed_its_slo_carries_its_blame():
    blame = {"reason": "tool", "step_id": "fetch", "node": "fetch", "lost_s": 1.5}
    end = event(Kind.RUN_FINISHED, 9.5, status="succeeded", e2e_s=9.5, attained=False, error=None, blame=blame)
    (root,) = Traced().take([*whole_run()[:-1], end]).named("invoke_workflow researcher")
    told = [root.attributes[name] for name in (names.BLAME, names.BLAME_STEP, names.BLAME_NODE, names.BLAME_LOST_S)]
    assert told == ["tool", "fetch", "fetch", 1.5]
    (kept,) = Traced().take(whole_run()).named("invoke_workflow researcher")
    assert names.BLAME not in kept.attributes


def test_a_chat_span_compares_what_was_predicted_with_what_came():
    (plan,) = Traced().take(whole_run()).named("invoke_agent plan")
    chat = next(
        s for s in Traced().take(whole_run()).named("chat llama-3.1-8b") if s.parent.span_id == plan.context.span_id
    )
    known = chat.attributes
    assert known[names.OPERATION] == "chat"
    assert known[names.REQUEST_MODEL] == "llama-3.1-8b"
    assert (known[names.INPUT_TOKENS], known[names.OUTPUT_TOKENS]) == (900, 150)
    assert (known[names.LENGTH_P10], known[names.LENGTH_P50], known[names.LENGTH_P90]) == (40.0, 120.0, 310.0)
    assert known[names.LENGTH_ACTUAL] == 150
    assert (known[names.PREFILL_INSTANCE], known[names.DECODE_INSTANCE], known[names.SPLIT]) == (
        "h100-1",
        "a100-1",
        True,
    )
    assert known[names.LENGTH_WITHIN] is True
    assert (known[names.SLACK_BEFORE_S], known[names.SLACK_AFTER_S]) == (1.5, pytest.approx(4.0 - 2.4))
    assert known[names.TARGET_DEADLINE] == START_S + 4.0
    assert (known[names.PREDICTED_TTFT_S], known[names.TTFT_S]) == (0.3, 0.8)
    assert (known[names.PREDICTED_FINISH], known[names.FINISH_ERROR_S]) == (START_S + 3.0, pytest.approx(-0.6))
    assert (known[names.PREDICTED_CACHED], known[names.CACHED_TOKENS]) == (0, 256)
    assert known[names.COST_GPU_S] == pytest.approx(2.2)


def test_a_decision_is_an_event_with_its_candidates_and_their_verdicts():
    chat = Traced().take(whole_run()).named("chat llama-3.1-8b")[0]
    decision = next(e for e in chat.events if e.name == names.DECISION_EVENT)
    assert decision.attributes[names.RULE] == "just enough: weakest of 2 in time"
    assert decision.attributes[names.CANDIDATES_TOTAL] == 5
    verdicts = [json.loads(candidate)["verdict"] for candidate in decision.attributes[names.CANDIDATES]]
    assert verdicts == ["chosen", "1.0 s late", "stronger than needed"]


def test_a_failed_attempt_is_an_event_of_its_call():
    chats = Traced().take(whole_run()).named("chat llama-3.1-8b")
    failed = [e for chat in chats for e in chat.events if e.name == names.ATTEMPT_FAILED_EVENT]
    assert [(e.attributes[names.INSTANCE], e.attributes[names.MESSAGE]) for e in failed] == [
        ("a100-2", "connection lost")
    ]


def test_failures_mark_call_step_and_run_as_errors():
    events = [
        submitted(),
        event(Kind.STEP_STARTED, 0.0, "plan", node="plan", kind="llm", parents=[]),
        arrived(0.0, "plan", "c", "plan"),
        finished(1.0, "plan", "c", outcome="failed", error="no instance serves it"),
        event(Kind.STEP_FINISHED, 1.0, "plan", node="plan", outcome="failed", error="no instance serves it"),
        event(Kind.RUN_FINISHED, 1.0, status="failed", e2e_s=1.0, attained=False, error="plan failed"),
    ]
    spans = [span for span in Traced().take(events).spans if span.name != "queue"]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 3
    assert spans[0].status.description == "no instance serves it"


def test_a_clients_traceparent_becomes_the_parent_of_the_run():
    events = [submitted(traceparent=CLIENT), *whole_run()[1:]]
    traced = Traced().take(events)
    (root,) = traced.named("invoke_workflow researcher")
    assert f"{root.context.trace_id:032x}" == CLIENT.split("-")[1]
    assert f"{root.parent.span_id:016x}" == CLIENT.split("-")[2]
    assert {span.context.trace_id for span in traced.spans} == {root.context.trace_id}


def test_a_call_with_a_traceparent_of_its_own_links_to_it():
    events = [submitted(), arrived(0.0, "plan", "c", "plan", traceparent=CLIENT), finished(1.0, "plan", "c")]
    chat = Traced().take(events).named("chat llama-3.1-8b")[0]
    assert [f"{link.context.span_id:016x}" for link in chat.links] == [CLIENT.split("-")[2]]


@pytest.mark.parametrize(
    "header",
    [None, "", "garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01"],
)
def test_an_invalid_traceparent_is_no_parent(header):
    assert parse_traceparent(header) is None


def test_two_gateways_give_one_trace_whichever_events_each_saw():
    events = whole_run()
    whole = {(s.name, s.context.span_id, s.parent and s.parent.span_id) for s in Traced().take(events).spans}
    cut = 10
    first, second = Traced().take(events[:cut]), Traced()
    second.sink.restore(events[:cut])
    second.take(events[cut:])
    parts = [(s.name, s.context.span_id, s.parent and s.parent.span_id) for s in (*first.spans, *second.spans)]
    assert sorted(parts, key=str) == sorted(whole, key=str)


def test_without_restore_the_spans_still_join_the_same_trace():
    traced = Traced().take(whole_run()[12:])
    assert {span.context.trace_id for span in traced.spans} == {trace_id_of(RUN)}
    (root,) = traced.named("invoke_workflow unknown")
    assert root.start_time == ns(0.0)


def test_the_traceparent_names_the_chat_span_while_the_call_lives():
    traced = Traced()
    traced.take([submitted(), arrived(0.0, "plan", "c", "plan")])
    header = traced.sink.traceparent("c")
    traced.take([finished(1.0, "plan", "c")])
    chat = traced.named("chat llama-3.1-8b")[0]
    assert header == f"00-{chat.context.trace_id:032x}-{chat.context.span_id:016x}-01"
    assert traced.sink.traceparent("c") is None


def test_without_a_processor_only_traceparents_are_made():
    sink = SpanSink()
    for one in [submitted(), arrived(0.0, "plan", "c", "plan")]:
        sink.record(one)
    assert sink.traceparent("c").startswith(f"00-{trace_id_of(RUN):032x}-")
    for one in [finished(1.0, "plan", "c"), whole_run()[-1]]:
        sink.record(one)
    assert sink.traceparent("c") is None


def test_a_call_that_outlives_its_cancelled_run_has_its_span_too():
    events = [
        submitted(),
        event(Kind.STEP_STARTED, 0.0, "plan", node="plan", kind="llm", parents=[]),
        arrived(0.0, "plan", "c", "plan"),
        event(Kind.RUN_FINISHED, 1.0, status="cancelled", e2e_s=1.0, attained=False, error=None),
        finished(1.2, "plan", "c", outcome="cancelled"),
    ]
    traced = Traced().take(events)
    assert sorted(span.name for span in traced.spans) == [
        "chat llama-3.1-8b",
        "invoke_agent plan",
        "invoke_workflow researcher",
        "queue",
    ]
    traced.take([event(Kind.STEP_FINISHED, 1.3, "plan", node="plan", outcome="cancelled", error=None)])
    assert len(traced.spans) == 4


def test_runs_without_an_end_are_bounded_in_number_and_sent_as_incomplete():
    traced = Traced(max_open_runs=3)
    for number in range(5):
        run_id = f"r{number}"
        traced.sink.record(
            RunEvent(run_id=run_id, kind=Kind.RUN_SUBMITTED, at_s=START_S + number, data={"workflow": "w"})
        )
        traced.sink.record(
            RunEvent(
                run_id=run_id,
                kind=Kind.CALL_ARRIVED,
                at_s=START_S + number,
                request_id=f"c{number}",
                data={"model": "m"},
            )
        )
    roots = traced.named("invoke_workflow w")
    assert [root.attributes[names.RUN_ID] for root in roots] == ["r0", "r1"]
    assert all(root.attributes[names.INCOMPLETE] for root in roots)
    assert traced.sink.traceparent("c0") is None
    assert traced.sink.traceparent("c4") is not None


def test_runs_without_an_end_are_bounded_in_age():
    traced = Traced(max_age_s=60.0)
    for number, at_s in enumerate((0.0, 30.0, 90.0)):
        traced.sink.record(
            RunEvent(run_id=f"r{number}", kind=Kind.RUN_SUBMITTED, at_s=START_S + at_s, data={"workflow": "w"})
        )
    assert [span.attributes[names.RUN_ID] for span in traced.named("invoke_workflow w")] == ["r0", "r1"]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("data", [{}, {"reason": 3, "candidates": None}, {"type": "dispatch", "attempt": "x"}])
def test_malformed_events_never_raise(kind, data, caplog):
    traced = Traced()
    for step, request in ((None, None), ("s", None), ("s", "c"), (None, "c")):
        traced.sink.record(RunEvent(run_id=RUN, kind=kind, at_s=START_S, step_id=step, request_id=request, data=data))
    traced.take(whole_run())
    assert traced.named("invoke_workflow researcher") or kind is Kind.RUN_FINISHED


def test_a_flood_of_events_of_one_call_is_bounded():
    traced = Traced()
    traced.take([submitted(), arrived(0.0, "s", "c", "n"), decided(0.0, "s", "c", dispatch("c", 1, "a", "a"))])
    traced.take(first_token(0.1 + i / 1e4, "s", "c", "a") for i in range(5000))
    traced.take([finished(9.0, "s", "c")])
    (chat,) = traced.named("chat llama-3.1-8b")
    assert len(chat.events) <= 500
    assert chat.end_time == ns(9.0)


def test_no_endpoint_means_nothing_that_sends():
    assert make_span_processor(None) is None
    assert make_span_processor("") is None


def test_a_bad_endpoint_is_named():
    with pytest.raises(BadInput, match="localhost:4317"):
        make_span_processor("localhost:4317")
