"""What is sent to one page, and when? Server-sent events with what changed since the last one, at most two a second.

Nothing is queued for a page: each message is made from the present state when the page has taken the one before, so a
slow page gets fewer and newer ones, and one that takes none for a while is dropped.
"""

import asyncio
import logging
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from agentserve.errors import Forbidden
from agentserve.gateway.errors import BadParameter
from agentserve.gateway.identity import MAX_ID_CHARS, check_run_id
from agentserve.gateway.page.board import SHOWN, View
from agentserve.gateway.page.watch import Watch
from agentserve.gateway.scoped import outside
from agentserve.tenants.tenant import NOBODY, Tenant

logger = logging.getLogger(__name__)

MAX_VIEW_ROWS: Final = 100
MAX_FIRST: Final = 100_000
SEND_TIMEOUT_S: Final = 10.0
QUIET_TICKS: Final = 10
"""After so many ticks without news the time is sent, so that a page knows that it is still connected."""
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)


def read_view(request: Request, tenant: Tenant = NOBODY) -> tuple[View, str | None]:
    """What a page asks to see, and the run that it follows; BadParameter names what cannot be used."""
    query = request.query_params
    show, text, run = query.get("show", "all"), query.get("q", ""), query.get("run")
    if show not in SHOWN:
        raise BadParameter("show", f"must be one of {', '.join(SHOWN)}")
    if len(text) > MAX_ID_CHARS:
        raise BadParameter("q", f"must have at most {MAX_ID_CHARS} characters")
    first, rows = (
        _whole(query.get("first", "0"), "first", 0, MAX_FIRST),
        _whole(query.get("rows", "25"), "rows", 1, MAX_VIEW_ROWS),
    )
    view = View(first=first, rows=rows, show=show, text=text, tenant=tenant)
    return view, None if run is None else tenant.inside(check_run_id("run", run))


def refuse_other_sites(request: Request) -> None:
    """Forbidden for a stream that a page of another site opens; it could not read it, but take a place."""
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("the live stream is for pages of this gateway only")


class Reader:
    """What one page was told already; makes the next message for it."""

    def __init__(self, watch: Watch, view: View, run_id: str | None = None) -> None:
        self._watch = watch
        self._view = view
        self._run_id = run_id
        self._seen = self._seen_rows = -1
        self._ids: list[str] = []
        self._matching: int | None = None
        self._totals: dict[str, int] = {}
        self._problem: str | None = None
        self._told_run = -1

    def news(self) -> dict[str, Any]:
        """Whatever changed since the last call; empty if nothing did."""
        watch, news = self._watch, dict[str, Any]()
        changed = [plain for version, plain in watch.instances.values() if version > self._seen]
        if changed or self._seen < 0:
            news["instances"] = changed
        seen_by, is_all = self._view.tenant, self._view.tenant.admin
        minutes = [(begin, *counts) for begin, (version, *counts) in watch.minutes.items() if version > self._seen]
        if minutes and is_all:  # they count every tenant's runs
            news["minutes"] = minutes
        if watch.problem != self._problem or self._seen < 0:
            news["problem"] = self._problem = watch.problem
        calls = sum(name.startswith(seen_by.scope) for name in watch.orchestrator.calls)
        totals = {**watch.board.totals(watch.clock(), seen_by), "calls": calls}
        if totals != self._totals:
            news["totals"] = self._totals = totals
        self._seen = watch.version
        own = {**self._runs(), **self._followed()}
        return {**news, **outside(own, seen_by)}

    def _runs(self) -> dict[str, Any]:
        board, news = self._watch.board, dict[str, Any]()
        ids, matching = board.window(self._view, self._watch.clock())
        known = set(self._ids)
        rows = [board.get(name) for name in ids]
        changed = [
            row for row in rows if row is not None and (row.version > self._seen_rows or row.run_id not in known)
        ]
        if changed:
            news["runs"] = [row.to_plain() for row in changed]
        if list(ids) != self._ids or matching != self._matching:
            news["order"], news["matching"], news["first"] = ids, matching, self._view.first
            self._ids, self._matching = list(ids), matching
        self._seen_rows = board.version
        return news

    def _followed(self) -> dict[str, Any]:
        row = None if self._run_id is None else self._watch.board.get(self._run_id)
        if row is None or row.version == self._told_run:
            return {}
        self._told_run = row.version
        return {"followed": row.to_plain()}


class LiveStream:
    """An ASGI response: one page's stream, until the page leaves, falls behind, or the gateway stops."""

    def __init__(self, watch: Watch, reader: Reader, *, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._watch = watch
        self._reader = reader
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until it ends; Overloaded before anything is sent if too many look."""
        with self._watch.reading():
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            sending = asyncio.create_task(self._send(send))
            leaving = asyncio.create_task(_left(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sending.cancel()
                leaving.cancel()
                await asyncio.wait({sending, leaving})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        quiet = QUIET_TICKS
        try:
            await self._put(send, b"retry: 2000\n\n")
            while self._watch.is_open:
                await self._watch.ticked()
                news = self._reader.news()
                quiet += 1
                if news or quiet > QUIET_TICKS:
                    news["now_s"], quiet = self._watch.clock(), 0
                    await self._put(send, b"data: " + orjson.dumps(news) + b"\n\n")
            await self._put(send, b"event: bye\ndata: {}\n\n", more=False)
        except TimeoutError:
            logger.info("a page took nothing for %g s; its stream is closed", self._send_timeout_s)

    async def _put(self, send: Send, content: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await send({"type": "http.response.body", "body": content, "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _whole(given: str, name: str, least: int, most: int) -> int:
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not least <= int(given) <= most:
        raise BadParameter(name, f"must be a whole number from {least} to {most}")
    return int(given)
