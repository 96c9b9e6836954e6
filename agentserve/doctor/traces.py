"""Does the traces endpoint take spans?"""

import asyncio
import importlib.util
from typing import Final
from urllib.parse import urlsplit

import httpx

from agentserve.doctor.finding import Finding, Part, reason, shown_url

_PART: Final = Part("traces")
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http"


async def check_traces(endpoint: str | None, timeout_s: float) -> list[Finding]:
    """Send an export without spans, which a receiver answers as any other. Never raises."""
    if not endpoint:
        return [_PART.ok("reachable", "AGENTSERVE_OTLP_ENDPOINT is not set: runs are traced in Redis only")]
    found = []
    if not _has_exporter():
        found.append(_PART.problem("exporter", "it is not installed", "pip install 'agentserve[otlp]'"))
    try:
        url = _traces_url(endpoint)
    except ValueError:
        fix = "set AGENTSERVE_OTLP_ENDPOINT to a base URL such as http://127.0.0.1:4318"
        return [*found, _PART.problem("reachable", "the endpoint is no http:// or https:// URL", fix)]
    return [*found, *await _send(url, timeout_s)]


async def _send(url: httpx.URL, timeout_s: float) -> list[Finding]:
    shown = shown_url(str(url))
    try:
        async with (
            asyncio.timeout(2 * timeout_s),
            httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client,
            client.stream("POST", url, content=b"", headers={"content-type": "application/x-protobuf"}) as response,
        ):
            status = response.status_code
    except (httpx.HTTPError, TimeoutError) as error:
        return [_PART.problem("reachable", f"{shown}: {reason(error)}", "start it, or set AGENTSERVE_OTLP_ENDPOINT")]
    reachable = _PART.ok("reachable", f"at {shown}")
    if status == httpx.codes.OK:
        return [reachable, _PART.ok("accepts OTLP", "an export without spans was taken")]
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        fix = "set OTEL_EXPORTER_OTLP_HEADERS for the gateway to what it asks for"
        return [reachable, _PART.warning("accepts OTLP", f"HTTP {status}: it asks for a login", fix)]
    fix = "name an OTLP/HTTP receiver's base URL (usually port 4318)"
    return [reachable, _PART.problem("accepts OTLP", f"HTTP {status} to an export without spans", fix)]


def _traces_url(endpoint: str) -> httpx.URL:
    """Where the gateway sends spans; ValueError if that is no HTTP URL."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(endpoint)
    base = endpoint.rstrip("/")
    try:
        return httpx.URL(base if base.endswith("/v1/traces") else f"{base}/v1/traces")
    except httpx.InvalidURL:
        raise ValueError(endpoint) from None


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:
        return False
