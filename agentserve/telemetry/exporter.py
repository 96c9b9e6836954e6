"""Where do spans go? In batches, from a thread of their own, to an OTLP endpoint over HTTP or gRPC."""

from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from agentserve.errors import BadInput

_HTTP: Final = ("http://", "https://")
_GRPC: Final = {"grpc://": "http://", "grpcs://": "https://"}
_TIMEOUT_S: Final = 5


class DerivedIds(RandomIdGenerator):
    """Gives the next span the ids set beforehand; random ones when none were set."""

    def __init__(self) -> None:
        self.trace_id: int | None = None
        self.span_id: int | None = None

    def generate_trace_id(self) -> int:
        """The id set for the next trace, once."""
        chosen, self.trace_id = self.trace_id, None
        return super().generate_trace_id() if chosen is None else chosen

    def generate_span_id(self) -> int:
        """The id set for the next span, once."""
        chosen, self.span_id = self.span_id, None
        return super().generate_span_id() if chosen is None else chosen


def make_tracer_provider(endpoint: str | None, *, service: str = "agentserve") -> TracerProvider | None:
    """A provider that sends batches of spans to `endpoint` in its own thread; None without one.

    `http://` and `https://` name the base URL of OTLP/HTTP, `grpc://` and `grpcs://` (TLS) host and port of OTLP/gRPC.
    At most 8,192 spans wait; more are dropped, never awaited. Raises BadInput if the extra `otlp` is not installed or
    the endpoint is neither. Call `.shutdown()` at the end to send what waits.
    """
    if not endpoint:
        return None
    if not endpoint.startswith((*_HTTP, *_GRPC)):
        raise BadInput(
            f"OTLP endpoint {endpoint!r}: give an http:// or https:// base URL such as http://127.0.0.1:4318, or "
            "grpc://127.0.0.1:4317 (grpcs:// with TLS)"
        )
    try:
        exporter = _http(endpoint) if endpoint.startswith(_HTTP) else _grpc(endpoint)
    except ImportError:
        raise BadInput("an OTLP endpoint is set but the exporter is missing: pip install 'agentserve[otlp]'") from None
    provider = derived_provider(service)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=8192, max_export_batch_size=512, schedule_delay_millis=1000)
    )
    return provider


def derived_provider(service: str = "agentserve") -> TracerProvider:
    """A provider without exporters whose span ids SpanSink can set. What reaches it was chosen to be sent."""
    resource = Resource.create({"service.name": service})
    return TracerProvider(ALWAYS_ON, resource, id_generator=DerivedIds(), shutdown_on_exit=False)


def _http(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    base = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=base if base.endswith("/v1/traces") else f"{base}/v1/traces", timeout=_TIMEOUT_S)


def _grpc(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    scheme, rest = endpoint.split("://", 1)
    url = _GRPC[f"{scheme}://"] + rest.rstrip("/")
    return OTLPSpanExporter(endpoint=url, insecure=scheme == "grpc", timeout=_TIMEOUT_S)
