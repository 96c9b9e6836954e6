"""What a worker says when its engine comes late, fails, restarts or changes; on a real broker, against real HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.errors import BadInput, Unavailable
from agentserve.local.process import free_port
from agentserve.workers.agent import run_worker
from agentserve.workers.asking import open_client
from agentserve.workers.config import EngineConfig, WorkerConfig
from agentserve.workers.discovery import discover_static
from agentserve.workers.probe import probe
from agentserve.workers.trials import Skill
from tests.integration.worker_parts import HOST, MODEL, FakeEngine, Gateway, broker_process, first_listed, until


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A following gateway; its broker is ours."""
    port = free_port()
    async with (
        broker_process("amqtt", port),
        Gateway(f"mqtt://{HOST}:{port}").following() as following,
    ):
        yield following


@contextlib.asynccontextmanager
async def worker(gateway: Gateway, engine_url: str, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A worker inside this process."""
    given = {"engine_url": engine_url, "gpu": "h100", "worker_id": "w", "mqtt_url": str(gateway.bus.address),
             "handle_signals": False, "recheck_interval_s": 0.2}  # fmt: skip
    task = asyncio.create_task(run_worker(WorkerConfig(**{**given, **options})))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_waits_for_its_engine(gateway: Gateway) -> None:
    engine = FakeEngine(health=503)
    async with worker(gateway, engine.url), engine:
        await until(lambda: gateway.bus.connected)
        assert gateway.log == []
        engine.health = 200
        await gateway.sees(("joined", "w"))


async def test_a_cancelled_worker_says_goodbye(gateway: Gateway) -> None:
    async with FakeEngine() as engine:
        async with worker(gateway, engine.url):
            await gateway.sees(("joined", "w"))
        await gateway.sees(("joined", "w"), ("lost", "w"))


async def test_an_engine_that_dies_is_lost_and_its_successor_joins_with_its_own_facts(gateway: Gateway) -> None:
    async with FakeEngine() as engine, worker(gateway, engine.url):
        await gateway.sees(("joined", "w"))
        boot = gateway.announced["w"].boot_id
        await engine.stop()
        await gateway.sees(("joined", "w"), ("lost", "w"))
        engine.models, engine.version = ["qwen3-32b"], "0.33.0"
        await engine.start()
        await gateway.sees(("joined", "w"), ("lost", "w"), ("joined", "w"))
        announced = gateway.announced["w"]
        assert (announced.model, announced.engine_version, announced.boot_id) == ("qwen3-32b", "0.33.0", boot)


async def test_another_version_behind_the_same_port_is_announced_anew(gateway: Gateway) -> None:
    async with FakeEngine() as engine, worker(gateway, engine.url):
        await gateway.sees(("joined", "w"))
        engine.version = "0.33.0"
        await until(lambda: gateway.announced["w"].engine_version == "0.33.0")


async def test_an_engine_that_no_longer_serves_the_model_is_lost_until_it_does(gateway: Gateway) -> None:
    async with FakeEngine() as engine, worker(gateway, engine.url, model=MODEL):
        await gateway.sees(("joined", "w"))
        engine.models = ["another"]
        await gateway.sees(("joined", "w"), ("lost", "w"))
        engine.models = [MODEL]
        await gateway.sees(("joined", "w"), ("lost", "w"), ("joined", "w"))


async def test_a_worker_without_a_broker_keeps_trying_and_then_joins() -> None:
    port = free_port()
    late = Gateway(f"mqtt://{HOST}:{port}")
    async with FakeEngine() as engine, worker(late, engine.url), late.following():
        await until(lambda: late.bus.problem is not None and "refused" in late.bus.problem)
        async with broker_process("amqtt", port):
            await late.sees(("joined", "w"))


async def test_an_unknown_gpu_or_another_model_ends_the_worker_with_one_error(gateway: Gateway) -> None:
    async with FakeEngine() as engine:
        async with worker(gateway, engine.url, gpu="abacus") as unknown:
            with pytest.raises(BadInput, match="unknown gpu 'abacus'; known: "):
                await unknown
        async with worker(gateway, engine.url, model="qwen3-32b") as other:
            with pytest.raises(BadInput, match="does not serve 'qwen3-32b'"):
                await other


async def test_an_engine_that_is_not_ready_in_time_ends_the_worker(gateway: Gateway) -> None:
    async with worker(gateway, f"http://{HOST}:{free_port()}", ready_timeout_s=0.3) as waiting:
        with pytest.raises(Unavailable, match=r"not ready within 0\.3 s"):
            await waiting


async def test_the_emulator_is_announced_with_all_it_can_do_and_its_load_reported(gateway: Gateway) -> None:
    config = EmulatorConfig(gpu="h200", speed=5, scheduling_policy="priority")
    async with running(config) as url, worker(gateway, url, gpu="h200", speed=5.0):
        await until(lambda: "w" in gateway.readings)
        spec = gateway.specs["w"]
        assert (spec.gpu, spec.model, spec.speed) == ("h200", MODEL, 5.0)
        assert (spec.supports_priority, spec.supports_replay) == (True, True)
        assert spec.kv_link_bytes_per_s is not None
        body = {"model": MODEL, "prompt": "[[reply tokens=2000]]", "max_tokens": 2000, "stream": True}
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", f"{url}/v1/completions", json=body) as response,
        ):
            assert response.status_code == 200
            await until(lambda: gateway.readings["w"].running == 1)
            await until(lambda: (gateway.readings["w"].decode_tokens_per_s or 0) > 0)
        await until(lambda: gateway.readings["w"].running == 0, "a closed connection ends the call")


async def test_a_probe_of_the_emulator_finds_all_that_it_does() -> None:
    config = EmulatorConfig(gpu="h200", scheduling_policy="priority", max_num_seqs=32, speed=20)
    async with running(config) as url, open_client(url) as client:
        found = await probe(client, url, choose=first_listed)
        leases = (await client.get("/metrics")).text
    assert (found.identity.kind, found.model, found.facts.max_num_seqs) == ("emulator", MODEL, 32)
    assert {skill for skill, finding in found.skills.items() if finding.found} == set(Skill) - {Skill.REASONING}
    assert found.missing_metrics == ()
    assert found.capabilities.shortfalls() == ()
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="llama-3.1-8b"} 0.0' in leases  # nothing is left pinned


async def test_emulators_of_one_model_may_hand_kv_to_each_other_whatever_their_gpu() -> None:
    async with running(EmulatorConfig(gpu="h200")) as one, running(EmulatorConfig(gpu="h100")) as other:
        found = [await discover_static(EngineConfig(engine_url=url, gpu="h100")) for url in (one, other)]
    async with running(EmulatorConfig(gpu="h200", block_tokens=32)) as third:
        found.append(await discover_static(EngineConfig(engine_url=third, gpu="h200")))
    groups = [announce.kv_group for announce in found]
    assert groups[0] is not None
    assert groups[0] == groups[1] != groups[2]


async def test_another_kind_of_engine_behind_the_same_port_is_announced_and_read_as_such(gateway: Gateway) -> None:
    async with FakeEngine() as engine, worker(gateway, engine.url):
        await until(lambda: "w" in gateway.readings and gateway.readings["w"].running == 0)
        engine.owner, engine.has_metrics, engine.version = "someone", False, "9"
        await until(lambda: gateway.announced["w"].engine == "openai")
        assert not gateway.specs["w"].supports_replay
        seq = gateway.reports["w"].seq
        await until(lambda: gateway.reports["w"].seq > seq + 2)
        assert gateway.reports["w"].running is None


async def test_a_static_engine_is_found_out_the_same_way() -> None:
    async with running(EmulatorConfig(gpu="h100")) as url:
        announce = await discover_static(EngineConfig(engine_url=url, gpu="h100"))
    assert (announce.boot_id, announce.model, announce.supports_replay) == ("static", MODEL, True)
    assert not announce.supports_priority
