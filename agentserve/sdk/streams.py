"""How does a call outlive the gateway's restart? Send until answered; when a stream breaks, go on with it elsewhere."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from typing import Any, Final

from agentserve.sdk.calls import Call
from agentserve.sdk.origin import Origin, origin_of
from agentserve.sdk.patience import Patience
from agentserve.sdk.resume import StreamProgress

_ANSWERED: Final[set[Origin]] = set()
"""Gateways that have answered this process: worth a long wait when they are away."""


def deliver(call: Call, request: Any, sender: Callable[[Any], Any], patience: Patience) -> Any:
    """Send until a gateway answers, or raise the last error once patience has run out."""
    origin = origin_of(str(request.url))
    wait = patience.begin(seen=origin in _ANSWERED)
    while True:
        try:
            response = sender(request)
            if call.whole():
                response = _read(call, response)
        except call.lost:
            call.lost_once = True
            if not wait.longer():
                raise
        else:
            _ANSWERED.add(origin)
            if not call.not_ready(response) or not wait.longer():
                return response
            response.close()
        patience.sleep(wait.next_s)


async def adeliver(call: Call, request: Any, sender: Callable[[Any], Awaitable[Any]], patience: Patience) -> Any:
    """`deliver` for asynchronous transports."""
    origin = origin_of(str(request.url))
    wait = patience.begin(seen=origin in _ANSWERED)
    while True:
        try:
            response = await sender(request)
            if call.whole():
                response = await _aread(call, response)
        except call.lost:
            call.lost_once = True
            if not wait.longer():
                raise
        else:
            _ANSWERED.add(origin)
            if not call.not_ready(response) or not wait.longer():
                return response
            await response.aclose()
        await patience.asleep(wait.next_s)


def _read(call: Call, response: Any) -> Any:
    """The response with its body in memory, its connection given back."""
    try:
        return call.wrap(response, call.library.ByteStream(b"".join(response.stream)))
    finally:
        response.close()


async def _aread(call: Call, response: Any) -> Any:
    try:
        return call.wrap(response, call.library.ByteStream(b"".join([part async for part in response.stream])))
    finally:
        await response.aclose()


class _Sources:
    """What a stream is read from: a response, and a sender for those that continue it."""

    def __init__(self, call: Call, progress: StreamProgress, response: Any, sender: Any, patience: Patience) -> None:
        self._call = call
        self._progress = progress
        self._response = response
        self._sender = sender
        self._patience = patience


@cache
def stream_types(library: Any) -> tuple[type, type]:
    """The resuming response streams; `library` checks that they are instances of its own classes."""

    class ResumingStream(_Sources, library.SyncByteStream):  # type: ignore[misc]  # httpx or httpx2, known at run time
        def __iter__(self) -> Iterator[bytes]:
            call, progress = self._call, self._progress
            if call.replayed:
                yield call.replayed
            while True:
                lost: Exception | None = None
                try:
                    for data in self._response.stream:
                        if call.kept is not None:
                            call.kept.add(data)
                        if passed := progress.feed(data):
                            yield passed
                except call.lost as error:
                    lost = error
                if progress.ended:
                    return
                if closing := progress.closing():
                    yield closing
                    return
                self._response.close()
                request = call.resumption(lost)
                self._response = call.continued(deliver(call, request, self._sender, self._patience), lost)

        def close(self) -> None:
            self._response.close()

    class AsyncResumingStream(_Sources, library.AsyncByteStream):  # type: ignore[misc]  # httpx or httpx2, known at run time
        async def __aiter__(self) -> AsyncIterator[bytes]:
            call, progress = self._call, self._progress
            if call.replayed:
                yield call.replayed
            while True:
                lost: Exception | None = None
                try:
                    async for data in self._response.stream:
                        if call.kept is not None:
                            call.kept.add(data)
                        if passed := progress.feed(data):
                            yield passed
                except call.lost as error:
                    lost = error
                if progress.ended:
                    return
                if closing := progress.closing():
                    yield closing
                    return
                await self._response.aclose()
                request = call.resumption(lost)
                self._response = call.continued(await adeliver(call, request, self._sender, self._patience), lost)

        async def aclose(self) -> None:
            await self._response.aclose()

    return ResumingStream, AsyncResumingStream
