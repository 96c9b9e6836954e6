"""A span sink whose spans are kept, to be looked at."""

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentserve.telemetry.tracing import SpanSink


class Traced:
    """A sink whose spans are kept."""

    def __init__(self, **options):
        self._exporter = InMemorySpanExporter()
        self.sink = SpanSink(SimpleSpanProcessor(self._exporter), **options)

    def take(self, events):
        for one in events:
            self.sink.record(one)
        return self

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def children_of(self, span):
        return [s for s in self.spans if s.parent is not None and s.parent.span_id == span.context.span_id]
