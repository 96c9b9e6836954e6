"""`agentserve up` says which part ended by itself, and goes on until it is told to stop."""

import asyncio
import io
import signal
from types import SimpleNamespace

from rich.console import Console

from agentserve.cli.cluster import _until_stopped


class Screen(io.StringIO):
    """Tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


async def test_a_part_that_ends_by_itself_is_named_and_the_rest_goes_on() -> None:
    ended, screen = asyncio.Event(), Screen()

    async def redis() -> int:
        await ended.wait()
        return -9

    async def gateway() -> int:
        return await asyncio.Future()

    cluster = SimpleNamespace(ends={"redis": redis, "gateway": gateway})
    serving = asyncio.create_task(_until_stopped(cluster, Console(file=screen, width=200)))
    ended.set()
    async with asyncio.timeout(10):
        await screen.written.wait()
        assert not serving.done()
        signal.raise_signal(signal.SIGTERM)
        await serving
    assert screen.getvalue() == "redis ended with exit code -9; the rest goes on\n"
