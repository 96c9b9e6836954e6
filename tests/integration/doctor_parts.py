"""What the doctor's tests share: how findings are read, and a server that never answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from agentserve.doctor.finding import Finding
from agentserve.telemetry.messages import Announce
from tests.integration.gateway_parts import announcement
from tests.integration.worker_parts import HOST

TIMEOUT_S = 5.0
LISTEN_S = 0.6


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: str(finding.verdict) for finding in findings}


def one(findings: Iterable[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@contextlib.asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Takes connections and never says a word."""

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    listening = await asyncio.start_server(connected, HOST, 0)
    try:
        yield f"{HOST}:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for writer in writers:
            writer.transport.abort()
        await listening.wait_closed()


def announce(worker_id: str = "w", **facts: Any) -> Announce:
    return announcement(worker_id, "http://127.0.0.1:1").model_copy(update=facts)
