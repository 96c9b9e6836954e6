"""What the command line says when the gateway does not answer as one."""

import httpx
import pytest

from agentserve.cli import gateway_client
from agentserve.errors import AgentServeError, NotFound, Unavailable


def answering(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception) -> None:
    def request(method: str, url: str, **_: object) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(httpx, "request", request)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (httpx.ConnectError("refused"), Unavailable, "no gateway answers at http://g"),
        (httpx.Response(200, text="<html>"), Unavailable, "is this an agentserve gateway"),
        (httpx.Response(404, json={"error": {"message": "run r does not exist"}}), NotFound, "run r does not exist"),
        (httpx.Response(502, text="bad gateway"), AgentServeError, "HTTP 502: bad gateway"),
    ],
)
def test_each_way_to_fail_is_one_error(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception, error: type[AgentServeError], said: str
) -> None:
    answering(monkeypatch, answer)
    with pytest.raises(error, match=said):
        gateway_client.get_json("http://g", "/v1/runs/r")
    with pytest.raises(error, match=said):
        gateway_client.put_json("http://g", "/v1/runs/r", {})


def test_the_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_GATEWAY", "http://env:1/")
    assert gateway_client.gateway_url("http://flag:2/") == "http://flag:2"
    assert gateway_client.gateway_url(None) == "http://env:1"
