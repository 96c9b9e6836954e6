"""How is an engine asked about itself? Within limits of time and size, questions and trials over one client."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

MAX_METRICS_BYTES: Final = 4 * 2**20
MAX_ANSWER_BYTES: Final = 1 * 2**20


def open_client(url: str, *, api_key: str | None = None, timeout_s: float = 1.0) -> httpx.AsyncClient:
    """A client for one engine with small time limits; its user closes it."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)


async def fetch(
    client: httpx.AsyncClient, path: str, max_bytes: int = MAX_ANSWER_BYTES, *, timeout_s: float | None = None
) -> tuple[int, bytes]:
    """GET `path`: status and body. Raises httpx.HTTPError; a body over the limit counts as a protocol error."""
    timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
    async with client.stream("GET", path, timeout=timeout) as response:
        return response.status_code, await _limited(response, max_bytes)


async def fetch_object(client: httpx.AsyncClient, path: str) -> dict[str, Any] | None:
    """The JSON object at `path`; None if there is none. Raises httpx.HTTPError."""
    status, body = await fetch(client, path)
    return as_object(body) if status == httpx.codes.OK else None


def as_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object; None if the text is anything else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a POST brought; `value` if that was a JSON object."""

    status: int
    value: Mapping[str, Any] | None = None

    @property
    def is_good(self) -> bool:
        """Whether it was a success."""
        return self.status < 400


async def post(client: httpx.AsyncClient, path: str, body: Mapping[str, Any], timeout_s: float) -> Answer:
    """POST a JSON body. Raises httpx.HTTPError."""
    async with client.stream("POST", path, json=body, timeout=timeout_s) as response:
        raw = await _limited(response, MAX_ANSWER_BYTES)
    return Answer(response.status_code, as_object(raw))


def why(error: httpx.HTTPError) -> str:
    """A failed exchange in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class ClientTransport(httpx.AsyncBaseTransport):
    """Carries an adapter's requests over a client's connections and credentials. Closing it leaves the client open."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request with the client's own headers added; the stream of the response is yet to be read."""
        own = self._client.build_request(
            request.method,
            request.url,
            headers={name: value for name, value in request.headers.items() if name not in ("host", "content-length")},
            content=request.content,
            extensions=request.extensions,
        )
        response = await self._client.send(own, stream=True)
        return httpx.Response(response.status_code, headers=response.headers, stream=_Body(response))


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._response.aiter_bytes():
            yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


async def _limited(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > max_bytes:
            raise httpx.RemoteProtocolError(f"{response.url.path}: over {max_bytes} bytes")
    return bytes(body)
