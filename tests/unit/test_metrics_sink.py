"""What Prometheus reads of a run's journal."""

import pytest
from prometheus_client import generate_latest

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.metrics import BoundedLabel, MetricSink
from tests.unit.made_up_run import START_S, arrived, decided, dispatch, event, finished, migrate, submitted, whole_run


def value(sink, name, **labels):
    return sink.registry.get_sample_value(name, labels)


@pytest.fixture
def sink():
    metrics = MetricSink()
    for one in whole_run():
        metrics.record(one)
    return metrics


CALL = {"workflow": "researcher", "model": "llama-3.1-8b"}


def test_calls_runs_and_tokens_are_counted_by_outcome(sink):
    assert value(sink, "agentserve_calls_total", **CALL, outcome="ok") == 4
    assert value(sink, "agentserve_runs_total", workflow="researcher", status="succeeded", attained="true") == 1
    assert value(sink, "agentserve_tokens_total", **CALL, kind="output") == 600


def test_latencies_are_those_of_the_journal(sink):
    assert value(sink, "agentserve_time_to_first_token_seconds_count", **CALL) == 4
    assert value(sink, "agentserve_time_to_first_token_seconds_sum", **CALL) == pytest.approx(0.8 + 1.2 + 0.6 + 0.4)
    assert value(sink, "agentserve_call_queue_seconds_sum", **CALL) == pytest.approx(0.1 + 0.05 + 0.05, abs=1e-6)
    assert value(sink, "agentserve_call_queue_seconds_count", **CALL) == 4
    assert value(sink, "agentserve_run_e2e_seconds_sum", workflow="researcher") == 9.5


def test_dispatches_moves_and_failures_are_counted(sink):
    assert value(sink, "agentserve_dispatches_total", policy="agentserve", split="true") == 1
    assert value(sink, "agentserve_dispatches_total", policy="agentserve", split="false") == 4
    assert value(sink, "agentserve_migrations_total", cause="late", outcome="done") == 1
    assert value(sink, "agentserve_attempts_failed_total") == 1


def test_the_slack_of_a_step_is_what_its_target_left_at_its_end(sink):
    def up_to(seconds):
        return value(sink, "agentserve_step_slack_seconds_bucket", workflow="researcher", le=seconds)

    # plan ended 1.6 s before its target, search-a 0.5 s, search-b 1.0 s, write 1.5 s; the tool step has none
    assert [up_to(le) for le in ("0.0", "0.5", "1.0", "2.0", "+Inf")] == [0, 1, 2, 4, 4]


def test_a_step_that_failed_or_has_no_deadline_counts_no_slack():
    sink = MetricSink()
    for kind, step, data in (
        (Kind.STEP_DEADLINES, "a", {"target_deadline_s": START_S + 4.0}),
        (Kind.STEP_FINISHED, "a", {"outcome": "failed"}),
        (Kind.STEP_DEADLINES, "b", {"target_deadline_s": START_S + 4.0}),
        (Kind.STEP_DEADLINES, "b", {"target_deadline_s": None}),
        (Kind.STEP_FINISHED, "b", {"outcome": "ok"}),
    ):
        sink.record(event(kind, 1.0, step, **data))
    assert value(sink, "agentserve_step_slack_seconds_count", workflow="unknown") is None


def test_lengths_are_held_against_the_first_dispatch(sink):
    assert value(sink, "agentserve_output_length_ratio_count", **CALL) == 4
    assert value(sink, "agentserve_output_length_ratio_sum", **CALL) == pytest.approx(4 * 150 / 120)
    assert value(sink, "agentserve_length_predictions_total", **CALL, interval="inside") == 4


@pytest.mark.parametrize(("tokens", "interval"), [(39, "below"), (40, "inside"), (310, "inside"), (311, "above")])
def test_a_length_is_inside_below_or_above_its_interval(tokens, interval):
    sink = MetricSink()
    sink.record(arrived(0.0, "s", "c", "plan"))
    sink.record(decided(0.1, "s", "c", dispatch("c", 1, "a", "a")))
    sink.record(decided(0.2, "s", "c", {**dispatch("c", 2, "b", "b"), "reason": {"policy": "p", "length": None}}))
    sink.record(finished(1.0, "s", "c", output_tokens=tokens, ttft_s=0.1))
    counted = {
        where: value(
            sink, "agentserve_length_predictions_total", workflow="unknown", model="llama-3.1-8b", interval=where
        )
        for where in ("below", "inside", "above")
    }
    assert counted == {"below": None, "inside": None, "above": None, interval: 1}


def test_a_cancelled_call_says_nothing_of_its_length():
    sink = MetricSink()
    sink.record(arrived(0.0, "s", "c", "plan"))
    sink.record(decided(0.1, "s", "c", dispatch("c", 1, "a", "a")))
    sink.record(finished(1.0, "s", "c", outcome="cancelled", output_tokens=5, ttft_s=0.1))
    assert value(sink, "agentserve_output_length_ratio_count", workflow="unknown", model="llama-3.1-8b") is None


MOVE = decided(1.0, "s", "c", migrate("c", 2, "a", "b"))


@pytest.mark.parametrize(
    ("after", "outcomes"),
    [
        ([event(Kind.CALL_MIGRATED, 1.1, "s", "c", cause="late")], {"done": 1}),
        ([event(Kind.CALL_MIGRATION_REFUSED, 1.1, "s", "c", reason="it ends")], {"refused": 1}),
        ([event(Kind.CALL_ATTEMPT_FAILED, 1.1, "s", "c", instance="b")], {"failed": 1}),
        ([finished(1.1, "s", "c", ttft_s=0.1)], {"void": 1}),
        ([MOVE, event(Kind.CALL_MIGRATED, 1.2, "s", "c", cause="late")], {"void": 1, "done": 1}),
        ([event(Kind.CALL_MIGRATED, 1.1, "s", "c", cause="late"), finished(1.5, "s", "c", ttft_s=0.1)], {"done": 1}),
    ],
    ids=lambda given: "" if isinstance(given, list) else "-".join(given),
)
def test_every_decided_move_is_counted_once_by_cause_and_outcome(after, outcomes):
    sink = MetricSink()
    for one in (arrived(0.0, "s", "c", "plan"), decided(0.1, "s", "c", dispatch("c", 1, "a", "a")), MOVE, *after):
        sink.record(one)
    counted = {
        outcome: number
        for outcome in ("done", "refused", "failed", "void")
        if (number := value(sink, "agentserve_migrations_total", cause="late", outcome=outcome))
    }
    assert counted == outcomes


def test_a_missed_run_is_counted_by_what_lost_the_time():
    sink = MetricSink()
    sink.record(submitted())
    blame = {"reason": "queue_wait", "step_id": "plan", "node": "plan", "lost_s": 9.0}
    sink.record(event(Kind.RUN_FINISHED, 20.0, status="succeeded", e2e_s=20.0, attained=False, blame=blame))
    for attained in (True, None):
        sink.record(submitted())
        sink.record(event(Kind.RUN_FINISHED, 20.0, status="succeeded", e2e_s=20.0, attained=attained))
    missed = [
        sample
        for family in sink.registry.collect()
        for sample in family.samples
        if sample.name.endswith("missed_runs_total") and sample.value
    ]
    assert [(sample.labels, sample.value) for sample in missed] == [
        ({"workflow": "researcher", "blame": "queue_wait"}, 1)
    ]


def test_the_first_missed_run_of_a_workflow_is_a_step_from_zero():
    sink = MetricSink()
    sink.record(submitted())
    assert value(sink, "agentserve_missed_runs_total", workflow="researcher", blame="tool") == 0
    assert value(sink, "agentserve_runs_total", workflow="researcher", status="succeeded", attained="false") == 0


def test_without_blame_a_missed_run_is_counted_as_unknown():
    sink = MetricSink()
    sink.record(submitted())
    sink.record(event(Kind.RUN_FINISHED, 20.0, status="failed", e2e_s=20.0, attained=False))
    assert value(sink, "agentserve_missed_runs_total", workflow="researcher", blame="unknown") == 1


def test_a_run_of_another_gateway_is_known_but_not_counted_again():
    sink, events = MetricSink(), whole_run()
    sink.restore(events[:15])
    assert value(sink, "agentserve_live_runs") == 1
    assert value(sink, "agentserve_calls_total", **CALL, outcome="ok") is None
    sink.record(events[-1])
    assert value(sink, "agentserve_runs_total", workflow="researcher", status="succeeded", attained="true") == 1


def test_times_of_decisions_are_kept_by_event():
    sink = MetricSink()
    for took_s in (0.001, 0.003):
        sink.handled("RequestArrived", took_s)
    assert value(sink, "agentserve_decision_seconds_sum", event="RequestArrived") == pytest.approx(0.004)


def test_words_that_nobody_chose_become_other():
    sink = MetricSink()
    sink.record(event(Kind.CALL_MIGRATED, 1.1, "s", "c", cause="x" * 500))
    sink.record(decided(0.0, "s", "c", {"type": "reject", "refusal": "y" * 500, "reason": {"policy": "p"}}))
    assert value(sink, "agentserve_migrations_total", cause="other", outcome="done") == 1
    assert value(sink, "agentserve_rejections_total", policy="p", refusal="other") == 1


def test_live_calls_and_runs_are_those_without_an_end():
    sink, events = MetricSink(), whole_run()
    for one in events[:15]:
        sink.record(one)
    assert value(sink, "agentserve_live_runs") == 1
    assert value(sink, "agentserve_live_calls") == 2
    for one in events[15:]:
        sink.record(one)
    assert value(sink, "agentserve_live_runs") == 0
    assert value(sink, "agentserve_live_calls") == 0


def test_a_rejected_call_is_counted_with_its_reason():
    sink = MetricSink()
    reason = {"policy": "agentserve", "rule": "no instance"}
    sink.record(decided(0.0, "s", "c", {"type": "reject", "refusal": "no_instance", "reason": reason}))
    assert value(sink, "agentserve_rejections_total", policy="agentserve", refusal="no_instance") == 1


def test_a_call_that_outlives_its_run_is_counted_for_the_runs_workflow():
    sink = MetricSink()
    for kind, data in (
        (Kind.RUN_SUBMITTED, {"workflow": "w"}),
        (Kind.CALL_ARRIVED, {"model": "m"}),
        (Kind.RUN_FINISHED, {"status": "cancelled", "e2e_s": 1.0, "attained": None}),
        (Kind.CALL_FINISHED, {"outcome": "cancelled", "e2e_s": 1.0}),
    ):
        sink.record(RunEvent(run_id="r", request_id="c", kind=kind, at_s=START_S, data=data))
    assert value(sink, "agentserve_calls_total", workflow="w", model="m", outcome="cancelled") == 1


def test_the_guessed_prompt_of_a_refused_call_is_not_counted():
    sink = MetricSink()
    for kind, data in (
        (Kind.RUN_SUBMITTED, {"workflow": "w"}),
        (Kind.CALL_ARRIVED, {"model": "m"}),
        (Kind.CALL_FINISHED, {"outcome": "failed", "prompt_tokens": 500_000, "ttft_s": None}),
    ):
        sink.record(RunEvent(run_id="r", request_id="c", kind=kind, at_s=START_S, data=data))
    assert value(sink, "agentserve_calls_total", workflow="w", model="m", outcome="failed") == 1
    assert value(sink, "agentserve_tokens_total", workflow="w", model="m", kind="prompt") is None


def test_workflow_labels_are_bounded():
    sink = MetricSink(max_workflows=3)
    for number in range(10):
        for kind, data in (
            (Kind.RUN_SUBMITTED, {"workflow": f"w{number}"}),
            (Kind.RUN_FINISHED, {"status": "succeeded", "e2e_s": 1.0, "attained": None}),
        ):
            sink.record(RunEvent(run_id=f"r{number}", kind=kind, at_s=START_S, data=data))
    counted = {label: value(sink, "agentserve_runs_total", workflow=label, status="succeeded", attained="none")
               for label in ("w0", "w1", "w2", "w3", "other")}  # fmt: skip
    assert counted == {"w0": 1, "w1": 1, "w2": 1, "w3": None, "other": 7}


def test_a_bounded_label_keeps_what_it_has_seen():
    label = BoundedLabel(1)
    assert [label.of(v) for v in ("a", "b", "a", None, "x" * 100)] == ["a", "other", "a", "other", "other"]


def test_live_runs_that_never_end_are_bounded():
    sink = MetricSink(max_live=5)
    for number in range(20):
        sink.record(RunEvent(run_id=f"r{number}", kind=Kind.RUN_SUBMITTED, at_s=START_S, data={"workflow": "w"}))
    assert value(sink, "agentserve_live_runs") == 5


def test_the_text_is_prometheus_exposition(sink):
    text = generate_latest(sink.registry).decode()
    assert "# TYPE agentserve_calls_total counter" in text
    assert 'agentserve_time_to_first_token_seconds_bucket{le="0.5"' in text


@pytest.mark.parametrize("kind", list(Kind))
def test_malformed_events_never_raise(kind):
    sink = MetricSink()
    sink.record(event(kind, 0.0, ttft_s="soon", reason=3, cause=["x"]))
    assert generate_latest(sink.registry)
