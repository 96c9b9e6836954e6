"""Which routes does the page have? Its files, its stream, and what it asks for about one run and about the policy."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agentserve.errors import Unavailable
from agentserve.gateway.errors import BadParameter, json_response
from agentserve.gateway.guard import tenant_of
from agentserve.gateway.identity import check_run_id
from agentserve.gateway.page import figures
from agentserve.gateway.page.explained import explained
from agentserve.gateway.page.files import FIRST, answer, read_files
from agentserve.gateway.page.stream import LiveStream, Reader, read_view, refuse_other_sites
from agentserve.gateway.page.watch import Watch
from agentserve.gateway.runs import RunService
from agentserve.gateway.scoped import outside
from agentserve.orchestrator import Orchestrator
from agentserve.run_story import run_story
from agentserve.settings import Settings

MAX_STORY_STEPS: Final = 2000
_STORY_STEPS: Final = "200"


class PageRoutes:
    """Handlers of `/ui`, `/v1/live`, `/v1/policy` and `/v1/runs/{id}/story`."""

    def __init__(
        self, orchestrator: Orchestrator, runs: RunService, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self._orchestrator = orchestrator
        self._runs = runs
        self._settings = settings
        self._clock = clock
        self._files = read_files()
        self.watch = Watch(runs.store, orchestrator, settings.max_live_pages, clock)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/ui", self.page, methods=["GET"]),
            Route("/ui/{name:path}", self.file, methods=["GET"]),
            Route("/v1/live", self.live, methods=["GET"]),
            Route("/v1/policy", self.policy, methods=["GET"]),
            Route("/v1/runs/{run_id}/story", self.story, methods=["GET"]),
        ]

    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What must run beside."""
        return (self.watch.run,)

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return answer(self._files[FIRST], request)

    async def file(self, request: Request) -> Response:
        """One of its files."""
        name = request.path_params["name"]
        if not name:
            return RedirectResponse("../ui", 307)
        if name not in self._files:
            raise HTTPException(404)
        return answer(self._files[name], request)

    async def live(self, request: Request) -> ASGIApp:
        """The stream of changes."""
        refuse_other_sites(request)
        view, run_id = read_view(request, tenant_of(request))
        if not self._orchestrator.accepting:
            raise Unavailable("the gateway is stopping; try again")
        self.watch.check_room()
        return LiveStream(self.watch, Reader(self.watch, view, run_id))

    async def policy(self, _: Request) -> Response:
        """The policy, its parameters and the gateway's limits."""
        return json_response(figures.policy(self._settings, self._orchestrator))

    async def story(self, request: Request) -> Response:
        """A run, step by step, with why each call was served where it was."""
        tenant = tenant_of(request)
        run_id = tenant.inside(check_run_id("run_id", request.path_params["run_id"]))
        limit = request.query_params.get("limit", _STORY_STEPS)
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_STORY_STEPS:
            raise BadParameter("limit", f"must be a whole number from 1 to {MAX_STORY_STEPS}")
        run, deadlines = await self._runs.show(run_id)
        told = run_story(run, await self._runs.store.read(run_id))
        for step in told.steps:
            derived = deadlines.get(step.step_id)
            if derived is not None:
                step.target_deadline_s, step.latest_deadline_s = derived.target_s, derived.latest_s
        return json_response(outside(explained(told, self._clock(), int(limit)), tenant))
