"""How does the product run as its users run it, over real engines? A gateway process of its own, with a real Redis."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.local.redis import RedisServer
from tests.engines.servers import BLOCK_TOKENS, KV_BLOCKS, MODEL, OUTPUT, EngineServer

PROFILE: Final = f"""
gpu = "cpu"
model = "{MODEL}"
prefill_s = [0.02, 4e-5, 0.0]
decode_s = [0.012, 0.002, 0.0]
kv_bytes_per_token = 512
kv_capacity_tokens = {BLOCK_TOKENS * KV_BLOCKS}
kv_link_bytes_per_s = 1e9
"""
"""Rough figures of the tiny model on a CPU; what the gateway observes corrects them."""


@asynccontextmanager
async def gateway_process(
    *servers: EngineServer, folder: Path, otlp_endpoint: str | None = None, policy: str = "agentserve"
) -> AsyncIterator[str]:
    """The URL of `agentserve gateway` over these servers, which it finds out about by itself."""
    profile = folder / "cpu.toml"
    profile.write_text(PROFILE.replace(f'"{MODEL}"', json.dumps(servers[0].model)))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with RedisServer() as redis:
        command = [sys.executable, "-m", "agentserve", "gateway", "--port", str(port), "--redis", redis.url]
        command += ["--mqtt", "", "--policy", policy, "--profiles", str(profile)]
        for server in servers:
            command += ["--engine", f"{server.url},cpu,{server.model}"]
        environment = {**os.environ, **({"AGENTSERVE_OTLP_ENDPOINT": otlp_endpoint} if otlp_endpoint else {})}
        OUTPUT.mkdir(parents=True, exist_ok=True)
        process = ChildProcess(
            "gateway",
            command,
            probe=http_ready(f"{url}/readyz"),
            env=environment,
            log_path=OUTPUT / f"gateway-{port}.log",
            ready_timeout_s=120,
        )
        await process.start()
        try:
            yield url
        finally:
            await process.stop()
