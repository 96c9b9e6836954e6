"""How does an adapter reach its engine? One pooled HTTP client per engine, foreign errors made ours in one place."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from agentserve.engines.networks import Networks
from agentserve.engines.sse import SseSplitter
from agentserve.engines.transport import READ, EngineTransport
from agentserve.errors import EngineFailed

MAX_ERROR_BYTES: Final = 64 * 1024
KEEPALIVE_S: Final = 3.0
"""Below uvicorn's 5 s, so that we rarely write on a connection that the engine is closing."""
_JSON: Final = {"content-type": "application/json"}


class EngineUnreachable(EngineFailed):
    """No connection, or it broke: the engine's process may be gone."""


class EngineRefused(EngineFailed):
    """The engine answered with a client error; another instance would say the same."""

    def __init__(self, message: str, status: int, code: str | None = None, *, said: str = "") -> None:
        super().__init__(message, retryable=False, said=said)
        self.status = status
        self.code = code or "engine_refused"


class EngineBusy(EngineFailed):
    """The engine takes no more just now (429 or 503); another one may."""

    def __init__(self, message: str, status: int, *, said: str = "") -> None:
        super().__init__(message, said=said)
        self.status = status
        self.code = "engine_busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time and size limits of every exchange with an engine."""

    connect_timeout_s: float = 1.0
    stall_timeout_s: float = 30.0
    max_line_bytes: int = 8 * 2**20
    max_total_bytes: int = 512 * 2**20
    networks: Networks | None = None
    """Where the engine's address must be; None: anywhere, as its operator named it."""


class EngineHttp:
    """One engine's base URL with its connection pool. Every method raises EngineFailed or a subclass."""

    def __init__(
        self,
        url: str,
        limits: Limits,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.limits = limits
        key = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = transport or EngineTransport(KEEPALIVE_S, limits.networks)
        self._urls: dict[str, httpx.URL] = {}
        self._headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "agentserve", **key}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(limits.stall_timeout_s, connect=limits.connect_timeout_s),
            transport=self._transport,
            headers=self._headers,
            trust_env=False,
        )

    async def events(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[list[bytes], None]:
        """Post a streaming call; yield the payloads of its server-sent events, those that came together at once.

        Closing it closes the connection.
        """
        splitter = SseSplitter(self.limits.max_line_bytes, self.limits.max_total_bytes)
        async with self._post(path, body, headers) as response:
            read = response.extensions.get(READ)
            try:
                if read is None:
                    async for chunk in response.aiter_raw():
                        yield splitter.feed(chunk)
                else:  # three generators less between the socket and a chunk
                    while chunk := await read():
                        yield splitter.feed(chunk)
            except httpx.HTTPError as error:
                raise self._failed(error) from error

    async def json(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        """Post a call and return its JSON object."""
        async with self._post(path, body, headers) as response:
            return self._object(await self._bounded(response, self.limits.max_line_bytes))

    async def get(self, path: str) -> dict[str, Any]:
        """Ask for something and return its JSON object."""
        async with self._exchange("GET", path, b"", {}) as response:
            return self._object(await self._bounded(response, self.limits.max_line_bytes))

    async def is_healthy(self, path: str = "/health") -> bool:
        """Whether GET `path` answers 200 within the connect timeout; never raises."""
        try:
            response = await self._client.get(path, timeout=self.limits.connect_timeout_s)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    def _post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[httpx.Response]:
        return self._exchange("POST", path, orjson.dumps(body), {**_JSON, **headers})

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        response = await self._send(method, path, content, headers)
        try:
            if response.status_code >= 400:
                raise self._refused(response.status_code, await self._bounded(response, MAX_ERROR_BYTES))
            yield response
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        for is_last in (False, True):
            try:
                # Not through the client, whose URLs, redirects, cookies and hooks cost more than the transport.
                return await self._transport.handle_async_request(self._request(method, path, content, headers))
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                # A kept-alive connection that the engine closed meanwhile fails this way: once more on a new one.
                if is_last:
                    raise self._failed(error) from error
            except httpx.HTTPError as error:
                raise self._failed(error) from error
        raise AssertionError("unreachable: the last try returns or raises")

    def _request(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Request:
        url = self._urls.get(path)
        if url is None:  # an adapter has a handful of paths
            url = self._urls[path] = self._client.build_request(method, path).url
        timeouts = {"timeout": self._client.timeout.as_dict()}
        given = {**self._headers, **headers}
        return httpx.Request(method, url, headers=given, content=content, extensions=timeouts)

    async def _bounded(self, response: httpx.Response, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > max_bytes:
                    raise EngineFailed(f"{self.url}: answer over {max_bytes} bytes", retryable=False)
                parts.append(chunk)
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        return b"".join(parts)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise EngineFailed(f"{self.url}: answer is not JSON") from error
        if not isinstance(value, dict):
            raise EngineFailed(f"{self.url}: answer is not a JSON object")
        return value

    def _failed(self, error: httpx.HTTPError) -> EngineFailed:
        if isinstance(error, httpx.ReadTimeout):
            return EngineFailed(f"{self.url}: silent for {self.limits.stall_timeout_s:g} s")
        return EngineUnreachable(f"{self.url}: {type(error).__name__}: {error}")

    def _refused(self, status: int, content: bytes) -> EngineFailed:
        message, code = error_message(content)
        text = f"engine answered {status}"
        if status in (429, 503):
            return EngineBusy(text, status, said=message)
        if status >= 500 or status == 408:
            return EngineFailed(text, said=message)
        if status == 400 and "context length" in message:
            code = "context_length_exceeded"
        return EngineRefused(text, status, code, said=message)


def error_message(content: bytes) -> tuple[str, str | None]:
    """Message and code of an engine's error answer, in OpenAI's shape or vLLM's older flat one."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:500].decode("utf-8", "replace"), None
    inner = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(inner, dict):
        code = inner.get("code")
        return str(inner.get("message", inner))[:2000], code if isinstance(code, str) else None
    return str(inner)[:2000], None
