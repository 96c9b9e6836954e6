"""Which routes does the gateway have, and what do they share? The ASGI application, with every part handed in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler

from agentserve.errors import AgentServeError
from agentserve.gateway.allowance import Allowances
from agentserve.gateway.completions import Completions
from agentserve.gateway.errors import error_object, json_response, on_defect, on_http_error, on_known_error
from agentserve.gateway.guard import Guard, Refused, admin_only, is_known, tenant_of
from agentserve.gateway.modes import Modes
from agentserve.gateway.openapi import description
from agentserve.gateway.page.routes import PageRoutes
from agentserve.gateway.rest import RestRoutes
from agentserve.gateway.runs import RunService
from agentserve.journal import RunEvent
from agentserve.orchestrator import Orchestrator
from agentserve.orchestrator.request import CHAT, COMPLETIONS
from agentserve.settings import Settings
from agentserve.telemetry.metrics_page import CONTENT_TYPE
from agentserve.telemetry.mode_figures import ModeCounts
from agentserve.tenants.book import TenantBook
from agentserve.tracker.store import Store
from scheduler.errors import SchedulerError
from scheduler.events import Mode
from workflows.errors import WorkflowError

logger = logging.getLogger(__name__)

_BEGIN_AGAIN_S = 1.0
Work = Callable[[], Awaitable[None]]
"""Makes a coroutine that runs until it is cancelled."""


def create_app(
    settings: Settings,
    *,
    store: Store,
    orchestrator: Orchestrator,
    render_metrics: Callable[[], Awaitable[bytes]] | None = None,
    restore: Callable[[Sequence[RunEvent]], None] | None = None,
    blame: Callable[[RunEvent], Mapping[str, Any] | None] | None = None,
    foresee: Callable[[RunEvent], Mapping[str, Any]] | None = None,
    mode_counts: ModeCounts | None = None,
    on_mode: Callable[[Mode], None] = lambda mode: None,
    clock: Callable[[], float] = time.time,
    background: Sequence[Work] = (),
    tenants: TenantBook | None = None,
    on_refused: Refused = lambda tenant, code: None,
) -> Starlette:
    """The application; its lifespan enters `orchestrator` and runs what runs in the background, `background` too.

    `restore`: told the journal of runs that another gateway process began. `blame`, `foresee`: as for RunService.
    `mode_counts`: the sink that counts for `/v1/mode`. `on_mode`: as for Modes. `tenants`: who may call; None: anybody.
    `on_refused`: as for the Guard. `store` and the sinks stay the caller's to close. `app.state.runs` is the
    RunService, `app.state.orchestrator` the orchestrator, `app.state.page` what feeds the page.
    """
    runs = RunService(store, orchestrator, clock=clock, restore=restore, blame=blame, foresee=foresee)
    modes = Modes(settings, store.modes, orchestrator, runs, mode_counts or ModeCounts(), clock, on_mode)
    completions = Completions(orchestrator, runs, settings, Allowances())
    rest = RestRoutes(orchestrator, runs, settings, clock, settings.policy)
    page = PageRoutes(orchestrator, runs, settings, clock)
    probes = _Probes(store, orchestrator, render_metrics)

    following = () if tenants is None else (tenants.follow,)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with orchestrator, asyncio.TaskGroup() as group:
            await modes.begin()
            works = (*runs.background(), *page.background(), modes.run, *following, *background)
            tasks = [group.create_task(_for_ever(work)) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def complete(request: Request) -> ASGIApp:
        return await completions(request)

    app = Starlette(
        routes=[
            Route(CHAT, complete, methods=["POST"]),
            Route(COMPLETIONS, complete, methods=["POST"]),
            *rest.routes(),
            *page.routes(),
            *modes.routes(),
            *probes.routes(),
        ],
        middleware=[Middleware(Guard, tenants, on_refused)],
        exception_handlers=_exception_handlers(),
        lifespan=lifespan,
    )
    app.state.runs = runs
    app.state.orchestrator = orchestrator
    app.state.page = page.watch
    app.state.on_refused = lambda request, code: on_refused(tenant_of(request).name, code)
    return app


async def _for_ever(work: Work) -> None:
    """Run `work`; a defect in it is logged, and it begins again: serving must not end with it."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("%s met a defect; it begins again", getattr(work, "__qualname__", work))
        await asyncio.sleep(_BEGIN_AGAIN_S)


class _Probes:
    """Health, readiness and metrics."""

    def __init__(self, store: Store, orchestrator: Orchestrator, render: Callable[[], Awaitable[bytes]] | None) -> None:
        self._store = store
        self._orchestrator = orchestrator
        self._render = render

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def healthz(self, _: Request) -> Response:
        """The process answers."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether a call could be served now: not stopping, the store answers, an instance is there."""
        problem = await self._problem()
        if problem is None:
            return json_response(
                {"status": "ready", **({"models": self._orchestrator.models()} if is_known(request) else {})}
            )
        said = f"not ready: {problem}" if is_known(request) else "not ready"
        return json_response(error_object(503, said, "not_ready"), 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        admin_only(request, "/metrics")
        return Response(await self._render() if self._render is not None else b"", media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        """The API, described."""
        return json_response(description(version("agentserve")))

    async def _problem(self) -> str | None:
        if not self._orchestrator.accepting:
            return "the gateway is stopping"
        if not self._orchestrator.models():
            return "no instance is live"
        try:
            await self._store.ping()
        except AgentServeError as error:
            return str(error)
        return None


def _exception_handlers() -> Mapping[type[Exception] | int, ExceptionHandler]:
    return {
        AgentServeError: on_known_error,
        WorkflowError: on_known_error,
        SchedulerError: on_known_error,
        HTTPException: on_http_error,
        Exception: on_defect,
    }
