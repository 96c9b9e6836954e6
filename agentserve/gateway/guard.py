"""Who may ask for anything at all? Authentication in front of every route, so that a new one cannot be without it.

A key comes as `Authorization: Bearer`. A browser that opens the page is asked for it by HTTP Basic (the key is the
password, any name will do): it keeps the key to itself for as long as it runs and sends it in a header, never in a URL.
Since a browser sends that to whoever lets it, Basic opens reading only, and only to this gateway's own pages.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agentserve.errors import AgentServeError, Forbidden, Unauthorized
from agentserve.gateway.errors import error_response
from agentserve.tenants.book import TenantBook
from agentserve.tenants.tenant import NOBODY, Tenant

OPEN: Final = frozenset({"/healthz", "/readyz"})
"""Whether the process answers, and whether it can serve: for load balancers, and without any detail for strangers."""
_TENANT: Final = "agentserve.tenant"
_PAGE: Final = "/ui"
_MAX_HEADER_BYTES: Final = 512
_READS: Final = frozenset({"GET", "HEAD"})
_OWN_PAGES: Final = frozenset({None, "same-origin", "none"})
Refused = Callable[[str, str], None]
"""Told of a refused request: tenant's name (empty: unknown) and code."""


class Guard:
    """ASGI middleware: gives each request its tenant, or answers 401. `book` None: authentication is off."""

    def __init__(self, app: ASGIApp, book: TenantBook | None, on_refused: Refused) -> None:
        self._app = app
        self._book = book
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP only, not {scope['type']}")
        try:
            scope[_TENANT] = self._tenant(scope)
        except AgentServeError as error:
            self._on_refused("", error.code)
            await _refusal(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> Tenant | None:
        if self._book is None:
            return NOBODY
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given and scope["path"] in OPEN:
            return None
        key = _key(given, scope)
        tenant = None if key is None else self._book.caller(key)
        if tenant is None and scope["path"] not in OPEN:
            raise Unauthorized(
                "an API key is needed: send it as `Authorization: Bearer ask_…`; `agentserve keys new` makes one"
                if key is None
                else "this API key is not known, or was revoked"
            )
        return tenant


def tenant_of(request: Request) -> Tenant:
    """Whose request this is. KeyError where nobody has let it pass: a defect, not an open door."""
    tenant = request.scope[_TENANT]
    if tenant is None:
        raise KeyError("an open route has no tenant")
    return tenant  # type: ignore[no-any-return]  # the guard put it there


def is_known(request: Request) -> bool:
    """Whether an open route may tell this caller details."""
    return request.scope[_TENANT] is not None


def admin_only(request: Request, what: str) -> None:
    """Forbidden unless an admin asks."""
    if not tenant_of(request).admin:
        raise Forbidden(f"{what} is for admins")


def _key(given: list[bytes], scope: Scope) -> str | None:
    if len(given) != 1 or len(given[0]) > _MAX_HEADER_BYTES:
        return None
    kind, _, value = given[0].decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return None
    try:
        password = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None
    if scope["method"] not in _READS or Request(scope).headers.get("sec-fetch-site") not in _OWN_PAGES:
        raise Forbidden("a key that a browser keeps opens this gateway's own pages, for reading")
    return password


def _refusal(error: AgentServeError, scope: Scope) -> Response:
    response = error_response(error)
    if isinstance(error, Unauthorized):
        response.headers["www-authenticate"] = 'Bearer realm="agentserve"'
        if scope["path"].startswith(_PAGE):
            response.headers.append("www-authenticate", 'Basic realm="agentserve", charset="UTF-8"')
    return response
