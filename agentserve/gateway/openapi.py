"""What does the HTTP API look like to a machine? Its OpenAPI description, served at `/openapi.json`.

A test compares it with the routes, and schemathesis attacks a real gateway by it. Bodies of completions are OpenAI's
own: only the fields that are read here are described.
"""

from collections.abc import Mapping
from typing import Any, Final

from scheduler.events import Mode
from workflows.run import RunStatus, StepKind, StepStatus

Plain = dict[str, Any]

_TEXT: Final[Plain] = {"type": "string"}
_NAME: Final[Plain] = {"type": "string", "minLength": 1, "maxLength": 128}
_RUN_ID: Final[Plain] = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.:@~-]{0,127}$"}
_ID: Final[Plain] = {"type": "string", "pattern": r"^[!-+\--~]{1,128}$"}
_ID_LIST: Final[Plain] = {"type": "string", "pattern": r"^[!-+\--~]{1,128}(,[!-+\--~]{1,128}){0,255}$"}
_SECONDS: Final[Plain] = {"type": "number", "exclusiveMinimum": 0}
_IDS: Final[Plain] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_COUNT: Final[Plain] = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}

_REASONS: Final = {
    400: "malformed JSON, a bad field or header, or what the engine refused",
    401: "no key, or one that is not known, where keys are asked for",
    403: "the key does not open this, or another site's page asks",
    404: "unknown model, run, workflow or route",
    409: "the run has ended, or what is told does not fit it",
    413: "over a limit",
    415: "a compressed body",
    429: "a limit is reached; Retry-After says when",
    502: "the engines failed too often",
    503: "no instance, no store, or the gateway is stopping",
    504: "no answer within AGENTSERVE_CALL_TIMEOUT_S",
}
_CALL_ERRORS: Final = (400, 404, 409, 413, 415, 429, 502, 503, 504)
_CHANGE_ERRORS: Final = (400, 404, 409, 413, 415, 503)


def description(version: str) -> Plain:
    """The whole description, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentserve gateway", "version": version},
        "paths": {**_calls(), **_runs(), **_cluster(), **_pages()},
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _calls() -> Plain:
    common: Plain = {
        "model": _TEXT,
        "stream": {"type": "boolean"},
        "max_tokens": _COUNT,
        "min_tokens": {"type": "integer", "minimum": 0},
        "n": _COUNT,
        "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 64}]},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "return_token_ids": {"type": "boolean"},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "agentserve": {
            "type": "object",
            "properties": {
                "resume": {
                    "type": "object",
                    "properties": {"prompt_token_ids": _IDS, "token_ids": _IDS},
                    "required": ["prompt_token_ids", "token_ids"],
                }
            },
        },
    }
    part = _object({"type": {"enum": ["text"]}, "text": _TEXT}, "type", "text")
    content = {"anyOf": [_TEXT, {"type": "array", "items": part, "minItems": 1}]}
    message = _object({"role": {"enum": ["system", "user", "assistant"]}, "content": content}, "role", "content")
    chat = {**common, "messages": {"type": "array", "items": message, "minItems": 1}, "max_completion_tokens": _COUNT}
    text = {**common, "prompt": {"anyOf": [_TEXT, _IDS]}, "echo": {"type": "boolean"}, "best_of": _COUNT}
    ok = {"description": "the completion, or its server-sent events"}
    return {
        "/v1/chat/completions": {
            "post": _operation("a chat completion", _CALL_ERRORS, body=_object(chat, "model", "messages"), ok={200: ok})
            | {"parameters": _HEADERS}
        },
        "/v1/completions": {
            "post": _operation("a completion", _CALL_ERRORS, body=_object(text, "model", "prompt"), ok={200: ok})
            | {"parameters": _HEADERS}
        },
        "/v1/models": {"get": _operation("models that live instances serve", (503,))},
        "/v1/models/{name}": {"get": _operation("one of them", (404,)), "parameters": [_path("name", _TEXT)]},
    }


def _runs() -> Plain:
    step = _object(
        {
            "event": {"enum": ["started", "finished"]},
            "step_id": _ID,
            "node": _NAME,
            "kind": {"enum": [str(kind) for kind in StepKind]},
            "parents": {"type": "array", "items": _ID},
            "at_s": {"type": "number"},
            "status": {"enum": [str(status) for status in StepStatus]},
            "error": _TEXT,
        },
        "event",
        "step_id",
    )
    created = {"run_id": _RUN_ID, "workflow": _NAME, "slo_s": _SECONDS, "deadline": {"type": "number"}}
    ended = {"status": {"enum": [str(each) for each in RunStatus if each is not RunStatus.RUNNING]}, "error": _TEXT}
    listed = [
        _query("status", {"enum": [str(status) for status in RunStatus]}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
    ]
    new = {201: {"description": "made"}, 200: {"description": "it existed"}}
    one = [_path("run_id", _RUN_ID)]
    steps = _object({"steps": {"type": "array", "items": step, "maxItems": 1000}}, "steps")
    found = (400, 404, 503)
    return {
        "/v1/runs": {
            "post": _operation("submit a run", _CHANGE_ERRORS, body=_object(created, "workflow"), ok=new),
            "get": _operation("the newest runs", (400, 503)) | {"parameters": listed},
        },
        "/v1/runs/{run_id}": {"get": _operation("a run with steps and deadlines", found), "parameters": one},
        "/v1/runs/{run_id}/events": {"get": _operation("its journal", found), "parameters": one},
        "/v1/runs/{run_id}/story": {
            "get": _operation("it step by step, in words", found)
            | {"parameters": [_query("limit", {"type": "integer", "minimum": 1, "maximum": 2000})]},
            "parameters": one,
        },
        "/v1/runs/{run_id}/steps": {
            "post": _operation("report steps", _CHANGE_ERRORS, body=steps),
            "parameters": one,
        },
        "/v1/runs/{run_id}/finish": {
            "post": _operation("end it", _CHANGE_ERRORS, body=_object(ended)),
            "parameters": one,
        },
        "/v1/runs/{run_id}/cancel": {"post": _operation("stop it", _CHANGE_ERRORS), "parameters": one},
    }


def _cluster() -> Plain:
    node = _object({"name": _NAME, "kind": {"enum": [str(kind) for kind in StepKind]}}, "name", "kind")
    edge = _object(
        {"source": _NAME, "target": _NAME, "label": _TEXT, "fan_out": {"type": "boolean"}}, "source", "target"
    )
    workflow = _object(
        {"name": _NAME, "nodes": {"type": "array", "items": node}, "edges": {"type": "array", "items": edge}},
        *("name", "nodes", "edges"),
    )
    mode = _object({"mode": {"enum": [str(mode) for mode in Mode]}}, "mode")
    return {
        "/v1/workflows/{name}": {
            "put": _operation("register a workflow", _CHANGE_ERRORS, body=workflow),
            "get": _operation("a registered workflow", (400, 404, 503)),
            "parameters": [_path("name", _NAME)],
        },
        "/v1/cluster": {"get": _operation("instances, policy, calls in flight", ())},
        "/v1/policy": {"get": _operation("the policy and its parameters", ())},
        "/v1/mode": {
            "get": _operation("the mode with its figures", ()),
            "put": _operation("switch the mode", (400, 413, 415, 503), body=mode),
        },
        "/healthz": {"get": _operation("the process answers", ())},
        "/readyz": {"get": _operation("a call could be served now", (503,))},
        "/metrics": {"get": _operation("Prometheus text", ())},
        "/openapi.json": {"get": _operation("this description", ())},
    }


def _pages() -> Plain:
    small = {"type": "integer", "minimum": 0}
    view = [
        _query("first", small),
        _query("rows", small),
        _query("show", _TEXT),
        _query("q", _TEXT),
        _query("run", _RUN_ID),
    ]
    return {
        "/ui": {"get": _operation("the live page", ())},
        "/ui/{name}": {"get": _operation("one of its files", (404,)), "parameters": [_path("name", _TEXT)]},
        "/v1/live": {"get": _operation("server-sent events for the page", (400, 403, 429, 503)) | {"parameters": view}},
    }


def _operation(
    summary: str, errors: tuple[int, ...], *, body: Plain | None = None, ok: Mapping[int, Plain] | None = None
) -> Plain:
    answers: Plain = {str(status): answer for status, answer in (ok or {200: {"description": "as asked"}}).items()}
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told = sorted({*errors, 401, 403, 429})  # what keys and limits may end in, on every route that wants one
    answers |= {str(status): {"description": _REASONS[status], "content": shape} for status in told}
    found: Plain = {"summary": summary, "responses": answers}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _object(properties: Plain, *required: str) -> Plain:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _path(name: str, schema: Plain) -> Plain:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Plain) -> Plain:
    return {"name": name, "in": "query", "schema": schema}


_ERROR: Final = _object(
    {
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT},
            *("message", "type", "code"),
        )
    },
    "error",
)
_HEADERS: Final[list[Plain]] = [
    {"name": name, "in": "header", "schema": schema}
    for name, schema in (
        ("x-agentserve-run-id", _RUN_ID),
        ("x-agentserve-step-id", _ID),
        ("x-agentserve-node", _NAME),
        ("x-agentserve-workflow", _NAME),
        ("x-agentserve-parent-steps", _ID_LIST),
        ("x-agentserve-slo-s", _SECONDS),
        ("x-agentserve-deadline", {"type": "number"}),
        ("x-agentserve-request-id", _ID),
        ("x-agentserve-session-id", _ID),
    )
]
