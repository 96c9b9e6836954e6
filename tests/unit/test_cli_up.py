"""`agentserve up` says which part ended by itself, and goes on until it is told to stop."""

import asyncio
import io
import signal
from types import SimpleNamespace

from rich.console import Console

from agentserve.cli.cluster import _until_stopped


async def test_a_part_that_ends_by_itself_is_named_and_the_rest_goes_on() -> None:
    ended, written = asyncio.Event(), io.StringIO()

    async def redis() -> int:
        await ended.wait()
        return -9

    async def gateway() -> int:
        return await asyncio.Future()

    cluster = SimpleNamespace(ends={"redis": redis, "gateway": gateway})
    serving = asyncio.create_task(_until_stopped(cluster, Console(file=written, width=200)))
    ended.set()
    async with asyncio.timeout(10):
        while "redis ended with exit code -9; the rest goes on" not in written.getvalue():
            await asyncio.sleep(0)
        assert not serving.done()
        signal.raise_signal(signal.SIGTERM)
        await serving
    assert "gateway ended" not in written.getvalue()
