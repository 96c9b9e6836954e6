"""Can this body be served? Read within the limit, parsed once, and checked where we rely on it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request

from agentserve.errors import BadInput, TooLarge
from agentserve.gateway.errors import BadParameter, SlowBody, UnsupportedEncoding
from agentserve.orchestrator.request import CHAT, COMPLETIONS, Resume, migration_refusal

BODY_TIMEOUT_S: Final = 60.0
MAX_MESSAGES: Final = 10_000
MAX_STOPS: Final = 64
MAX_STOP_CHARS: Final = 1024
_MAX_INT: Final = 2**31 - 1


async def read_json(request: Request, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> dict[str, Any]:
    """The body as a JSON object. TooLarge as soon as it is, whatever Content-Length says; BadInput if it is not one.

    UnsupportedEncoding for a compressed body, SlowBody for one that takes longer than `timeout_s` to come.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedEncoding(f"content-encoding {encoding[:32]!r} is not supported: send the body as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(chunk)
    except TimeoutError:
        raise SlowBody(f"the body was not there after {timeout_s:g} s") from None
    except ClientDisconnect:
        raise BadInput("the client left before its request was complete") from None
    try:
        body = orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadInput("the body must be a JSON object")
    return body


def with_single_prompt(body: dict[str, Any]) -> dict[str, Any]:
    """The body with a list of one prompt as that prompt, which means the same and may move between engines."""
    match body.get("prompt"):
        case [str() as only] | [[int(), *_] as only]:
            return {**body, "prompt": only}
    return body


def check_call(path: str, body: Mapping[str, Any], max_prompt_tokens: int) -> Resume | None:
    """Check every field of a completion's body that we read ourselves; the engine judges the rest.

    Returns where to resume a broken stream, None for a fresh call. Raises BadParameter naming the field.
    """
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise BadParameter("model", "must be the name of a model")
    if path == CHAT:
        _check_messages(body.get("messages"))
    elif path == COMPLETIONS:
        _check_prompt(body.get("prompt"))
    for name in ("max_tokens", "max_completion_tokens", "n", "best_of"):
        _check_int(body, name, least=1)
    _check_int(body, "min_tokens", least=0)
    for name in ("stream", "return_token_ids", "include_stop_str_in_output"):
        if body.get(name) not in (None, True, False):
            raise BadParameter(name, "must be true or false")
    for name in ("stream_options", "response_format", "agentserve"):
        if not isinstance(body.get(name), dict | None):
            raise BadParameter(name, "must be an object")
    _check_stop(body.get("stop"))
    return _resume(path, body, max_prompt_tokens)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadParameter("messages", "must be a list of at least one message")
    if len(messages) > MAX_MESSAGES:
        raise TooLarge(f"messages: {len(messages)} are given, {MAX_MESSAGES} are allowed")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadParameter(f"messages[{index}]", "must be an object with a role")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) for part in content):
                raise BadParameter(f"messages[{index}].content", "must be text or a list of parts")
        elif not isinstance(content, str | None):
            raise BadParameter(f"messages[{index}].content", "must be text or a list of parts")


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            _check_ids("prompt", prompt, _MAX_INT)
        return
    if not isinstance(prompt, str):
        raise BadParameter("prompt", "must be text or a list of token ids")


def _check_int(body: Mapping[str, Any], name: str, least: int) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_INT:
        raise BadParameter(name, f"must be a whole number of at least {least}")


def _check_stop(stop: Any) -> None:
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else [] if stop is None else None
    if stops is None or not all(isinstance(each, str) for each in stops):
        raise BadParameter("stop", "must be text or a list of texts")
    if len(stops) > MAX_STOPS or any(len(each) > MAX_STOP_CHARS for each in stops):
        raise BadParameter("stop", f"at most {MAX_STOPS} stop strings of {MAX_STOP_CHARS} characters are allowed")


def _resume(path: str, body: Mapping[str, Any], max_tokens: int) -> Resume | None:
    ours = body.get("agentserve")
    resume = ours.get("resume") if ours is not None else None
    if resume is None:
        return None
    param = "agentserve.resume"
    if not isinstance(resume, dict):
        raise BadParameter(param, "must be an object")
    refusal = migration_refusal(path, body)
    if refusal is not None:
        raise BadParameter(param, f"this call cannot be resumed: {refusal}")
    prompt = _check_ids(f"{param}.prompt_token_ids", resume.get("prompt_token_ids"), max_tokens)
    ids = _check_ids(f"{param}.token_ids", resume.get("token_ids"), max_tokens)
    if not prompt:
        raise BadParameter(f"{param}.prompt_token_ids", "must not be empty")
    return Resume(prompt, ids)


def _check_ids(param: str, ids: Any, limit: int) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(item) is int and 0 <= item <= _MAX_INT for item in ids):
        raise BadParameter(param, "must be a list of token ids")
    if len(ids) > limit:
        raise TooLarge(f"{param}: {len(ids)} token ids are given, {limit} are allowed")
    return tuple(ids)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {max_bytes} bytes")
