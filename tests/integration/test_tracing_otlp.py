"""Spans over OTLP, as receivers that know only the protocol read them: HTTP and gRPC."""

import threading
import time
from collections.abc import Iterator

import pytest

from agentserve.telemetry import names
from agentserve.telemetry.exporter import make_span_processor
from agentserve.telemetry.sampling import trace_id_of
from agentserve.telemetry.tracing import SpanSink
from tests.integration.otlp_receiver import GrpcReceiver, Receiver
from tests.unit.made_up_run import RUN, START_S, whole_run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def send(endpoint, events):
    processor = make_span_processor(endpoint)
    sink = SpanSink(processor)
    for event in events:
        sink.record(event)
    processor.shutdown()


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces"])
def test_a_run_arrives_as_one_trace(receiver, suffix):
    send(receiver.url + suffix, whole_run())
    assert set(receiver.paths) == {"/v1/traces"}
    assert {span.trace_id.hex() for span in receiver.spans} == {f"{trace_id_of(RUN):032x}"}
    by_id = {span.span_id: span for span in receiver.spans}
    roots = [span for span in receiver.spans if span.parent_span_id not in by_id]
    assert [span.name for span in roots] == ["invoke_workflow researcher"]
    assert {span.name for span in receiver.spans} >= {
        "invoke_agent plan",
        "execute_tool fetch",
        "chat llama-3.1-8b",
        "queue",
        "prefill",
        "kv_transfer",
        "decode",
        "migration",
    }


@pytest.mark.parametrize("suffix", ["", "/"])
def test_a_run_arrives_over_grpc_as_it_does_over_http(receiver, suffix):
    send(receiver.url, whole_run())
    with GrpcReceiver() as other:
        send(other.url + suffix, whole_run())
    assert [span.SerializeToString(deterministic=True) for span in other.spans] == [
        span.SerializeToString(deterministic=True) for span in receiver.spans
    ]
    assert other.resources == receiver.resources


@pytest.mark.parametrize("receiving", [Receiver, GrpcReceiver])
def test_times_names_and_kind_are_on_the_wire(receiving):
    with receiving() as receiver:
        send(receiver.url, whole_run())
    chat = next(span for span in receiver.spans if span.name.startswith("chat"))
    known = {a.key: a.value for a in chat.attributes}
    assert chat.kind == chat.SPAN_KIND_CLIENT
    assert chat.start_time_unix_nano == round((START_S + 0.1) * 1e9)
    assert known[names.REQUEST_MODEL].string_value == "llama-3.1-8b"
    assert known[names.OUTPUT_TOKENS].int_value == 150
    assert receiver.resources[0]["service.name"] == "agentserve"


@pytest.mark.parametrize("receiving", [Receiver, GrpcReceiver])
def test_an_endpoint_that_is_down_neither_raises_nor_blocks_the_gateway(caplog, receiving):
    with receiving() as gone:
        url = gone.url
    processor = make_span_processor(url)
    sink = SpanSink(processor)
    for event in whole_run():
        sink.record(event)
    shutdown = threading.Thread(target=processor.shutdown)
    shutdown.start()
    deadline = time.monotonic() + 60
    while shutdown.is_alive() and time.monotonic() < deadline:
        shutdown.join(0.1)
    assert not shutdown.is_alive()
