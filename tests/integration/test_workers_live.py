"""Workers as processes, real brokers, and what the gateway's registry makes of their lives and deaths."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from agentserve.local.process import ChildProcess, free_port
from agentserve.telemetry.messages import Control
from agentserve.telemetry.signing import worker_key
from agentserve.workers.follow import ask
from agentserve.workers.member import MemberState
from tests.integration.worker_parts import (
    BROKERS,
    HOST,
    FakeEngine,
    Gateway,
    broker_process,
    until,
    worker_process,
)


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ChildProcess, str]]:
    """A broker process and its URL."""
    port = free_port()
    async with broker_process(request.param, port) as process:
        yield process, f"mqtt://{HOST}:{port}"


async def test_a_worker_is_announced_and_its_state_reported(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with FakeEngine(running=3) as engine, Gateway(url).following() as gateway, worker_process(engine.url, url):
        await until(lambda: "w" in gateway.readings)
        spec = gateway.specs["w"]
        assert (spec.gpu, spec.model, spec.kv_capacity_tokens, spec.block_tokens) == ("h100", "llama-3.1-8b", 32000, 32)
        assert (spec.supports_priority, spec.supports_replay, spec.kv_link_bytes_per_s) == (True, True, None)
        assert gateway.announced["w"].engine_version == "0.32.0"
        report = gateway.readings["w"]
        assert (report.healthy, report.running, report.waiting, report.kv_usage) == (True, 3, 0, 0.25)
        engine.running = 5
        await until(lambda: gateway.readings["w"].running == 5)
        assert gateway.log == [("joined", "w")]
        engine.running = 0  # so that the worker need not drain


async def test_a_killed_worker_is_lost_by_its_last_will_and_its_successor_joins(
    broker: tuple[ChildProcess, str],
) -> None:
    _, url = broker
    async with FakeEngine() as engine, Gateway(url, lost_after_s=60).following() as gateway:
        async with worker_process(engine.url, url) as worker:
            await gateway.sees(("joined", "w"))
            await worker.kill()
            await gateway.sees(("joined", "w"), ("lost", "w"))
        async with worker_process(engine.url, url):
            await gateway.sees(("joined", "w"), ("lost", "w"), ("joined", "w"))


async def test_only_a_worker_that_signs_joins_a_gateway_with_a_secret(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    secret = "the gateway's own"
    key = worker_key(secret, "default", "w")
    async with (
        FakeEngine() as engine,
        Gateway(url, secret=secret).following() as gateway,
        worker_process(engine.url, url, key=key) as worker,
        worker_process(engine.url, url, worker_id="unsigned"),
        worker_process(engine.url, url, worker_id="rogue", key=key),
    ):
        await gateway.sees(("joined", "w"))
        await until(lambda: gateway.registry.unsigned > 20)
        assert ask(gateway.bus, "default", "w", Control(action="drain"))
        assert ask(gateway.bus, "default", "w", Control(action="drain"), secret)
        drained = (("joined", "w"), ("joined", "w"), ("draining", "w"))
        await gateway.sees(*drained)
        assert worker.output().count("a control message that the gateway had not signed was ignored") == 1
        await worker.kill()
        await gateway.sees(*drained, ("lost", "w"))
        assert [member.worker_id for member in gateway.registry] == ["w"]


async def test_a_frozen_worker_is_lost_by_its_silence_and_comes_back(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with (
        FakeEngine() as engine,
        Gateway(url).following() as gateway,
        worker_process(engine.url, url) as worker,
    ):
        await gateway.sees(("joined", "w"))
        worker._signal(signal.SIGSTOP)
        await gateway.sees(("joined", "w"), ("lost", "w"))
        worker._signal(signal.SIGCONT)
        await gateway.sees(("joined", "w"), ("lost", "w"), ("joined", "w"))


async def test_nobody_is_lost_with_the_broker_and_workers_announce_themselves_to_its_successor(
    broker: tuple[ChildProcess, str],
) -> None:
    process, url = broker
    async with FakeEngine() as engine, Gateway(url).following() as gateway, worker_process(engine.url, url):
        await until(lambda: "w" in gateway.reports)
        await process.kill()
        await until(lambda: not gateway.bus.connected)
        await until(lambda: gateway.registry._heard_all_since_s is None, "the registry knows that it is deaf")
        await until(gateway.is_silent)
        await process.start()
        seq = gateway.reports["w"].seq
        await until(lambda: gateway.reports["w"].seq > seq, "reports flow again")
        assert gateway.log == [("joined", "w")]
        async with Gateway(url).following() as newcomer:
            await newcomer.sees(("joined", "w"))


async def test_nobody_is_lost_to_a_frozen_broker(broker: tuple[ChildProcess, str]) -> None:
    process, url = broker
    async with FakeEngine() as engine, Gateway(url).following() as gateway, worker_process(engine.url, url):
        await until(lambda: "w" in gateway.reports and gateway.registry._heard_all_since_s is not None)
        process._signal(signal.SIGSTOP)
        await until(lambda: gateway.registry._heard_all_since_s is None, "the echo stays away")
        await until(gateway.is_silent)
        assert gateway.log == [("joined", "w")]
        process._signal(signal.SIGCONT)
        await until(lambda: gateway.registry._heard_all_since_s is not None, "the echo is back")
        await until(lambda: gateway.registry.get("w").state is MemberState.ONLINE)  # type: ignore[union-attr]  # joined


async def test_a_terminated_worker_drains_first_and_then_says_goodbye(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with (
        FakeEngine(running=1) as engine,
        Gateway(url, lost_after_s=60).following() as gateway,
        worker_process(engine.url, url) as worker,
    ):
        await until(lambda: "w" in gateway.reports)
        worker._signal(signal.SIGTERM)
        await gateway.sees(("joined", "w"), ("joined", "w"), ("draining", "w"))
        seq = gateway.reports["w"].seq
        await until(lambda: gateway.reports["w"].seq > seq + 3, "it stays while its engine works")
        assert worker.running
        engine.running = 0
        assert await asyncio.wait_for(worker.wait(), 20) == 0
        await gateway.sees(("joined", "w"), ("joined", "w"), ("draining", "w"), ("lost", "w"))


async def test_a_second_signal_ends_a_drain_at_once(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with (
        FakeEngine(running=1) as engine,
        Gateway(url).following() as gateway,
        worker_process(engine.url, url) as worker,
    ):
        await gateway.sees(("joined", "w"))
        worker._signal(signal.SIGTERM)
        await gateway.sees(("joined", "w"), ("joined", "w"), ("draining", "w"))
        worker._signal(signal.SIGINT)
        assert await asyncio.wait_for(worker.wait(), 20) == 0


async def test_the_gateway_can_drain_and_resume_a_worker(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with FakeEngine() as engine, Gateway(url).following() as gateway, worker_process(engine.url, url):
        await gateway.sees(("joined", "w"))
        assert ask(gateway.bus, "default", "w", Control(action="drain"))
        await gateway.sees(("joined", "w"), ("joined", "w"), ("draining", "w"))
        assert ask(gateway.bus, "default", "w", Control(action="resume"))
        await gateway.sees(("joined", "w"), ("joined", "w"), ("draining", "w"), ("joined", "w"))


async def test_a_gateway_that_starts_later_knows_living_from_dead_workers(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with (
        FakeEngine() as engine,
        worker_process(engine.url, url),
        worker_process(engine.url, url, worker_id="dead") as doomed,
    ):
        async with Gateway(url).following() as first:
            await until(lambda: {("joined", "w"), ("joined", "dead")} <= set(first.log))
            await doomed.kill()
            await until(lambda: ("lost", "dead") in first.log)
        async with Gateway(url).following() as second:
            await until(lambda: second.registry.get("dead") is not None and "w" in second.reports)
            assert second.log == [("joined", "w")]


async def test_another_clusters_workers_do_not_join(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    async with (
        FakeEngine() as engine,
        Gateway(url).following() as gateway,
        worker_process(engine.url, url, worker_id="theirs", cluster="other"),
        worker_process(engine.url, url),
    ):
        await gateway.sees(("joined", "w"))
        assert gateway.registry.get("theirs") is None
