"""Which runs' spans are sent, and when."""

import random

import pytest

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry import names
from agentserve.telemetry.sampling import is_sent_at_once, parse_traceparent, trace_id_of
from tests.unit.made_up_run import RUN, START_S, arrived, event, finished, submitted, whole_run
from tests.unit.traced import Traced

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
WANTED, UNWANTED = f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-00"


def tree(spans):
    return sorted((s.name, s.context.span_id, s.start_time, s.end_time, str(dict(s.attributes))) for s in spans)


def ended(status="succeeded", attained=True, **data):
    return event(Kind.RUN_FINISHED, 9.5, status=status, e2e_s=9.5, attained=attained, error=None, **data)


def run_that(end, **data):
    return [submitted(**data), *whole_run()[1:-1], end]


@pytest.mark.parametrize(
    "end",
    [ended(attained=False), ended("failed", False), ended("failed", None), ended("cancelled", False)],
    ids=["late", "failed", "failed without an SLO", "cancelled with one"],
)
def test_late_and_failed_runs_are_sent_whole_whatever_the_share(end):
    events = run_that(end)
    assert tree(Traced(share=0.0).take(events).spans) == tree(Traced(share=1.0).take(events).spans)


@pytest.mark.parametrize("end", [ended(), ended("cancelled", None), ended(attained=None)])
def test_other_runs_outside_the_share_are_not_sent_at_all(end):
    traced = Traced(share=0.0).take(run_that(end))
    late_call = [arrived(9.6, "write", "c-x", "write"), finished(9.7, "write", "c-x")]
    assert traced.take(late_call).spans == ()
    assert traced.sink.traceparent("c-w") is None


def test_nothing_of_a_run_outside_the_share_is_sent_before_its_end():
    traced = Traced(share=0.0).take(run_that(ended(attained=False))[:-1])
    assert traced.spans == ()
    assert len(Traced(share=1.0).take(run_that(ended())[:-1]).spans) > 10


def test_a_callers_word_comes_before_the_share():
    assert Traced(share=0.0).take(run_that(ended(), traceparent=WANTED)).spans
    assert Traced(share=1.0).take(run_that(ended(), traceparent=UNWANTED)).spans == ()


def test_a_late_run_of_a_caller_that_does_not_sample_is_sent_below_the_callers_span():
    spans = Traced().take(run_that(ended(attained=False), traceparent=UNWANTED)).spans
    root = next(span for span in spans if span.name.startswith("invoke_workflow"))
    assert f"{root.parent.span_id:016x}" == UNWANTED.split("-")[2]
    assert len(spans) == len(Traced().take(run_that(ended(attained=False))).spans)


@pytest.mark.parametrize(
    ("share", "header", "flag"),
    [(1.0, None, "01"), (0.0, None, "00"), (0.0, WANTED, "01"), (1.0, UNWANTED, "00")],
)
def test_engines_are_told_to_record_only_what_is_sent_in_any_case(share, header, flag):
    traced = Traced(share=share).take([submitted(traceparent=header), arrived(0.0, "plan", "c", "plan")])
    assert traced.sink.traceparent("c").endswith(f"-{flag}")


def test_the_trace_id_alone_decides_and_a_larger_share_only_adds():
    dice = random.Random(7)
    traces = [dice.getrandbits(128) for _ in range(4000)]
    kept = {share: {t for t in traces if is_sent_at_once(None, t, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert [len(kept[0.0]), len(kept[1.0])] == [0, 4000]
    assert kept[0.1] < kept[0.5]
    assert 300 < len(kept[0.1]) < 500
    assert 1850 < len(kept[0.5]) < 2150


def test_run_ids_spread_evenly_over_the_share():
    kept = sum(is_sent_at_once(None, trace_id_of(f"run-{number}"), 0.2) for number in range(4000))
    assert 680 < kept < 920


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_only_the_sampled_bit_of_a_callers_flags_counts(flags, sampled):
    parent = parse_traceparent(f"00-{TRACE}-00f067aa0ba902b7-{flags}")
    assert is_sent_at_once(parent, parent.trace_id, 0.5) is sampled


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_gateway_that_takes_over_completes_the_trace_without_sending_a_span_twice(share):
    events, cut = run_that(ended(attained=False)), 20
    first, second = Traced(share=share).take(events[:cut]), Traced(share=share)
    second.sink.restore(events[:cut])
    second.take(events[cut:])
    assert tree([*first.spans, *second.spans]) == tree(Traced().take(events).spans)


def test_what_is_held_back_is_bounded_and_what_falls_out_is_sent():
    """No late run may be lost to the bound: the oldest one is sent without waiting for its end."""
    traced = Traced(share=0.0, max_held_events=len(run_that(ended())) + 5)
    other = [RunEvent(run_id="b", kind=Kind.RUN_SUBMITTED, at_s=START_S, data={"workflow": "w"})]
    other += [
        RunEvent(run_id="b", kind=kind, at_s=START_S + at_s, step_id=f"s{at_s}", data={"node": "n", "kind": "tool"})
        for at_s in range(9)
        for kind in (Kind.STEP_STARTED, Kind.STEP_FINISHED)
    ]
    traced.take([*run_that(ended())[:-1], *other])
    sent = {span.attributes[names.RUN_ID] for span in traced.spans if names.RUN_ID in span.attributes}
    assert sent == {RUN}


def test_a_run_without_an_end_is_sent_as_incomplete():
    traced = Traced(share=0.0, max_age_s=60.0).take(run_that(ended())[:-1])
    traced.sink.record(RunEvent(run_id="later", kind=Kind.RUN_SUBMITTED, at_s=START_S + 100.0, data={}))
    (root,) = [span for span in traced.spans if span.name.startswith("invoke_workflow")]
    assert root.attributes[names.INCOMPLETE] is True
