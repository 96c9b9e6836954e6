"""A stand-in for Jaeger: takes OTLP over HTTP (4318), answers the query API (16686) and the health check (13133).

Only what the compose test asks: `/api/services`, `/api/traces/ID`, `/api/traces?service=…&tags={…}` in Jaeger's JSON.
It keeps the last 1,000 traces in memory.
"""

import base64
import gzip
import json
import signal
import sys
import threading
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

MOST_TRACES = 1_000
MOST_BYTES = 16 * 2**20
traces: "OrderedDict[str, list[dict]]" = OrderedDict()
lock = threading.Lock()


def plain(value):
    """An OTLP value and Jaeger's word for its type."""
    kind = value.WhichOneof("value")
    names = {"string_value": "string", "bool_value": "bool", "int_value": "int64", "double_value": "float64"}
    if kind in names:
        return names[kind], getattr(value, kind)
    if kind == "array_value":
        return "string", json.dumps([plain(item)[1] for item in value.array_value.values])
    if kind == "bytes_value":
        return "binary", base64.b64encode(value.bytes_value).decode()
    return "string", ""


def tags(attributes):
    return [dict(zip(("key", "type", "value"), (item.key, *plain(item.value)), strict=True)) for item in attributes]


def jaeger_span(span, service):
    """One OTLP span as Jaeger tells it; its process is put beside it."""
    trace_id = span.trace_id.hex()
    references = []
    if span.parent_span_id:
        references.append({"refType": "CHILD_OF", "traceID": trace_id, "spanID": span.parent_span_id.hex()})
    references += [
        {"refType": "FOLLOWS_FROM", "traceID": link.trace_id.hex(), "spanID": link.span_id.hex()} for link in span.links
    ]
    logs = [
        {
            "timestamp": event.time_unix_nano // 1000,
            "fields": [{"key": "event", "type": "string", "value": event.name}, *tags(event.attributes)],
        }
        for event in span.events
    ]
    return {
        "traceID": trace_id,
        "spanID": span.span_id.hex(),
        "operationName": span.name,
        "references": references,
        "startTime": span.start_time_unix_nano // 1000,
        "duration": (span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
        "tags": tags(span.attributes),
        "logs": logs,
        "processID": "p1",
        "service": service,
    }


def take(request):
    for resource in request.resource_spans:
        named = {item.key: plain(item.value)[1] for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = jaeger_span(span, named.get("service.name", "unknown"))
                with lock:
                    traces.setdefault(told["traceID"], []).append(told)
                    while len(traces) > MOST_TRACES:
                        traces.popitem(last=False)


def trace_json(trace_id, spans):
    service = spans[0]["service"]
    return {
        "traceID": trace_id,
        "spans": [{key: value for key, value in span.items() if key != "service"} for span in spans],
        "processes": {"p1": {"serviceName": service, "tags": []}},
        "warnings": None,
    }


def found(query):
    """The traces with a span of the service that has all the tags asked for, newest first."""
    service = query.get("service", [""])[0]
    asked = json.loads(query.get("tags", ["{}"])[0])
    limit = int(query.get("limit", ["20"])[0])
    with lock:
        kept = [(trace_id, list(spans)) for trace_id, spans in reversed(traces.items())]
    matching = [
        trace_json(trace_id, spans)
        for trace_id, spans in kept
        if any(
            span["service"] == service
            and asked.items() <= {tag["key"]: str(tag["value"]) for tag in span["tags"]}.items()
            for span in spans
        )
    ]
    return matching[:limit]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("content-length", "0"))
        if self.path != "/v1/traces" or length > MOST_BYTES:
            self.send_error(404 if length <= MOST_BYTES else 413)
            return
        body = self.rfile.read(length)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        take(ExportTraceServiceRequest.FromString(body))
        self.answer(ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def do_GET(self):
        where = urlsplit(self.path)
        if where.path == "/status":
            self.json({"status": "StatusOK"})
        elif where.path == "/api/services":
            with lock:
                self.json({"data": sorted({span["service"] for spans in traces.values() for span in spans})})
        elif where.path == "/api/traces":
            self.json({"data": found(parse_qs(where.query))})
        elif where.path.startswith("/api/traces/") and where.path[12:] in traces:
            self.json({"data": [trace_json(where.path[12:], traces[where.path[12:]])]})
        else:
            self.send_error(404)

    def json(self, told):
        self.answer(json.dumps(told).encode(), "application/json")

    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    servers = [ThreadingHTTPServer(("0.0.0.0", port), Handler) for port in (4318, 13133)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("STAND-IN for Jaeger: OTLP/HTTP on 4318, query API on 16686", flush=True)
    ThreadingHTTPServer(("0.0.0.0", 16686), Handler).serve_forever()
