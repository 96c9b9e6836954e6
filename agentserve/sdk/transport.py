"""How does a call carry its run, and outlive a restart of the gateway? Transports for httpx clients, and one patch.

`http_client()` and `async_http_client()` are explicit: `ChatOpenAI(http_client=http_client(), …)`. `instrument()`
teaches every httpx (and httpx2) transport of the process the same, for requests to the gateway inside of a run; `serve`
calls it, so that an unchanged `ChatOpenAI` takes part.
"""

import importlib.util
import ssl
from collections.abc import Awaitable, Callable
from functools import cache, wraps
from types import ModuleType
from typing import Any, Final

import httpx

from agentserve.sdk.calls import Call, call_for
from agentserve.sdk.context import active_run
from agentserve.sdk.origin import Origin, gateway_url, origin_of
from agentserve.sdk.patience import Patience
from agentserve.sdk.streams import adeliver, deliver, stream_types

_HANDLED: Final = "agentserve"
"""Request extension: an outer transport has seen to this request already."""


EVERY: Final = "*"
"""Instead of a gateway's URL: all requests are for gateways."""


class RunTransport(httpx.BaseTransport):
    """Sends through `inner`; requests to the gateway carry run and step and outlive its restart."""

    def __init__(
        self, gateway: str | None = None, *, inner: httpx.BaseTransport | None = None, patience: Patience | None = None
    ) -> None:
        self._origin = None if gateway == EVERY else origin_of(gateway_url(gateway))
        self._inner = inner if inner is not None else plain_transport()
        self._patience = patience or Patience()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the errors of httpx where waiting and resuming do not help."""
        response: httpx.Response = send(httpx, request, self._inner.handle_request, self._origin, self._patience)
        return response

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()


class AsyncRunTransport(httpx.AsyncBaseTransport):
    """RunTransport for `httpx.AsyncClient`."""

    def __init__(
        self,
        gateway: str | None = None,
        *,
        inner: httpx.AsyncBaseTransport | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._origin = None if gateway == EVERY else origin_of(gateway_url(gateway))
        self._inner = inner if inner is not None else httpx.AsyncHTTPTransport(verify=_tls(), limits=_ONE_SHOT)
        self._patience = patience or Patience()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the errors of httpx where waiting and resuming do not help."""
        sender = self._inner.handle_async_request
        response: httpx.Response = await asend(httpx, request, sender, self._origin, self._patience)
        return response

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


# Connections are not kept: an idle one would outlive its event loop, and a new one costs nothing beside a completion.
_ONE_SHOT: Final = httpx.Limits(max_connections=None, max_keepalive_connections=0)


def plain_transport() -> httpx.HTTPTransport:
    """The transport under ours."""
    return httpx.HTTPTransport(verify=_tls(), limits=_ONE_SHOT)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # tens of milliseconds, so once per process


def http_client(gateway: str | None = None, *, timeout_s: float | None = 600.0) -> httpx.Client:
    """A client to hand to `ChatOpenAI(http_client=…)` or `OpenAI(http_client=…)`; no patching is needed then."""
    return httpx.Client(transport=RunTransport(gateway), timeout=httpx.Timeout(timeout_s, connect=5.0))


def async_http_client(gateway: str | None = None, *, timeout_s: float | None = 600.0) -> httpx.AsyncClient:
    """A client to hand to `ChatOpenAI(http_async_client=…)` or `AsyncOpenAI(http_client=…)`."""
    return httpx.AsyncClient(transport=AsyncRunTransport(gateway), timeout=httpx.Timeout(timeout_s, connect=5.0))


def send(
    library: Any,
    request: Any,
    sender: Callable[[Any], Any],
    origin: Origin | None,
    patience: Patience,
    *,
    outside: bool = True,
) -> Any:
    """Send a request of `library` (httpx or httpx2); `outside`: also see to calls outside of any run."""
    call = _call(library, request, origin, outside)
    if call is None:
        return sender(request)
    request = call.request()
    if (known := call.known()) is not None:
        return known
    response = deliver(call, request, sender, patience)
    if call.progress is None or not call.streams(response):
        return response
    return call.wrap(response, stream_types(library)[0](call, call.progress, response, sender, patience))


async def asend(
    library: Any,
    request: Any,
    sender: Callable[[Any], Awaitable[Any]],
    origin: Origin | None,
    patience: Patience,
    *,
    outside: bool = True,
) -> Any:
    """`send` for asynchronous transports."""
    call = _call(library, request, origin, outside)
    if call is None:
        return await sender(request)
    request = call.request()
    if (known := call.known()) is not None:
        return known
    response = await adeliver(call, request, sender, patience)
    if call.progress is None or not call.streams(response):
        return response
    return call.wrap(response, stream_types(library)[1](call, call.progress, response, sender, patience))


def _call(library: Any, request: Any, origin: Origin | None, outside: bool) -> Call | None:
    url = request.url
    if _HANDLED in request.extensions:
        return None
    if origin is not None and not origin.covers(url.scheme, url.host, url.port):
        return None
    if not outside and active_run() is None:
        return None
    return call_for(library, request, mark=_HANDLED)


def instrument() -> None:
    """Let every httpx and httpx2 transport of this process see to requests inside of a run. Once is enough."""
    for library in _libraries():
        for owner, method, wrap in (
            (library.HTTPTransport, "handle_request", _wrapped),
            (library.AsyncHTTPTransport, "handle_async_request", _awrapped),
        ):
            original = getattr(owner, method)
            if not hasattr(original, "__wrapped__"):
                setattr(owner, method, wrap(library, original))


def uninstrument() -> None:
    """Take back what `instrument` did."""
    for library in _libraries():
        for owner, method in (
            (library.HTTPTransport, "handle_request"),
            (library.AsyncHTTPTransport, "handle_async_request"),
        ):
            setattr(owner, method, getattr(getattr(owner, method), "__wrapped__", getattr(owner, method)))


def _libraries() -> list[ModuleType]:
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name) is not None]
    return [importlib.import_module(name) for name in names]


def _wrapped(library: Any, original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        run = active_run()
        if run is None:
            return original(self, request)
        return send(library, request, lambda each: original(self, each), run.origin, run.patience, outside=False)

    return handle_request


def _awrapped(library: Any, original: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    @wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        run = active_run()
        if run is None:
            return await original(self, request)
        return await asend(library, request, lambda each: original(self, each), run.origin, run.patience, outside=False)

    return handle_async_request
