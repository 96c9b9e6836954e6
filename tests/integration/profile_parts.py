"""An emulator in a process of its own, for tests of `agentserve profile`, and how a found profile compares with it."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from agentserve.local.process import ChildProcess, free_port, http_ready
from scheduler.profiles import GpuProfile

NEW_TOKENS = (1024, 2048, 4096, 8192, 16_000)
CACHED_TOKENS = (0, 4096, 16_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_TOKENS = (128, 1024, 4096)


@asynccontextmanager
async def emulator(**flags: object) -> AsyncIterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    argv = [sys.executable, "-m", "agentserve", "emulator", "--port", str(port), *given]
    async with ChildProcess("emulator", argv, probe=http_ready(f"{url}/health"), ready_timeout_s=60.0):
        yield url


def ratios(found: GpuProfile, true: GpuProfile) -> Mapping[str, float]:
    """Found ÷ true times over a grid that no measurement sees point by point."""
    prefill = {
        f"prefill {new} after {cached}": found.prefill_s(new, cached) / true.prefill_s(new, cached)
        for new in NEW_TOKENS
        for cached in CACHED_TOKENS
    }
    decode = {
        f"decode {batch} × {each}": found.decode_step_s(batch, batch * each) / true.decode_step_s(batch, batch * each)
        for batch in BATCHES
        for each in CONTEXT_TOKENS
    }
    return prefill | decode
