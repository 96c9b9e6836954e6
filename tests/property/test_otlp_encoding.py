"""Our OTLP bytes mean what the exporter's own encoder would have said."""

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from agentserve.telemetry.otlp import encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
NUMBER = st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1)
PLAIN = TEXT | st.booleans() | NUMBER
VALUE = PLAIN | st.lists(PLAIN, max_size=5) | st.lists(TEXT, max_size=5).map(tuple)
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), VALUE, max_size=12)
TIME_NS = st.integers(0, 2**64 - 1)
CONTEXT = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(TraceFlags.SAMPLED)),
)
STATUS = st.just(Status(StatusCode.UNSET)) | st.builds(Status, st.just(StatusCode.ERROR), TEXT)
EVENT = st.builds(Event, TEXT, ATTRIBUTES, TIME_NS)
RESOURCE, SCOPE = Resource({"service.name": "agentserve", "host.cpus": 2}), InstrumentationScope("agentserve", "1")
SPAN = st.builds(
    ReadableSpan,
    TEXT,
    context=CONTEXT,
    parent=st.none() | CONTEXT,
    resource=st.just(RESOURCE),
    attributes=ATTRIBUTES,
    events=st.lists(EVENT, max_size=3),
    links=st.lists(st.builds(Link, CONTEXT, ATTRIBUTES), max_size=3),
    kind=st.sampled_from(SpanKind),
    status=STATUS,
    start_time=TIME_NS,
    end_time=TIME_NS,
    instrumentation_scope=st.just(SCOPE),
)


@given(st.lists(SPAN, max_size=4))
def test_spans_are_read_as_the_library_would_have_written_them(spans):
    assert ExportTraceServiceRequest.FromString(encode(spans)) == encode_spans(spans)


def test_text_that_is_no_unicode_is_replaced_and_does_not_lose_the_batch():
    context = SpanContext(1, 2, False)
    span = ReadableSpan("a\ud800", context=context, attributes={"b\ud800": "c\ud800"}, resource=RESOURCE)
    (scope,) = ExportTraceServiceRequest.FromString(encode([span])).resource_spans[0].scope_spans
    assert (scope.spans[0].name, scope.spans[0].attributes[0].value.string_value) == ("a?", "c?")
