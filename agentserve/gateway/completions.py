"""How is one LLM call answered? From the request's headers and body to a stream of chunks or one JSON."""

import asyncio
import time
import uuid
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from agentserve import headers
from agentserve.errors import AgentServeError, Conflict, Unavailable
from agentserve.gateway.allowance import Allowances, Ticket
from agentserve.gateway.answers import whole_answer
from agentserve.gateway.bodies import check_call, read_json, with_single_prompt
from agentserve.gateway.errors import Overloaded, UnknownModel, error_response, json_response
from agentserve.gateway.guard import tenant_of
from agentserve.gateway.identity import CallIdentity, read_identity
from agentserve.gateway.runs import CallContext, RunService
from agentserve.gateway.scoped import inside
from agentserve.gateway.sse import ChunkWriter
from agentserve.orchestrator import CallRequest, LiveCall, Orchestrator
from agentserve.orchestrator.request import Resume
from agentserve.settings import Settings
from agentserve.tenants.tenant import NOBODY, Tenant

_SSE_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


_OPENAI_REQUEST_ID: Final = "x-request-id"
"""Where OpenAI's clients look for the name of a request, to show it in their errors and logs."""


class Completions:
    """The two OpenAI routes that make tokens."""

    def __init__(
        self, orchestrator: Orchestrator, runs: RunService, settings: Settings, allowances: Allowances
    ) -> None:
        self._allowances = allowances
        self._orchestrator = orchestrator
        self._runs = runs
        self._settings = settings

    async def __call__(self, request: Request) -> ASGIApp:
        """Take a call; the returned response streams or waits for the whole answer."""
        settings, tenant = self._settings, tenant_of(request)
        path = request.url.path
        body = with_single_prompt(await read_json(request, settings.max_body_bytes))
        resume = check_call(path, body, settings.max_prompt_tokens)
        identity = inside(read_identity(request.headers, settings.max_slo_s, self._orchestrator.clock()), tenant)
        self._admit(body["model"])
        request_id = identity.request_id or tenant.inside(f"call-{uuid.uuid4().hex}")
        identity = self._placed_like_the_one_in_flight(identity, request_id)
        ticket = self._allowances.enter(tenant)
        try:
            return await self._begin(tenant, ticket, identity, request_id, path, body, resume)
        except BaseException:
            ticket.leave()
            raise

    async def _begin(
        self,
        tenant: Tenant,
        ticket: Ticket,
        identity: CallIdentity,
        request_id: str,
        path: str,
        body: dict[str, Any],
        resume: Resume | None,
    ) -> "CallResponse":
        context = await self._runs.begin_call(identity, request_id, self._settings.default_slo_s, tenant)
        self._orchestrator.cancel(request_id, "its client called again")
        deadline, run = context.deadline, context.run
        call = CallRequest(
            request_id=request_id,
            path=path,
            body=_salted(body, tenant),
            model=body["model"],
            run_id=run.run_id,
            step_id=context.step_id,
            workflow=run.workflow,
            node=context.node,
            tenant=tenant.name,
            tenant_weight=tenant.weight,
            scope=tenant.scope,
            run_deadline_s=run.deadline_s,
            target_deadline_s=deadline.target_s if deadline is not None else None,
            latest_deadline_s=deadline.latest_s if deadline is not None else None,
            downstream_s=deadline.downstream_s if deadline is not None else 0.0,
            first_call_of_run=context.is_first,
            session_id=identity.session_id,
            resume=resume,
            traceparent=identity.traceparent,
        )
        try:
            live = self._orchestrator.submit(call)
        except AgentServeError as error:
            await self._runs.end_call(context, "failed", error.record)
            raise
        ticket.charge(live.estimate.tokens)
        return CallResponse(live, context, self._orchestrator, self._runs, ticket)

    def _admit(self, model: str) -> None:
        if not self._orchestrator.accepting:
            raise Unavailable("the gateway is stopping; try again")
        if len(self._orchestrator.calls) >= self._settings.max_live_calls:
            raise Overloaded(f"{self._settings.max_live_calls} calls are in flight, which is the limit; try again")
        known = sorted({instance.spec.model for instance in self._orchestrator.instances.values()})
        if known and model not in known:
            raise UnknownModel(f"model {model[:128]!r} is not served; served are {', '.join(known)}")

    def _placed_like_the_one_in_flight(self, identity: CallIdentity, request_id: str) -> CallIdentity:
        """A repetition of a call in flight belongs to the run and step of the first, even if it does not say so."""
        live = self._orchestrator.calls.get(request_id)
        if live is None:
            return identity
        if identity.run_id not in (None, live.request.run_id):
            raise Conflict(f"request id {request_id} is in flight in another run")
        return CallIdentity(
            run_id=live.request.run_id,
            step_id=identity.step_id,
            node=identity.node or live.request.node,
            workflow=live.request.workflow,
            parents=identity.parents,
            request_id=request_id,
            session_id=identity.session_id,
            traceparent=identity.traceparent,
        )


class CallResponse:
    """Answers one call in flight. If the client goes, so does the call."""

    def __init__(
        self, live: LiveCall, context: CallContext, orchestrator: Orchestrator, runs: RunService, ticket: Ticket
    ) -> None:
        self.live = live
        self._ticket = ticket
        self._context = context
        self._orchestrator = orchestrator
        self._runs = runs
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as it comes, and end the call's step whatever happens."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self.live.request.wants_stream:
                await self._stream(scope, receive, send)
            else:
                await self._whole(scope, receive, send)
        finally:
            watch.cancel()
            self._give_up()
            self._ticket.charge(self.live.estimate.tokens + self.live.stream.output_tokens)
            self._ticket.leave()
            await asyncio.shield(self._ended())

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._give_up()

    def _give_up(self) -> None:
        if self.live.outcome is None and self._orchestrator.calls.get(self.live.request_id) is self.live:
            self._orchestrator.cancel(self.live.request_id)

    async def _ended(self) -> None:
        live = self.live
        is_stopping = live.outcome == "cancelled" and not self._orchestrator.accepting
        error = None if live.error is None else live.error.record
        await self._runs.end_call(self._context, live.outcome or "cancelled", error, keep_step=is_stopping)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            pieces = await self.live.whole()
        except AgentServeError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self._ended()  # before the answer, so that the client finds its run as the answer left it
        answer = whole_answer(self.live.request, self.live.stream, pieces, self._created)
        await json_response(answer, headers=self._headers())(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            pieces = await self.live.take()
        except AgentServeError as error:
            await self._refuse(error, scope, receive, send)
            return
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in self._headers().items()]
        await send({"type": "http.response.start", "status": 200, "headers": [*_SSE_HEADERS, *raw]})
        writer = ChunkWriter(self.live.request, self.live.stream, self._created)
        try:
            while pieces:
                await send(_body(writer.pieces(pieces), more=True))
                pieces = await self.live.take()
            await self._ended()
            await send(_body(writer.end()))
        except AgentServeError as error:
            await send(_body(writer.error(error)))

    async def _refuse(self, error: AgentServeError, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(error)
        for name, value in self._headers().items():
            response.headers[name] = value
        await response(scope, receive, send)

    def _headers(self) -> dict[str, str]:
        context, live = self._context, self.live
        given = {
            headers.RUN_ID: context.run.run_id.removeprefix(live.request.scope),
            headers.STEP_ID: context.step_id,
            headers.REQUEST_ID: live.request.shown_id,
            _OPENAI_REQUEST_ID: live.request.shown_id,
        }
        if live.first_instance is not None:
            given[headers.INSTANCE] = live.first_instance
        if context.deadline is not None:
            given[headers.DEADLINE] = repr(context.deadline.target_s)
        return given


def _salted(body: dict[str, Any], tenant: Tenant) -> dict[str, Any]:
    """The body with the salt that keeps the tenant's cached prefixes apart."""
    if tenant is NOBODY:
        return body
    salt, given = tenant.cache_salt(body.get("cache_salt")), body.get("cache_salt")
    if salt == given:
        return body
    return {name: value for name, value in body.items() if name != "cache_salt"} | (
        {} if salt is None else {"cache_salt": salt}
    )


def _body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
