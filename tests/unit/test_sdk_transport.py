"""What the transports send, when they send again, and what a caller sees of a gateway that comes and goes."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import orjson
import pytest

from agentserve import headers
from agentserve.sdk import streams
from agentserve.sdk.context import ActiveRun, running
from agentserve.sdk.origin import origin_of
from agentserve.sdk.patience import Patience
from agentserve.sdk.steps import StepLedger
from agentserve.sdk.transport import AsyncRunTransport, RunTransport, instrument, uninstrument
from workflows.graph import single_step

GATEWAY = "http://gateway.test:8080"
CHAT = f"{GATEWAY}/v1/chat/completions"
BODY = {"model": "m", "messages": []}
STREAM = {**BODY, "stream": True}


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    async def asleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    @property
    def patience(self) -> Patience:
        return Patience(clock=lambda: self.now_s, sleep=self.sleep, asleep=self.asleep)


class Gateway:
    """Answers each request with the next thing of a list: a response, a stream that breaks, or an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def acall(self, request: httpx.Request) -> httpx.Response:
        return self(request)

    def bodies(self) -> list[Any]:
        return [orjson.loads(request.content) for request in self.requests]


class Parts(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.closed = False

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self) -> Any:
        for part in self:
            yield part


def sse(*parts: Any) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Parts(list(parts)))


def token(text: str, *ids: int, prompt: list[int] | None = None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "token_ids": ids, "finish_reason": finish}
    chunk = {"id": "c", "choices": [choice]} | ({} if prompt is None else {"prompt_token_ids": prompt})
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


DONE = b"data: [DONE]\n\n"
BROKEN = httpx.RemoteProtocolError("peer closed connection")
AWAY = httpx.ConnectError("refused")


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_ANSWERED", {origin_of(GATEWAY)})


def client(gateway: Gateway, clock: Clock | None = None) -> httpx.Client:
    inner = httpx.MockTransport(gateway)
    return httpx.Client(transport=RunTransport(GATEWAY, inner=inner, patience=(clock or Clock()).patience))


def aclient(gateway: Gateway, clock: Clock | None = None) -> httpx.AsyncClient:
    inner = httpx.MockTransport(gateway.acall)
    return httpx.AsyncClient(transport=AsyncRunTransport(GATEWAY, inner=inner, patience=(clock or Clock()).patience))


def a_run(gateway: str = GATEWAY) -> ActiveRun:
    ledger = StepLedger(single_step())
    return ActiveRun(
        run_id="run-1",
        workflow="zürich, a 100%",
        gateway=gateway,
        origin=origin_of(gateway),
        slo_s=None,
        submitted_s=0.0,
        ledger=ledger,
    )


def text_of(content: bytes) -> str:
    events = [event[6:] for event in content.split(b"\n\n") if event.startswith(b"data: {")]
    choices = [choice for event in events for choice in orjson.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_call_inside_a_run_says_so_in_ascii_headers() -> None:
    gateway = Gateway(httpx.Response(200, json={}))
    with running(a_run()):
        client(gateway).post(CHAT, json=BODY)
    sent = gateway.requests[0].headers
    assert sent[headers.RUN_ID] == "run-1"
    assert sent[headers.WORKFLOW] == "z%C3%BCrich%2C a 100%25"
    assert sent[headers.REQUEST_ID].startswith("call-")
    assert gateway.bodies() == [BODY]


def test_what_the_caller_says_of_itself_wins() -> None:
    gateway = Gateway(httpx.Response(200, json={}))
    with running(a_run()):
        client(gateway).post(CHAT, json=BODY, headers={headers.RUN_ID: "mine", headers.REQUEST_ID: "this"})
    assert gateway.requests[0].headers[headers.RUN_ID] == "mine"
    assert gateway.requests[0].headers[headers.REQUEST_ID] == "this"


def test_other_servers_are_told_nothing() -> None:
    gateway = Gateway(httpx.Response(200, json={}))
    with running(a_run()):
        client(gateway).post("http://elsewhere.test:8080/v1/chat/completions", json=STREAM)
    assert not [name for name in gateway.requests[0].headers if name.startswith("x-agentserve")]
    assert gateway.bodies() == [STREAM]


def test_calls_get_request_ids_of_their_own_but_an_openai_retry_keeps_its() -> None:
    gateway = Gateway(httpx.Response(200, json={}))
    sender = client(gateway)
    sender.post(CHAT, json=BODY)
    sender.post(CHAT, json=BODY, headers={"x-stainless-retry-count": "1"})
    sender.post(CHAT, json=BODY, headers={"x-stainless-retry-count": "0"})
    sender.post(CHAT, json={**BODY, "n": 1}, headers={"x-stainless-retry-count": "1"})
    ids = [request.headers[headers.REQUEST_ID] for request in gateway.requests]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_call_is_sent_again_until_the_gateway_is_back() -> None:
    clock = Clock()
    gateway = Gateway(AWAY, BROKEN, httpx.Response(503), httpx.Response(200, json={"answer": 1}))
    assert client(gateway, clock).post(CHAT, json=BODY).json() == {"answer": 1}
    assert clock.now_s == pytest.approx(0.05 + 0.1 + 0.2)
    assert len({request.headers[headers.REQUEST_ID] for request in gateway.requests}) == 1


def test_an_answer_that_breaks_off_in_its_body_is_asked_for_again() -> None:
    broken = httpx.Response(200, stream=Parts([b'{"ans', httpx.ReadError("reset")]))
    assert client(Gateway(broken, httpx.Response(200, json={"answer": 1}))).post(CHAT, json=BODY).json() == {
        "answer": 1
    }


async def test_every_connection_is_given_back() -> None:
    async def check(stream: bool, *parts: Any) -> None:
        streams_ = [Parts(list(parts)) for _ in range(2)]
        heads = {"content-type": "text/event-stream"} if stream else {}
        answers = [httpx.Response(200, headers=heads, stream=each) for each in streams_]
        client(Gateway(answers[0])).post(CHAT, json={**BODY, "stream": stream})
        await aclient(Gateway(answers[1])).post(CHAT, json={**BODY, "stream": stream})
        assert [each.closed for each in streams_] == [True, True]

    await check(False, b"{}")
    await check(True, token("a", 7, prompt=[5], finish="stop"), DONE)


def test_patience_ends_and_the_callers_own_error_remains() -> None:
    clock = Clock()
    with pytest.raises(httpx.ConnectError):
        client(Gateway(AWAY), clock).post(CHAT, json=BODY)
    assert clock.now_s == pytest.approx(30.0)


def test_a_gateway_never_seen_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_ANSWERED", set())
    clock = Clock()
    with pytest.raises(httpx.ConnectError):
        client(Gateway(AWAY), clock).post(CHAT, json=BODY)
    assert clock.now_s == pytest.approx(2.0)


def test_a_503_is_an_answer_unless_the_gateway_says_when_to_come_back() -> None:
    assert client(Gateway(httpx.Response(503))).post(CHAT, json=BODY).status_code == 503
    stopping = httpx.Response(503, headers={"retry-after": "1"})
    assert client(Gateway(stopping, httpx.Response(200, json={}))).post(CHAT, json=BODY).status_code == 200


def test_a_timeout_is_the_callers_own_and_not_repeated() -> None:
    gateway = Gateway(httpx.ReadTimeout("slow"))
    with pytest.raises(httpx.ReadTimeout):
        client(gateway).post(CHAT, json=BODY)
    assert len(gateway.requests) == 1


def test_requests_that_may_not_be_repeated_are_sent_once() -> None:
    gateway = Gateway(BROKEN)
    with pytest.raises(httpx.RemoteProtocolError):
        client(gateway).post(f"{GATEWAY}/v1/embeddings", json={})
    assert len(gateway.requests) == 1


def broken_stream() -> Gateway:
    first = sse(token("", prompt=[5, 6]) + token("Hel", 7), token("lo", 8)[:20], BROKEN)
    return Gateway(first, AWAY, sse(token("lo", 8), token(" you", 9, finish="stop") + DONE))


def test_a_broken_stream_goes_on_where_it_broke() -> None:
    gateway = broken_stream()
    with client(gateway).stream("POST", CHAT, json=STREAM) as response:
        content = response.read()
    assert text_of(content) == "Hello you"
    assert content.count(b"[DONE]") == 1
    assert b"token_ids" not in content
    sent = gateway.bodies()
    resume = {"resume": {"prompt_token_ids": [5, 6], "token_ids": [7]}}
    assert sent[0] == {**STREAM, "return_token_ids": True}
    assert sent[1:] == [{**STREAM, "return_token_ids": True, "agentserve": resume}] * 2
    assert len({request.headers[headers.REQUEST_ID] for request in gateway.requests}) == 1


async def test_an_asynchronous_stream_goes_on_likewise() -> None:
    gateway = broken_stream()
    async with aclient(gateway).stream("POST", CHAT, json=STREAM) as response:
        content = await response.aread()
    assert text_of(content) == "Hello you"
    assert content.count(b"[DONE]") == 1
    assert gateway.bodies()[-1]["agentserve"] == {"resume": {"prompt_token_ids": [5, 6], "token_ids": [7]}}


def test_a_stream_that_just_stops_is_a_broken_one() -> None:
    gateway = Gateway(sse(token("a", 7, prompt=[5])), sse(token("b", 8, finish="stop"), DONE))
    assert text_of(client(gateway).post(CHAT, json=STREAM).content) == "ab"


def test_a_continuation_that_is_refused_raises_what_broke_the_stream() -> None:
    gateway = Gateway(sse(token("a", 7, prompt=[5]), BROKEN), httpx.Response(400, json={"error": {}}))
    with pytest.raises(httpx.RemoteProtocolError, match="answered 400 to its continuation"):
        client(gateway).post(CHAT, json=STREAM)


def test_a_gateway_that_breaks_every_continuation_is_given_up() -> None:
    gateway = Gateway(*[sse(token("a", 7, prompt=[5]), BROKEN) for _ in range(40)])
    with pytest.raises(httpx.RemoteProtocolError):
        client(gateway).post(CHAT, json=STREAM)
    assert len(gateway.requests) == 21


def test_a_stream_of_an_engine_without_token_ids_is_not_resumed() -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed"):
        client(Gateway(sse(chunk, BROKEN), sse(DONE))).post(CHAT, json=STREAM)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, Any], list[Any]]]:
    """Instrumented libraries whose own transports record what they would have sent."""

    def record(library: Any, answer: Any) -> list[Any]:
        seen: list[Any] = []

        def handle_request(self: Any, request: Any) -> Any:
            seen.append(request)
            return answer()

        async def handle_async_request(self: Any, request: Any) -> Any:
            return handle_request(self, request)

        monkeypatch.setattr(library.HTTPTransport, "handle_request", handle_request)
        monkeypatch.setattr(library.AsyncHTTPTransport, "handle_async_request", handle_async_request)
        instrument()
        instrument()
        return seen

    yield record
    uninstrument()


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_unchanged_clients_of_both_libraries_carry_the_run(
    library: Any, patched: Callable[[Any, Any], list[Any]]
) -> None:
    seen = patched(library, lambda: library.Response(200, json={}))
    with library.Client() as sync, running(a_run()):
        sync.post(CHAT, json=BODY)
        sync.post("http://elsewhere.test/v1/chat/completions", json=BODY)
    async with library.AsyncClient() as asynchronous:
        with running(a_run()):
            await asynchronous.post(CHAT, json=BODY)
        await asynchronous.post(CHAT, json=BODY)
    assert [request.headers.get(headers.RUN_ID) for request in seen] == ["run-1", None, "run-1", None]


def test_an_instrumented_client_with_our_transport_is_seen_to_once(
    patched: Callable[[Any, Any], list[Any]],
) -> None:
    seen = patched(httpx, lambda: httpx.Response(200, json={}))
    with httpx.Client(transport=RunTransport(GATEWAY)) as sender, running(a_run()):
        sender.post(CHAT, json=BODY)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("gateway", "url", "same"),
    [
        ("http://127.0.0.1:8080", "http://localhost:8080", True),
        ("http://127.0.0.1:8080", "http://[::1]:8080", True),
        ("https://agents.example", "https://AGENTS.example:443", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8081", False),
        ("http://127.0.0.1:8080", "https://127.0.0.1:8080", False),
    ],
)
def test_origins_are_the_same_whatever_the_loopback_is_called(gateway: str, url: str, same: bool) -> None:
    assert (origin_of(gateway) == origin_of(url)) is same
