"""How do people and programs read and steer runs, workflows and the cluster over REST?"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentserve.errors import NotFound, TooLarge
from agentserve.gateway.bodies import read_json
from agentserve.gateway.errors import BadParameter, UnknownModel, json_response
from agentserve.gateway.guard import tenant_of
from agentserve.gateway.identity import check_deadline, check_id, check_name, check_number, check_run_id, check_slo
from agentserve.gateway.runs import RunService
from agentserve.gateway.scoped import outside
from agentserve.journal import RunEvent
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings
from workflows.deadlines import StepDeadline
from workflows.graph import Workflow
from workflows.run import Run, RunStatus, StepFinished, StepKind, StepStarted, StepStatus
from workflows.wire import run_to_plain

MAX_STEPS_AT_ONCE: Final = 1000
MAX_LISTED: Final = 1000
MAX_ERROR_CHARS: Final = 1000
MAX_CLOCK_OFF_S: Final = 86_400.0
_ADDRESSES: Final = frozenset({"url", "kv_address", "reason"})
_T = TypeVar("_T", RunStatus, StepStatus, StepKind)


class RestRoutes:
    """Handlers of `/v1/runs`, `/v1/workflows`, `/v1/cluster` and `/v1/models`."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        runs: RunService,
        settings: Settings,
        clock: Callable[[], float],
        policy: str,
    ) -> None:
        self._orchestrator = orchestrator
        self._runs = runs
        self._settings = settings
        self._clock = clock
        self._policy = policy

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/v1/cluster", self.cluster, methods=["GET"]),
            Route("/v1/workflows/{name:path}", self.put_workflow, methods=["PUT"]),
            Route("/v1/workflows/{name:path}", self.get_workflow, methods=["GET"]),
            Route("/v1/runs", self.create_run, methods=["POST"]),
            Route("/v1/runs", self.list_runs, methods=["GET"]),
            Route("/v1/runs/{run_id}", self.show_run, methods=["GET"]),
            Route("/v1/runs/{run_id}/events", self.events, methods=["GET"]),
            Route("/v1/runs/{run_id}/cancel", self.cancel_run, methods=["POST"]),
            Route("/v1/runs/{run_id}/steps", self.report_steps, methods=["POST"]),
            Route("/v1/runs/{run_id}/finish", self.finish_run, methods=["POST"]),
        ]

    async def models(self, _: Request) -> Response:
        """Models that live instances serve, in OpenAI's shape."""
        return json_response({"object": "list", "data": [self._model(name) for name in self._orchestrator.models()]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name, served = request.path_params["name"], self._orchestrator.models()
        if name not in served:
            raise UnknownModel(f"model {name[:128]!r} is not served; served are {', '.join(served)}")
        return json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(self._clock()), "owned_by": "agentserve"}

    async def cluster(self, request: Request) -> Response:
        """Instances as reported and as estimated, the policy, and how much is in flight; addresses for admins only."""
        state = self._orchestrator.snapshot()
        if not tenant_of(request).admin:
            state["instances"] = [
                {name: None if name in _ADDRESSES else value for name, value in one.items()}
                for one in state["instances"]
            ]
        mode = str(self._orchestrator.mode)
        return json_response({"policy": self._policy, "mode": mode, "cluster": self._settings.cluster, **state})

    async def put_workflow(self, request: Request) -> Response:
        """Register or replace a workflow."""
        name, tenant = check_name("name", request.path_params["name"]), tenant_of(request)
        workflow = Workflow.from_dict(await read_json(request, self._settings.max_body_bytes))
        if workflow.name != name:
            raise BadParameter("name", f"the body describes workflow {workflow.name!r}, the path says {name!r}")
        await self._runs.learning.register(replace(workflow, name=tenant.inside(name)))
        return json_response({"name": name, "fingerprint": workflow.fingerprint})

    async def get_workflow(self, request: Request) -> Response:
        """A registered workflow."""
        name, tenant = check_name("name", request.path_params["name"]), tenant_of(request)
        workflow = await self._runs.learning.registered(tenant.inside(name))
        if workflow is None:
            raise NotFound(f"workflow {name!r} is not registered")
        return json_response(replace(workflow, name=name).to_dict())

    async def create_run(self, request: Request) -> Response:
        """Submit a run; the same again is answered with the one that exists."""
        body = await read_json(request, self._settings.max_body_bytes)
        given_id, slo, deadline = body.get("run_id"), body.get("slo_s"), body.get("deadline")
        if slo is not None and deadline is not None:
            raise BadParameter("slo_s", "give slo_s or deadline, not both")
        max_slo_s = self._settings.max_slo_s
        deadline_s = None if deadline is None else check_deadline("deadline", deadline, max_slo_s, self._clock())
        tenant = tenant_of(request)
        live, is_new = await self._runs.create(
            None if given_id is None else tenant.inside(check_run_id("run_id", given_id)),
            tenant.inside(check_name("workflow", body.get("workflow"))),
            slo_s=self._settings.default_slo_s if slo is None else check_slo("slo_s", slo, max_slo_s),
            deadline_s=deadline_s,
            traceparent=request.headers.get("traceparent"),
            tenant=tenant,
        )
        return json_response(outside(_shown(live.run, live.deadlines), tenant), 201 if is_new else 200)

    async def list_runs(self, request: Request) -> Response:
        """The newest runs first, of one status if asked."""
        status = request.query_params.get("status")
        limit = request.query_params.get("limit", "100")
        if not limit.isdigit() or not 1 <= int(limit) <= MAX_LISTED:
            raise BadParameter("limit", f"must be a whole number from 1 to {MAX_LISTED}")
        wanted, tenant = None if status is None else _one_of("status", status, RunStatus), tenant_of(request)
        listed = await self._runs.list(wanted, int(limit), tenant)
        data = [outside(asdict(summary), tenant) for summary in listed]
        return json_response({"object": "list", "data": data})

    async def show_run(self, request: Request) -> Response:
        """A run with its steps and deadlines."""
        return json_response(outside(_shown(*await self._runs.show(run_id_of(request))), tenant_of(request)))

    async def events(self, request: Request) -> Response:
        """The journal of a run, oldest first."""
        run_id, tenant = run_id_of(request), tenant_of(request)
        events = await self._runs.store.read(run_id)
        if not events:
            await self._runs.show(run_id)
        return json_response({"object": "list", "data": [outside(_event(event), tenant) for event in events]})

    async def cancel_run(self, request: Request) -> Response:
        """Stop a run and its calls."""
        run = await self._runs.cancel(run_id_of(request))
        return json_response(outside(_shown(run, {}), tenant_of(request)))

    async def report_steps(self, request: Request) -> Response:
        """Starts and ends of steps, in order, as the SDK saw them."""
        run_id = run_id_of(request)
        body = await read_json(request, self._settings.max_body_bytes)
        steps = body.get("steps")
        if not isinstance(steps, list):
            raise BadParameter("steps", "must be a list")
        if len(steps) > MAX_STEPS_AT_ONCE:
            raise TooLarge(f"steps: {len(steps)} are given, {MAX_STEPS_AT_ONCE} are allowed at once")
        now_s = self._clock()
        run = await self._runs.report(run_id, [_transition(f"steps[{i}]", one, now_s) for i, one in enumerate(steps)])
        answer = {"run_id": run_id, "status": str(run.status), "version": run.version}
        return json_response(outside(answer, tenant_of(request)))

    async def finish_run(self, request: Request) -> Response:
        """The run ended, as its client says."""
        body = await read_json(request, self._settings.max_body_bytes)
        status = _one_of("status", body.get("status", "succeeded"), RunStatus)
        if status is RunStatus.RUNNING:
            raise BadParameter("status", "must be succeeded, failed or cancelled")
        run = await self._runs.finish(run_id_of(request), status, _error(body))
        return json_response(outside(_shown(run, {}), tenant_of(request)))


def run_id_of(request: Request) -> str:
    """The run that the path names, as the gateway keeps it for this caller; BadParameter if it names none."""
    return tenant_of(request).inside(check_run_id("run_id", request.path_params["run_id"]))


def _shown(run: Run, deadlines: Mapping[str, StepDeadline]) -> dict[str, Any]:
    return {**run_to_plain(run), "deadlines": {step_id: asdict(one) for step_id, one in deadlines.items()}}


def _event(event: RunEvent) -> dict[str, Any]:
    return {
        "run_id": event.run_id,
        "kind": str(event.kind),
        "at_s": event.at_s,
        "step_id": event.step_id,
        "request_id": event.request_id,
        "data": event.data,
    }


def _transition(where: str, given: Any, now_s: float) -> StepStarted | StepFinished:
    if not isinstance(given, dict):
        raise BadParameter(where, "must be an object")
    step_id = check_id(f"{where}.step_id", given.get("step_id"))
    at_s = check_number(f"{where}.at_s", given["at_s"]) if given.get("at_s") is not None else now_s
    if abs(at_s - now_s) > MAX_CLOCK_OFF_S:  # milliseconds, or time since the process began
        raise BadParameter(f"{where}.at_s", "must be Unix seconds, within a day of the gateway's clock")
    match given.get("event"):
        case "started":
            parents = given.get("parents") or []
            if not isinstance(parents, list):
                raise BadParameter(f"{where}.parents", "must be a list of step ids")
            return StepStarted(
                step_id=step_id,
                node=check_name(f"{where}.node", given.get("node")),
                kind=_one_of(f"{where}.kind", given.get("kind", "tool"), StepKind),
                parents=tuple(check_id(f"{where}.parents", parent) for parent in parents),
                at_s=at_s,
            )
        case "finished":
            status = _one_of(f"{where}.status", given.get("status") or "succeeded", StepStatus)
            return StepFinished(step_id=step_id, status=status, at_s=at_s, error=_error(given))
        case _:
            raise BadParameter(f"{where}.event", "must be started or finished")


def _error(given: Mapping[str, Any]) -> str | None:
    error = given.get("error")
    return None if error is None else str(error)[:MAX_ERROR_CHARS]


def _one_of(param: str, value: object, kind: type[_T]) -> _T:
    try:
        return kind(str(value))
    except ValueError:
        raise BadParameter(param, f"must be one of {', '.join(kind)}") from None
