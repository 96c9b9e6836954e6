"""How the orchestrator reaches the instances it is told of: by which adapter, with which address, key and order."""

from typing import Any

import httpx
import pytest

from agentserve.engines import open_adapter
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings
from scheduler.core import make_scheduler
from scheduler.events import InstanceSpec

URL = "http://127.0.0.1:9"


def spec(**facts: Any) -> InstanceSpec:
    usual: dict[str, Any] = {
        "instance_id": "i",
        "model": "llama-3.1-8b",
        "gpu": "h100",
        "kv_capacity_tokens": 400_000,
        "block_tokens": 16,
        "max_num_seqs": 4,
        "max_batched_tokens": 8192,
        "kv_bytes_per_token": 131_072,
    }
    return InstanceSpec(**{**usual, **facts})


async def test_legs_meet_where_the_worker_announced_it() -> None:
    async with Orchestrator(make_scheduler("agentserve"), Settings()) as driver:
        driver.joined(spec(), URL, "sglang", "10.0.0.7:9001")
        room = driver.adapter("i").rendezvous()
        assert room is not None
        assert (room["bootstrap_host"], room["bootstrap_port"]) == ("10.0.0.7", 9001)
        driver.joined(spec(), URL, "sglang", "10.0.0.8:9001")
        room = driver.adapter("i").rendezvous()
        assert room is not None
        assert room["bootstrap_host"] == "10.0.0.8"


async def test_the_adapter_stays_until_its_engine_is_reached_otherwise() -> None:
    async with Orchestrator(make_scheduler("agentserve"), Settings()) as driver:
        driver.joined(spec(), URL, "vllm")
        first = driver.adapter("i")
        driver.joined(spec(kv_capacity_tokens=1000), URL, "vllm")
        assert driver.adapter("i") is first
        driver.joined(spec(supports_priority=True), URL, "vllm")
        assert driver.adapter("i") is not first


async def test_an_engine_without_priorities_has_a_gate_as_wide_as_its_batch() -> None:
    async with Orchestrator(make_scheduler("agentserve"), Settings()) as driver:
        driver.joined(spec(), URL, "vllm")
        gate = driver.instances["i"].gate
        assert gate is not None
        driver.joined(spec(), URL, "vllm")
        assert driver.instances["i"].gate is gate, "calls inside still hold its seats"
        driver.joined(spec(supports_priority=True), URL, "vllm")
        assert driver.instances["i"].gate is None


@pytest.mark.parametrize(("key", "sent"), [("secret", "Bearer secret"), (None, None)])
async def test_an_engine_is_given_its_key(key: str | None, sent: str | None) -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200)

    adapter = open_adapter("vllm", URL, api_key=key, transport=httpx.MockTransport(answer))
    assert await adapter.is_healthy()
    await adapter.close()
    assert seen == [sent]
