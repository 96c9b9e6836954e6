"""What does a client see when something is wrong? Every error in OpenAI's shape, mapped from ours in one place."""

import math
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentserve.errors import AgentServeError, BadInput
from scheduler.errors import SchedulerError
from workflows.errors import IllegalTransition, WorkflowError

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_REFUSALS: Final = frozenset({403, 408, 413, 429})
_HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


class BadParameter(BadInput):
    """A field of a body or a header cannot be used; `param` names it."""

    def __init__(self, param: str, message: str, code: str = "invalid_request") -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.code = code


class UnknownModel(AgentServeError):
    """No instance serves the model."""

    status = 404
    code = "model_not_found"


class UnsupportedEncoding(BadInput):
    """A body is compressed; engines take none such either."""

    status = 415
    code = "unsupported_encoding"


class SlowBody(BadInput):
    """A body did not come in time."""

    status = 408
    code = "request_timeout"


class Overloaded(AgentServeError):
    """More calls are in flight, or more pages open, than the gateway takes."""

    status = 429
    code = "overloaded"


def error_json(error: AgentServeError | WorkflowError | SchedulerError) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error."""
    status, code = _status_and_code(error)
    return status, error_object(status, str(error), code, getattr(error, "param", None))


def error_object(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error body."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: AgentServeError | WorkflowError | SchedulerError) -> Response:
    """The whole answer; says when to come back where that helps."""
    status, body = error_json(error)
    wait_s = math.ceil(getattr(error, "retry_after_s", 1.0))
    headers = {"retry-after": str(max(1, wait_s))} if status in (429, 503) else {}
    return json_response(body, status, headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(body), status, headers, "application/json")


async def on_known_error(request: Request, error: Exception) -> Response:
    """Starlette handler for our own errors and those of workflows and scheduler; refusals are counted."""
    if not isinstance(error, AgentServeError | WorkflowError | SchedulerError):
        raise error
    status, code = _status_and_code(error)
    if status in _REFUSALS:
        request.app.state.on_refused(request, code)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette handler for unknown routes and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.url.path}"
    message = f"no such route: {where}" if error.status_code == 404 else f"{error.detail}: {where}"
    body = error_object(error.status_code, message, _HTTP_CODES.get(error.status_code, "invalid_request"))
    return json_response(body, error.status_code, dict(error.headers or {}))


async def on_defect(_: Request, __: Exception) -> Response:
    """Starlette handler for what should not happen; the log has the traceback."""
    return json_response(error_object(500, "internal error", "internal_error"), 500)


def _status_and_code(error: AgentServeError | WorkflowError | SchedulerError) -> tuple[int, str]:
    if isinstance(error, AgentServeError):
        return error.status, error.code
    if isinstance(error, IllegalTransition):
        return 409, "conflict"
    return 400, "invalid_request"
