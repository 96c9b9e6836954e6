"""What the doctor finds on real servers, with one thing broken at a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from agentserve.doctor.broker import Heard, check_broker
from agentserve.doctor.engines import Target, check_engine
from agentserve.doctor.examination import examine
from agentserve.doctor.finding import Finding, Verdict
from agentserve.doctor.gateway import check_gateway, compare
from agentserve.doctor.redis import _eviction, _version, check_redis
from agentserve.doctor.traces import check_traces
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.settings import Settings
from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Announce, Channel, Report, Status, topic
from agentserve.tracker.connection import Connection
from scheduler.events import Role
from scheduler.profiles import ProfileBook
from tests.integration.gateway_parts import announcement, gateway
from tests.integration.otlp_receiver import GrpcReceiver, Receiver
from tests.integration.tracker_servers import server
from tests.integration.worker_parts import HOST, MODEL, FakeEngine, broker_process, until, worker_process

__all__ = ["server"]

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


# -- Redis -----------------------------------------------------------------------------------------------------------


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


# -- broker and workers ----------------------------------------------------------------------------------------------


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


def announce(worker_id: str = "w", **facts: Any) -> Announce:
    return announcement(worker_id, "http://127.0.0.1:1").model_copy(update=facts)


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


# -- engines ---------------------------------------------------------------------------------------------------------


async def looked_at(engine: FakeEngine, told: Announce | None = None, **options: Any) -> list[Finding]:
    target = {"name": "w", "url": engine.url, "gpu": "h100", "model": MODEL, "announce": told} | options
    async with engine:
        return await check_engine(Target(**target), ProfileBook(), None, TIMEOUT_S)


def as_it_is(**facts: Any) -> Announce:
    """What a worker would announce of a FakeEngine."""
    same: dict[str, Any] = {
        "engine_version": "0.32.0", "kv_capacity_tokens": 32_000, "block_tokens": 32, "supports_priority": True
    }  # fmt: skip
    return announce().model_copy(update=same | facts)


async def test_an_engine_that_is_as_announced_is_well() -> None:
    found = await looked_at(FakeEngine(), as_it_is())
    assert {finding.verdict for finding in found} == {Verdict.OK}
    assert set(verdicts(found)) == {"reachable", "announced", "priorities", "KV connector", "GPU profile"}


async def test_priorities_that_are_off_are_warned_of_with_the_flag() -> None:
    found = one(await looked_at(FakeEngine(has_priority=False)), "priorities")
    assert (found.verdict, found.fix) == (Verdict.WARNING, "start it with --scheduling-policy priority")


@pytest.mark.parametrize(
    ("engine", "facts", "verdict", "words"),
    [
        ({"has_priority": False}, {}, "problem", "claims priorities"),
        ({"has_token_ids": False}, {}, "problem", "claims token ids"),
        ({}, {"kv_group": "g"}, "problem", "claims KV transfer"),
        ({}, {"supports_priority": False}, "warning", "does not tell that it has priorities"),
        ({"has_kv_transfer": True}, {}, "warning", "does not tell that it has KV transfer"),
        ({}, {"kv_capacity_tokens": 9_000}, "warning", "KV tokens 9000, found 32000"),
        ({"version": "0.40.0"}, {}, "warning", "version 0.32.0, found 0.40.0"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_what_a_worker_announces_is_held_against_the_engine(
    engine: dict[str, Any], facts: dict[str, Any], verdict: str, words: str
) -> None:
    found = one(await looked_at(FakeEngine(**engine), as_it_is(**facts)), "announced")
    assert str(found.verdict) == verdict
    assert words in found.found


async def test_an_engine_for_one_phase_needs_a_kv_connector() -> None:
    found = one(await looked_at(FakeEngine(), as_it_is(role=Role.PREFILL)), "KV connector")
    assert found.verdict is Verdict.PROBLEM
    assert found.fix is not None
    assert "NixlConnector" in found.fix
    assert one(await looked_at(FakeEngine(), as_it_is()), "KV connector").verdict is Verdict.OK


async def test_a_gpu_without_a_profile_is_a_problem() -> None:
    found = one(await looked_at(FakeEngine(), gpu="abacus"), "GPU profile")
    assert found.verdict is Verdict.PROBLEM
    assert found.fix is not None
    assert "agentserve profile http" in found.fix


async def test_another_model_is_a_problem() -> None:
    (found,) = await looked_at(FakeEngine(models=["other"]))
    assert (found.check, found.verdict) == ("usable", Verdict.PROBLEM)
    assert "other" in found.found


async def test_no_engine_and_one_that_hangs_are_problems() -> None:
    profiles = ProfileBook()
    (gone,) = await check_engine(Target(name="w", url=f"http://{HOST}:1"), profiles, None, TIMEOUT_S)
    async with silent_server() as where:
        (hangs,) = await check_engine(Target(name="w", url=f"http://{where}"), profiles, None, 0.1)
    (nonsense,) = await check_engine(Target(name="w", url="http://["), profiles, None, TIMEOUT_S)
    assert {f.verdict for f in (gone, hangs, nonsense)} == {Verdict.PROBLEM}
    assert hangs.found.endswith("no answer in time")


async def test_an_engine_s_wrong_clock_is_found() -> None:
    async with running(EmulatorConfig(gpu="h100", speed=100.0)) as url:
        target = Target(name="w", url=url, model=MODEL)
        right = await check_engine(target, ProfileBook(), None, TIMEOUT_S)
        wrong = await check_engine(target, ProfileBook(), None, TIMEOUT_S, clock=lambda: time.time() + 60)
    assert one(right, "clock").verdict is Verdict.OK
    assert one(wrong, "clock").verdict is Verdict.WARNING
    assert "behind here" in one(wrong, "clock").found


# -- traces ----------------------------------------------------------------------------------------------------------


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


# -- gateway and all together ----------------------------------------------------------------------------------------


async def test_a_gateway_says_what_it_lost_and_what_it_does_not_see() -> None:
    async with gateway(EmulatorConfig(gpu="h100", speed=100.0), policy="agentserve") as made:
        url = str(made.client.base_url)
        well = await check_gateway(url, "default", TIMEOUT_S)
        made.orchestrator.lost("e0", "the test took it")
        broken = await check_gateway(url, "other", TIMEOUT_S)
    assert {finding.verdict for finding in well.findings} == {Verdict.OK}
    assert list(compare(well, ["e0"])) == []
    assert [finding.verdict for finding in compare(well, ["w"])] == [Verdict.PROBLEM]
    assert "the test took it" in one(broken.findings, "instances").found
    assert one(broken.findings, "cluster").verdict is Verdict.WARNING
    assert one(broken.findings, "ready").verdict is Verdict.PROBLEM


async def test_what_is_no_gateway_is_a_problem() -> None:
    async with FakeEngine() as engine, silent_server() as where:
        other = await check_gateway(engine.url, "default", TIMEOUT_S)
        hangs = await check_gateway(f"http://{where}", "default", 0.1)
    gone = await check_gateway(f"http://me:hunter2@{HOST}:1", "default", TIMEOUT_S)
    nonsense = await check_gateway("http://[", "default", TIMEOUT_S)
    for seen in (other, hangs, gone, nonsense):
        (found,) = seen.findings
        assert (found.check, found.verdict) == ("reachable", Verdict.PROBLEM)
        assert "hunter2" not in str(found)


async def test_engines_of_the_gateway_are_looked_at_too(server: RedisServer) -> None:
    async with gateway(EmulatorConfig(gpu="h100", speed=100.0), policy="agentserve", redis=server) as made:
        settings = Settings(redis_url=server.url, mqtt_url="")
        found = await examine(settings, str(made.client.base_url), timeout_s=TIMEOUT_S)
    assert "engine e0" in {finding.part for finding in found}
    assert Verdict.PROBLEM not in {finding.verdict for finding in found}


async def test_where_nothing_is_there_everything_is_a_problem() -> None:
    settings = Settings(redis_url=f"redis://{HOST}:1/0", mqtt_url=f"mqtt://{HOST}:1", otlp_endpoint=f"http://{HOST}:1")
    found = await examine(settings, f"http://{HOST}:1", timeout_s=0.3)
    assert {finding.part: str(finding.verdict) for finding in found} == dict.fromkeys(
        ("gateway", "redis", "broker", "engines", "traces"), "problem"
    )
    assert all(finding.fix for finding in found)
