"""What Prometheus reads of a run's journal."""

import pytest

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.metrics import BoundedLabel, MetricSink
from tests.unit.made_up_run import START_S, decided, event, whole_run


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
    text = sink.render().decode()
    assert "# TYPE agentserve_calls_total counter" in text
    assert 'agentserve_time_to_first_token_seconds_bucket{le="0.5"' in text


@pytest.mark.parametrize("kind", list(Kind))
def test_malformed_events_never_raise(kind):
    sink = MetricSink()
    sink.record(event(kind, 0.0, ttft_s="soon", reason=3, cause=["x"]))
    assert sink.render()
