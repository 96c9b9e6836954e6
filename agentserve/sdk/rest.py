"""How does the SDK tell the gateway about workflows, runs and steps? REST calls, an error for each way to fail."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import orjson

from agentserve.errors import (
    AgentServeError,
    BadInput,
    Conflict,
    Forbidden,
    LimitReached,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from agentserve.sdk.credentials import authorization
from agentserve.sdk.origin import origin_of
from agentserve.sdk.patience import Patience
from agentserve.sdk.transport import plain_transport
from workflows.graph import Workflow

_ERRORS: Final[Mapping[int, type[AgentServeError]]] = {
    401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 413: TooLarge, 429: LimitReached,
}  # fmt: skip
_LOST: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException)
_AWAY: Final = (502, 503, 504)
T = TypeVar("T")


class GatewayClient:
    """REST calls to one gateway; all are idempotent, so each is repeated while the gateway is away. Thread-safe."""

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        patience: Patience | None = None,
        api_key: str | None = None,
    ) -> None:
        self.url = url
        self.origin = origin_of(url)
        self._patience = patience or Patience()
        self._seen = False
        inner = transport if transport is not None else plain_transport()
        self._client = httpx.Client(
            base_url=url,
            transport=inner,
            timeout=httpx.Timeout(10.0, connect=2.0),
            headers=authorization(api_key),
        )

    def put_workflow(self, workflow: Workflow) -> None:
        """Register or replace the workflow."""
        self._call("PUT", f"/v1/workflows/{quote(workflow.name, safe='')}", workflow.to_dict())

    def create_run(self, run_id: str, workflow: str, slo_s: float | None) -> Mapping[str, Any]:
        """Submit a run, or find the one of that id; what the gateway says of it. Conflict if that has ended."""
        body: dict[str, Any] = {"run_id": run_id, "workflow": workflow}
        if slo_s is not None:
            body["slo_s"] = slo_s
        return _live(run_id, self._call("POST", "/v1/runs", body))

    def show_run(self, run_id: str) -> Mapping[str, Any]:
        """A run that has not ended, with its steps; NotFound, and Conflict if it has ended."""
        return _live(run_id, self._call("GET", f"/v1/runs/{quote(run_id, safe='')}"))

    def report_steps(self, run_id: str, steps: Sequence[Mapping[str, Any]]) -> None:
        """Report step starts and ends."""
        self._call("POST", f"/v1/runs/{quote(run_id, safe='')}/steps", {"steps": list(steps)})

    def finish_run(self, run_id: str, status: str, error: str | None) -> Mapping[str, Any]:
        """End a run; what the gateway says about it."""
        body = {"status": status} | ({} if error is None else {"error": error})
        return self._call("POST", f"/v1/runs/{quote(run_id, safe='')}/finish", body)

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        content = None if body is None else orjson.dumps(body)
        response = self._until_answered(lambda: self._client.request(method, path, content=content))
        if response.is_success:
            answer = _json(response)
            return answer if isinstance(answer, dict) else {}
        raise _error(response, f"{method} {path}")

    def _until_answered(self, attempt: Callable[[], httpx.Response]) -> httpx.Response:
        wait = self._patience.begin(seen=self._seen)
        while True:
            try:
                response = attempt()
            except _LOST as error:
                if not wait.longer():
                    raise Unavailable(
                        f"no gateway answers at {self.url} ({type(error).__name__}); start one with `agentserve up`"
                    ) from error
            except RuntimeError as error:
                if not self._client.is_closed:
                    raise
                raise Unavailable("this client of the gateway was closed") from error
            except httpx.HTTPError as error:
                raise Unavailable(f"cannot talk to the gateway at {self.url}: {type(error).__name__}") from error
            else:
                self._seen = True
                if response.status_code not in _AWAY or not wait.longer():
                    return response
            self._patience.sleep(wait.next_s)


def _live(run_id: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    status = answer.get("status", "running")
    if status != "running":
        raise Conflict(f"run {run_id} has ended ({status}); a new run needs another id")
    return answer


def _json(response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None


def _error(response: httpx.Response, what: str) -> AgentServeError:
    answer = _json(response)
    error = answer.get("error") if isinstance(answer, dict) else None
    message = str(error["message"])[:500] if isinstance(error, dict) and "message" in error else response.reason_phrase
    status = response.status_code
    kind = _ERRORS.get(status, Unavailable if status >= 500 else BadInput)
    return kind(f"the gateway refused {what} ({status}): {message}")
