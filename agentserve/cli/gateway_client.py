"""How the command line asks a running gateway: one request, with errors in words."""

import os
from typing import TYPE_CHECKING, Any

from agentserve.errors import AgentServeError, NotFound, Unauthorized, Unavailable
from agentserve.sdk.credentials import authorization

if TYPE_CHECKING:
    import httpx


def gateway_url(given: str | None) -> str:
    """The flag's value, else $AGENTSERVE_GATEWAY, else the default address, without a trailing slash."""
    return (given or os.environ.get("AGENTSERVE_GATEWAY") or "http://127.0.0.1:8080").rstrip("/")


def get_json(base_url: str, path: str) -> Any:
    """GET a JSON answer. NotFound and Unavailable carry the gateway's own message."""
    return _asked("GET", base_url, path)


def put_json(base_url: str, path: str, body: Any) -> Any:
    """PUT a JSON body; answer and errors as of `get_json`."""
    return _asked("PUT", base_url, path, json=body)


def _asked(method: str, base_url: str, path: str, **given: Any) -> Any:
    import httpx  # a third of what `agentserve --help` would take

    try:
        response = httpx.request(method, base_url + path, timeout=10.0, headers=authorization(), **given)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"no gateway answers at {base_url} ({type(error).__name__}): start one with `agentserve up`, or name yours "
            "with --gateway or AGENTSERVE_GATEWAY"
        ) from None
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise Unavailable(f"{base_url}{path}: the answer is not JSON; is this an agentserve gateway?") from None
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise Unauthorized(f"{base_url}: {_message(response)} (set AGENTSERVE_API_KEY)")
    message = f"{base_url}{path}: HTTP {response.status_code}: {_message(response)}"
    raise NotFound(message) if response.status_code == 404 else AgentServeError(message)


def _message(response: "httpx.Response") -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
