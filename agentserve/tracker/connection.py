"""How is Redis talked to: one pool, a time limit on every call, and every failure translated here into Unavailable.

Nothing else of the server imports `redis` (the SDK does, for durable runs). A call that failed on a broken connection
is sent again within its time limit, so a Redis that comes back is used again; all that is sent through here must
therefore be safe to send twice.

Commands share round trips: while a few are under way, those that come meanwhile wait and go together in one write. A
lone command goes at once; under load a command costs a fraction of its own round trip.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from agentserve.errors import Unavailable
from agentserve.redis_url import address_of, bad_redis_url, tls_options

Argument = str | bytes | int | float

_RETRIES: Final = 1
_MAX_UNDER_WAY: Final = 2
_MAX_TOGETHER: Final = 64
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.AuthenticationError, "it refused the user or password"),
    (exceptions.AuthorizationError, "it refused the user or password"),
    (exceptions.NoPermissionError, "the user may not run a command that is needed"),
    (exceptions.BusyLoadingError, "it is still loading its data"),
    (exceptions.MaxConnectionsError, "all connections are in use"),
    (exceptions.OutOfMemoryError, "its memory limit is reached"),
    (exceptions.ReadOnlyError, "it is a read-only replica"),
    (exceptions.TimeoutError, "it did not answer in time"),
    (TimeoutError, "it did not answer in time"),
    (exceptions.ConnectionError, "the connection failed"),
    (OSError, "the connection failed"),
)


class Script:
    """A Lua script that the server runs atomically; sent whole only to a server that does not know it yet."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Connection:
    """A pool of at most `max_connections` to the server at `url`; a call takes at most `timeout_s`, or Unavailable."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 1.0,
        max_connections: int = 64,
        ca_file: Path | None = None,
    ) -> None:
        """`ca_file`: certificates that sign a rediss:// server's, which is checked in any case, its name too."""
        self.address = address_of(url)
        self._timeout_s = timeout_s
        try:
            pool: ConnectionPool = ConnectionPool.from_url(
                url,
                max_connections=max_connections,
                socket_timeout=None,  # the limit on the whole call covers every read
                retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), _RETRIES),
                **({} if url.startswith("unix:") else {"socket_connect_timeout": connect_timeout_s}),
                **(tls_options(ca_file) if url.startswith("rediss:") else {}),
            )
        except ValueError:
            raise bad_redis_url() from None
        self._redis = Redis.from_pool(pool)
        self._turns = asyncio.Semaphore(max_connections)
        self._waiting: deque[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def command(self, *arguments: Argument) -> Any:
        """Run one command; the answer as the client gives it, text as bytes."""
        async with self._call():
            return await self._send(*arguments)

    async def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run commands in order in one round trip (not as one transaction); their answers."""
        if not commands:
            return []
        async with self._call(), self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script by its digest; its answer."""
        async with self._call():
            try:
                return await self._send("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return await self._send("EVAL", script.source, len(keys), *keys, *arguments)

    async def close(self) -> None:
        """Close every connection; what nobody waits for any more is given up."""
        for task in tuple(self._under_way):
            task.cancel()
        async with self._call():
            await asyncio.gather(*self._under_way, return_exceptions=True)
            await self._redis.aclose()

    async def _send(self, *arguments: Argument) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((arguments, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        while self._waiting and len(self._under_way) < _MAX_UNDER_WAY:
            taken = [self._waiting.popleft() for _ in range(min(_MAX_TOGETHER, len(self._waiting)))]
            batch = [(arguments, answer) for arguments, answer in taken if not answer.done()]
            if batch:
                task = asyncio.get_running_loop().create_task(self._exchange(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._begin()

    async def _exchange(self, batch: Sequence[tuple[tuple[Argument, ...], asyncio.Future[Any]]]) -> None:
        """One round trip for all of them; each gets its own answer or error."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._answers([arguments for arguments, _ in batch])
        except Exception as error:  # noqa: BLE001  # handed to those who wait for the answers, who translate it
            answers = [error] * len(batch)
        for (_, answer), value in zip(batch, answers, strict=True):
            if answer.done():
                continue
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

    async def _answers(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]  # untyped in redis-py
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            return answers

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """A turn to use a connection, with the time limit, and the one place where failures are translated."""
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                yield
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            raise Unavailable(f"Redis at {self.address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What failed, without the command or its arguments, which servers repeat in some errors."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            detail = getattr(error.__cause__ or error, "strerror", None)
            return f"{reason} ({detail})" if detail else reason
    return f"it refused a command ({type(error).__name__})"
