"""What the doctor finds of Redis, broker, workers and traces endpoint, with one thing broken at a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentserve.doctor.broker import Heard, check_broker
from agentserve.doctor.finding import Verdict
from agentserve.doctor.redis import _eviction, _version, check_redis
from agentserve.doctor.traces import check_traces
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Announce, Channel, Report, Status, topic
from agentserve.tracker.connection import Connection
from tests.integration.doctor_parts import LISTEN_S, TIMEOUT_S, announce, one, silent_server, verdicts
from tests.integration.otlp_receiver import GrpcReceiver, Receiver
from tests.integration.tracker_servers import server
from tests.integration.worker_parts import HOST, FakeEngine, broker_process, until, worker_process

__all__ = ["server"]


@contextlib.asynccontextmanager
async def told(server: RedisServer, *command: str, back: tuple[str, ...]) -> AsyncIterator[None]:
    connection = Connection(server.url)
    try:
        await connection.command(*command)
        yield
        await connection.command(*back)
    finally:
        await connection.close()


async def test_a_redis_without_a_disk_works_but_forgets(server: RedisServer) -> None:
    found = await check_redis(server.url, "default", TIMEOUT_S)
    assert {check: verdict for check, verdict in verdicts(found).items() if check != "latency"} == {
        "reachable": "ok", "writable": "ok", "version": "ok", "persistence": "warning", "eviction": "ok",
    }  # fmt: skip


async def test_an_append_only_file_is_enough(tmp_path: Path) -> None:
    async with RedisServer(data_dir=tmp_path) as kept:
        assert one(await check_redis(kept.url, "default", TIMEOUT_S), "persistence").found == "append-only file"


async def test_a_redis_that_may_evict_runs_is_a_problem(server: RedisServer) -> None:
    policy = ("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "volatile-lru")
    async with told(server, *policy, back=("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")):
        found = one(await check_redis(server.url, "default", TIMEOUT_S), "eviction")
    assert found.verdict is Verdict.PROBLEM
    assert "volatile-lru" in found.found
    assert found.fix is not None
    assert "noeviction" in found.fix


def test_a_redis_that_is_nearly_full_is_warned_of() -> None:
    info = {"maxmemory_policy": "noeviction", "maxmemory": 1000, "used_memory": 950}
    assert _eviction(info).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("info", "verdict"),
    [
        ({"redis_version": "6.2.14"}, Verdict.PROBLEM),
        ({"redis_version": "7.0.0"}, Verdict.OK),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.8"}, Verdict.PROBLEM),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, Verdict.OK),
        ({}, Verdict.PROBLEM),
    ],
    ids=str,
)
def test_old_servers_are_a_problem(info: dict[str, Any], verdict: Verdict) -> None:
    assert _version(info).verdict is verdict


async def test_a_replica_is_a_problem(server: RedisServer) -> None:
    async with told(server, "REPLICAOF", HOST, str(free_port()), back=("REPLICAOF", "NO", "ONE")):
        assert one(await check_redis(server.url, "default", TIMEOUT_S), "writable").verdict is Verdict.PROBLEM


async def test_a_wrong_password_is_told_and_not_shown(server: RedisServer) -> None:
    url = server.url.replace("redis://", "redis://someone:hunter2@")
    (found,) = await check_redis(url, "default", TIMEOUT_S)
    assert found.verdict is Verdict.PROBLEM
    assert found.fix == "give user and password in AGENTSERVE_REDIS_URL"
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("url", [f"redis://{HOST}:1/0", "http://nonsense"])
async def test_no_redis_is_a_problem(url: str) -> None:
    (found,) = await check_redis(url, "default", TIMEOUT_S)
    assert (found.check, found.verdict) == ("reachable", Verdict.PROBLEM)


async def test_a_redis_that_hangs_is_given_up() -> None:
    async with silent_server() as where:
        (found,) = await check_redis(f"redis://{where}/0", "default", 0.2)
    assert found.found == f"Redis at {where}: it did not answer in time"


@pytest.fixture
async def broker() -> AsyncIterator[str]:
    port = free_port()
    child = broker_process("amqtt", port)
    await child.start()
    yield f"mqtt://{HOST}:{port}"
    await child.stop()


async def heard(url: str, cluster: str = "default") -> Heard:
    return await check_broker(url, cluster, TIMEOUT_S, LISTEN_S)


def of(result: Heard, worker: str) -> dict[str, str]:
    return verdicts(finding for finding in result.findings if finding.part == f"worker {worker}")


@contextlib.asynccontextmanager
async def speaking(url: str) -> AsyncIterator[Bus]:
    """A connected bus, to say what a worker would."""
    bus = Bus(url)
    task = asyncio.create_task(bus.run())
    await until(lambda: bus.connected)
    try:
        yield bus
    finally:
        task.cancel()
        await asyncio.wait({task})


async def retained(bus: Bus, channel: Channel, message: Announce | Status) -> None:
    bus.retain(topic("default", message.worker_id, channel), message.model_dump_json().encode())
    assert await bus.flush(TIMEOUT_S)


async def test_a_living_worker_is_heard(broker: str) -> None:
    async with FakeEngine() as engine:
        worker = worker_process(engine.url, broker)
        await worker.start()
        try:
            async with asyncio.timeout(20):
                while not (result := await heard(broker)).alive:
                    pass
        finally:
            await worker.stop()
    assert of(result, "w") == {"reports": "ok", "clock": "ok"}
    assert all(finding.verdict is Verdict.OK for finding in result.findings)


async def test_what_a_dead_worker_left_behind_is_told_apart_from_one_that_left(broker: str) -> None:
    async with speaking(broker) as bus:
        await retained(bus, Channel.ANNOUNCE, announce("dead"))
        await retained(bus, Channel.ANNOUNCE, announce("left"))
        await retained(bus, Channel.STATUS, Status(worker_id="left", boot_id="b", state="offline"))
        result = await heard(broker)
    assert of(result, "dead") == {"reports": "problem"}
    assert of(result, "left") == {"reports": "warning"}
    assert result.alive == ()


@pytest.mark.parametrize(("off_s", "words"), [(-30.0, "30.0"), (30.0, "ahead of")])
async def test_a_worker_s_wrong_clock_is_found(broker: str, off_s: float, words: str) -> None:
    async with speaking(broker) as bus:
        await retained(bus, Channel.ANNOUNCE, announce())

        async def report() -> None:
            for seq in range(10_000):
                message = Report(worker_id="w", boot_id="b", seq=seq, measured_at_s=time.time() + off_s)
                bus.publish(topic("default", "w", Channel.REPORT), message.model_dump_json().encode())
                await asyncio.sleep(0.05)

        reporting = asyncio.create_task(report())
        result = await heard(broker)
        reporting.cancel()
    found = one([f for f in result.findings if f.part == "worker w"], "clock")
    assert found.verdict is Verdict.WARNING
    assert words in found.found


async def test_an_unhealthy_engine_and_a_drain_are_told(broker: str) -> None:
    async with speaking(broker) as bus:
        for name in ("sick", "draining"):
            await retained(bus, Channel.ANNOUNCE, announce(name))
        await retained(bus, Channel.STATUS, Status(worker_id="draining", boot_id="b", state="draining"))

        async def report() -> None:
            for seq in range(10_000):
                for name in ("sick", "draining"):
                    message = Report(
                        worker_id=name, boot_id="b", seq=seq, measured_at_s=time.time(), healthy=name != "sick"
                    )
                    bus.publish(topic("default", name, Channel.REPORT), message.model_dump_json().encode())
                await asyncio.sleep(0.05)

        reporting = asyncio.create_task(report())
        result = await heard(broker)
        reporting.cancel()
    assert of(result, "sick")["reports"] == "problem"
    assert of(result, "draining")["reports"] == "warning"


async def test_garbage_and_an_empty_cluster_are_warned_of(broker: str) -> None:
    async with speaking(broker) as bus:
        bus.retain(topic("default", "w", Channel.ANNOUNCE), b"garbage")
        assert await bus.flush(TIMEOUT_S)
        result = await heard(broker)
    assert [f.verdict for f in result.findings if f.check == "announcements"] == [Verdict.WARNING, Verdict.WARNING]


async def test_a_refused_login_is_told_and_not_shown() -> None:
    port = free_port()
    child = broker_process("amqtt", port, username="someone", password="right")
    await child.start()
    try:
        result = await heard(f"mqtt://someone:hunter2@{HOST}:{port}")
    finally:
        await child.stop()
    (found,) = result.findings
    assert (found.check, found.verdict) == ("login", Verdict.PROBLEM)
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("url", [f"mqtt://{HOST}:1", "http://nonsense"])
async def test_no_broker_is_a_problem(url: str) -> None:
    (found,) = (await check_broker(url, "default", 0.3, LISTEN_S)).findings
    assert (found.check, found.verdict) == ("reachable", Verdict.PROBLEM)


async def test_a_broker_that_hangs_is_given_up() -> None:
    async with silent_server() as where:
        (found,) = (await check_broker(f"mqtt://{where}", "default", 0.3, LISTEN_S)).findings
    assert (found.check, found.verdict) == ("reachable", Verdict.PROBLEM)


async def test_a_cluster_may_have_no_broker() -> None:
    (found,) = (await check_broker("", "default", TIMEOUT_S, LISTEN_S)).findings
    assert found.verdict is Verdict.OK


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces"])
async def test_a_receiver_takes_an_export_without_spans(suffix: str) -> None:
    with Receiver() as receiver:
        found = await check_traces(receiver.url + suffix, TIMEOUT_S)
        assert receiver.paths == ["/v1/traces"]
    assert verdicts(found) == {"reachable": "ok", "accepts OTLP": "ok"}
    assert receiver.spans == []


async def test_a_receiver_over_grpc_takes_it_too() -> None:
    with GrpcReceiver() as receiver:
        found = await check_traces(receiver.url, TIMEOUT_S)
        assert len(receiver.paths) == 1
    assert verdicts(found) == {"reachable": "ok", "accepts OTLP": "ok"}
    (gone,) = await check_traces(receiver.url, TIMEOUT_S)
    assert (gone.check, gone.verdict) == ("reachable", Verdict.PROBLEM)


async def test_what_is_no_receiver_is_a_problem() -> None:
    async with FakeEngine() as engine:
        assert verdicts(await check_traces(engine.url, TIMEOUT_S)) == {"reachable": "ok", "accepts OTLP": "problem"}


@pytest.mark.parametrize(
    "endpoint", [f"http://me:hunter2@{HOST}:1", "me:hunter2@nowhere", "http://me:hunter2@[", "ftp://me:hunter2@h"]
)
async def test_no_receiver_is_a_problem_and_a_login_is_not_shown(endpoint: str) -> None:
    (found,) = await check_traces(endpoint, TIMEOUT_S)
    assert found.verdict is Verdict.PROBLEM
    assert "hunter2" not in str(found)


async def test_a_receiver_that_hangs_is_given_up() -> None:
    async with silent_server() as where:
        (found,) = await check_traces(f"http://{where}", 0.1)
    assert found.found.endswith("no answer in time")
