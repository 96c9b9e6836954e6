"""Does the traces endpoint take spans? An export without any says so, over HTTP or gRPC."""

import asyncio
import importlib.util
from typing import Final
from urllib.parse import urlsplit

import httpx

from agentserve.doctor.finding import Finding, Part, reason, shown_url

_PART: Final = Part("traces")
_EXPORTERS: Final = {
    "http": "opentelemetry.exporter.otlp.proto.http",
    "https": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "grpcs": "opentelemetry.exporter.otlp.proto.grpc",
}
_EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_NOBODY: Final = "start it, or set AGENTSERVE_OTLP_ENDPOINT to where it is"
_OTHER: Final = "name an OTLP receiver: http://… (usually port 4318) or grpc://… (4317)"
_LOGIN: Final = "set OTEL_EXPORTER_OTLP_HEADERS for the gateway to what it asks for"


async def check_traces(endpoint: str | None, timeout_s: float) -> list[Finding]:
    """Send an export without spans, which a receiver answers as any other. Never raises."""
    if not endpoint:
        return [_PART.ok("reachable", "AGENTSERVE_OTLP_ENDPOINT is not set: runs are traced in Redis only")]
    scheme = _scheme(endpoint)
    if scheme is None:
        return [_PART.problem("reachable", "the endpoint is no http://, https://, grpc:// or grpcs:// URL", _OTHER)]
    if not _is_installed(_EXPORTERS[scheme]):
        return [_PART.problem("exporter", "it is not installed", "pip install 'agentserve[otlp]'")]
    send = _over_http if scheme.startswith("http") else _over_grpc
    return await send(endpoint.rstrip("/"), timeout_s)


async def _over_http(base: str, timeout_s: float) -> list[Finding]:
    url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
    try:
        async with (
            asyncio.timeout(2 * timeout_s),
            httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client,
            client.stream("POST", url, content=b"", headers={"content-type": "application/x-protobuf"}) as response,
        ):
            status = response.status_code
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return [_PART.problem("reachable", f"{shown_url(url)}: {reason(error)}", _NOBODY)]
    is_login = status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
    return _answered(shown_url(url), status == httpx.codes.OK, is_login, f"HTTP {status}")


async def _over_grpc(endpoint: str, timeout_s: float) -> list[Finding]:
    import grpc  # type: ignore[import-untyped]  # it ships no types

    scheme, _, target = endpoint.partition("://")
    shown = shown_url(endpoint)
    secure = scheme == "grpcs"
    async with (
        grpc.aio.secure_channel(target, grpc.ssl_channel_credentials()) if secure else grpc.aio.insecure_channel(target)
    ) as channel:
        try:
            await channel.unary_unary(_EXPORT)(b"", timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                said = "no answer in time" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "no connection"
                return [_PART.problem("reachable", f"{shown}: {said}", _NOBODY)]
            is_login = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return _answered(shown, False, is_login, str(code.name))
    return _answered(shown, True, False, "OK")


def _answered(shown: str, is_taken: bool, is_login: bool, said: str) -> list[Finding]:
    reachable = _PART.ok("reachable", f"at {shown}")
    if is_taken:
        return [reachable, _PART.ok("accepts OTLP", "an export without spans was taken")]
    if is_login:
        return [reachable, _PART.warning("accepts OTLP", f"{said}: it asks for a login", _LOGIN)]
    return [reachable, _PART.problem("accepts OTLP", f"{said} to an export without spans", _OTHER)]


def _scheme(endpoint: str) -> str | None:
    """The scheme of an endpoint that can be one; else None."""
    try:
        parts = urlsplit(endpoint)
        return parts.scheme if parts.scheme in _EXPORTERS and parts.hostname else None
    except ValueError:
        return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
