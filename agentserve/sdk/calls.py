"""What does a call to the gateway say on each attempt: first, again after a loss, or to resume its stream?"""

import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson

from agentserve import headers
from agentserve.sdk.context import current_run
from agentserve.sdk.credentials import OUR_KEYS, authorization
from agentserve.sdk.durable import KeptStream
from agentserve.sdk.resume import StreamProgress

_COMPLETIONS: Final = ("/v1/chat/completions", "/v1/completions")
_MAX_RESUMPTIONS: Final = 20
_OPENAI_RETRIES: Final = "x-stainless-retry-count"
_last_call: ContextVar[tuple[bytes, str] | None] = ContextVar("agentserve_last_call", default=None)


@dataclass(slots=True, kw_only=True)
class Call:
    """A request of `library` (httpx or httpx2) to the gateway, over all its attempts."""

    library: Any
    original: Any
    carried: dict[str, str]
    mark: str
    progress: StreamProgress | None
    body: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool
    kept: KeptStream | None = None
    """What of the stream outlives this process."""
    replayed: bytes = b""
    """What the stream delivered in an earlier process: the caller gets it first."""
    lost_once: bool = False
    resumptions: int = 0

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        """Errors that mean: the gateway went away, not: it answered badly or took too long."""
        if not self.repeatable:
            return ()
        return (self.library.NetworkError, self.library.RemoteProtocolError, self.library.ConnectTimeout)

    def request(self) -> Any:
        """The first attempt; one that goes on where the stream broke off in an earlier process."""
        if self.progress is None:
            return self._with_body(None)
        return self._with_body(self._continuation() or self.progress.first_body())

    def known(self) -> Any:
        """The response, if all of the stream was delivered in an earlier process; else None."""
        if self.progress is None or not self.progress.ended:
            return None
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        return self.library.Response(200, headers=headers, stream=self.library.ByteStream(self.replayed))

    def _continuation(self) -> bytes | None:
        if self.progress is None or self.kept is None or not self.kept.earlier:
            return None
        progress, passed, body = StreamProgress(self.body), b"", None
        for part in self.kept.earlier:
            passed += progress.feed(part)
            body = progress.resume_body()
        if tail := progress.closing():
            passed += tail
        if body is None and not progress.ended:
            self.kept.forget()
            return None
        self.progress, self.replayed = progress, passed
        return body

    def resumption(self, lost: Exception | None) -> Any:
        """The attempt that goes on with a broken stream; raises what broke it if that cannot be done exactly."""
        self.lost_once = True
        self.resumptions += 1
        if self.kept is not None:
            self.kept.next_part()
        hopeless = self.progress is None or self.resumptions > _MAX_RESUMPTIONS
        body = None if hopeless or self.progress is None else self.progress.resume_body()
        if body is None:
            raise self._broken(lost)
        return self._with_body(body)

    def continued(self, response: Any, lost: Exception | None) -> Any:
        """The response to a resumption, if it is a stream; otherwise raises what broke the stream."""
        if self.streams(response):
            return response
        raise self._broken(lost, f"; the gateway answered {response.status_code} to its continuation")

    def streams(self, response: Any) -> bool:
        """Whether the response is an uncompressed event stream that can be followed."""
        return (
            self.progress is not None
            and response.status_code == 200
            and response.headers.get("content-type", "").startswith("text/event-stream")
            and "content-encoding" not in response.headers
        )

    def not_ready(self, response: Any) -> bool:
        """Whether the gateway is just stopping or starting: it says when to come back, or had gone away before."""
        away = response.status_code == 503 and "retry-after" in response.headers
        return self.repeatable and (away or (self.lost_once and response.status_code in (502, 503)))

    def whole(self) -> bool:
        """Whether the response's body is to be read at once, so that a break in it can be repaired."""
        return self.repeatable and self.progress is None

    def wrap(self, response: Any, stream: Any) -> Any:
        """The response as the caller sees it, with another stream of bytes."""
        return self.library.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _with_body(self, body: bytes | None) -> Any:
        sent = self.library.Headers(self.original.headers)
        for name, value in self.carried.items():
            sent.setdefault(name, value)
        if not sent.get("authorization", "").startswith(OUR_KEYS):
            sent.update(authorization())  # clients for OpenAI send a key of another place, or none that means anything
        extensions = {**self.original.extensions, self.mark: True}
        url, method = self.original.url, self.original.method
        if body is None and not self.repeatable:  # a body that can be read only once
            return self.library.Request(method, url, headers=sent, stream=self.original.stream, extensions=extensions)
        for name in ("content-length", "transfer-encoding"):
            sent.pop(name, None)
        content = self.original.content if body is None else body
        return self.library.Request(method, url, headers=sent, content=content or None, extensions=extensions)

    def _broken(self, lost: Exception | None, detail: str = "") -> Exception:
        if lost is not None and not detail:
            return lost
        message = f"the gateway broke off the stream{detail}"
        error: Exception = self.library.RemoteProtocolError(message, request=self.original)
        return error


def call_for(library: Any, request: Any, *, mark: str) -> Call:
    """What `request` is to the gateway: a completion, which can be repeated and resumed, a plain read, or neither."""
    run = current_run()
    carried = {} if run is None else run.headers()
    path = request.url.path.rstrip("/")
    buffered = isinstance(request.stream, library.ByteStream)
    body = _completion(request) if buffered and request.method == "POST" and path.endswith(_COMPLETIONS) else None
    if body is None:
        repeatable = buffered and request.method in ("GET", "HEAD")
        return Call(library=library, original=request, carried=carried, mark=mark, progress=None, repeatable=repeatable)
    if run is not None:
        run.calls_model()
    carried[headers.REQUEST_ID] = request.headers.get(headers.REQUEST_ID) or _request_id(request)
    call = Call(library=library, original=request, carried=carried, mark=mark, progress=None, repeatable=True)
    if body.get("stream") is True:
        call.progress, call.body = StreamProgress(body), body
        if run is not None and run.durable is not None and run.step_id is not None:
            call.kept = run.durable.stream(run.step_id.partition("#")[0], sha256(request.content).hexdigest()[:16])
    return call


def _completion(request: Any) -> dict[str, Any] | None:
    """The request's OpenAI body; None if it is not a JSON object: the gateway will say so."""
    try:
        body = orjson.loads(request.content)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _request_id(request: Any) -> str:
    """A fresh id; the last one when OpenAI's client says that it repeats the call it has just made in this context."""
    digest = sha256(request.content).digest()
    last = _last_call.get()
    repeated = request.headers.get(_OPENAI_RETRIES, "0") != "0"
    request_id = last[1] if repeated and last is not None and last[0] == digest else f"call-{uuid.uuid4().hex}"
    _last_call.set((digest, request_id))
    return request_id
