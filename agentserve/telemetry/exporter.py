"""Where do spans go? In batches, from a thread of their own, to an OTLP endpoint over HTTP or gRPC."""

from typing import Final

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from agentserve.errors import BadInput

_HTTP: Final = ("http://", "https://")
_GRPC: Final = {"grpc://": "http://", "grpcs://": "https://"}
_TIMEOUT_S: Final = 5


def make_span_processor(endpoint: str | None) -> SpanProcessor | None:
    """What sends the spans it is given to `endpoint`, in batches and in a thread of its own; None without an endpoint.

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
    return BatchSpanProcessor(exporter, max_queue_size=8192, max_export_batch_size=512, schedule_delay_millis=1000)


def _http(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    base = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=base if base.endswith("/v1/traces") else f"{base}/v1/traces", timeout=_TIMEOUT_S)


def _grpc(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    scheme, rest = endpoint.split("://", 1)
    url = _GRPC[f"{scheme}://"] + rest.rstrip("/")
    return OTLPSpanExporter(endpoint=url, insecure=scheme == "grpc", timeout=_TIMEOUT_S)
