"""Where the SDK finds the gateway's key, and that it goes into the header of requests there and nowhere else."""

from pathlib import Path

import httpx
import pytest

from agentserve.errors import BadInput, LimitReached, Unauthorized
from agentserve.sdk.chat import ChatModel
from agentserve.sdk.credentials import api_key, authorization
from agentserve.sdk.rest import GatewayClient
from agentserve.sdk.transport import RunTransport

GATEWAY = "http://gateway.test:8080"
KEY = "ask_0123abcd_" + "K" * 43


class Recorder:
    """Answers every request alike and remembers what came."""

    def __init__(self, status: int = 200, body: object = None) -> None:
        self.status, self.body = status, body if body is not None else {"choices": [], "status": "running"}
        self.sent: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return httpx.Response(self.status, json=self.body)

    @property
    def keys(self) -> list[str | None]:
        return [request.headers.get("authorization") for request in self.sent]


def test_the_variable_wins_over_the_file_and_neither_is_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AGENTSERVE_API_KEY", raising=False)
    monkeypatch.delenv("AGENTSERVE_SECRETS_DIR", raising=False)
    assert (api_key(), authorization()) == (None, {})
    monkeypatch.setenv("AGENTSERVE_SECRETS_DIR", str(tmp_path))
    assert api_key() is None
    (tmp_path / "agentserve_api_key").write_text("from-file\n")
    assert authorization() == {"authorization": "Bearer from-file"}
    monkeypatch.setenv("AGENTSERVE_API_KEY", KEY)
    assert api_key() == KEY
    assert authorization("given") == {"authorization": "Bearer given"}


@pytest.mark.parametrize("bad", ["two words", "line\nbreak", "ü", "x" * 300])
def test_what_cannot_be_a_key_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("AGENTSERVE_API_KEY", bad)
    with pytest.raises(BadInput) as caught:
        api_key()
    assert bad not in str(caught.value)


def test_rest_calls_and_the_chat_model_send_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_API_KEY", KEY)
    gateway = Recorder()
    GatewayClient(GATEWAY, transport=httpx.MockTransport(gateway)).create_run("r", "w", None)
    answer = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    chat = Recorder(body=answer)
    for model in (
        ChatModel(model="m", gateway=GATEWAY, transport=httpx.MockTransport(chat)),
        ChatModel(model="m", gateway=GATEWAY, transport=httpx.MockTransport(chat), api_key="ask_own"),
    ):
        model.invoke("hello")
        assert KEY not in repr(model)
        assert "ask_own" not in repr(model)
    assert gateway.keys == [f"Bearer {KEY}"]
    assert chat.keys == [f"Bearer {KEY}", "Bearer ask_own"]


def test_a_key_of_another_place_is_replaced_and_one_of_ours_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_API_KEY", KEY)
    gateway = Recorder()
    client = httpx.Client(transport=RunTransport(GATEWAY, inner=httpx.MockTransport(gateway)))
    for given in ("Bearer sk-of-another-place", "Bearer ask_explicit"):
        client.post(f"{GATEWAY}/v1/chat/completions", json={"model": "m"}, headers={"authorization": given})
    client.get(f"{GATEWAY}/v1/models")
    client.post("http://elsewhere.test/v1/chat/completions", json={}, headers={"authorization": "Bearer sk-theirs"})
    assert gateway.keys == [f"Bearer {KEY}", "Bearer ask_explicit", f"Bearer {KEY}", "Bearer sk-theirs"]


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (429, LimitReached)])
def test_refusals_are_told_apart(status: int, kind: type[Exception]) -> None:
    gateway = Recorder(status, {"error": {"message": "no"}})
    with pytest.raises(kind):
        GatewayClient(GATEWAY, transport=httpx.MockTransport(gateway)).create_run("r", "w", None)
