"""What the bus keeps over a broker's death, what it drops, and what it never says."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from agentserve.local.process import ChildProcess, free_port
from agentserve.telemetry.bus import Bus, LastWill
from tests.integration.worker_parts import BROKERS, HOST, broker_process, until


@contextlib.asynccontextmanager
async def running(*buses: Bus) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ChildProcess, str]]:
    port = free_port()
    async with broker_process(request.param, port) as process:
        yield process, f"mqtt://{HOST}:{port}"


def listening(url: str, topic_filter: str) -> tuple[Bus, list[tuple[str, bytes]]]:
    heard: list[tuple[str, bytes]] = []
    bus = Bus(url)
    bus.subscribe(topic_filter, lambda topic, payload: heard.append((topic, payload)))
    return bus, heard


async def test_a_restarted_broker_gets_subscriptions_and_facts_again_but_no_stale_reports(
    broker: tuple[ChildProcess, str],
) -> None:
    process, url = broker
    states: list[bool] = []
    speaker, (listener, heard) = Bus(url, on_change=states.append), listening(url, "a/#")
    async with running(speaker, listener):
        await until(lambda: speaker.connected and listener.connected)
        speaker.retain("a/fact", b"1")
        await until(lambda: ("a/fact", b"1") in heard)
        await process.stop()
        await until(lambda: not speaker.connected and not listener.connected)
        heard.clear()
        assert not speaker.publish("a/report", b"stale")
        speaker.retain("a/fact", b"2")
        await process.start()
        await until(lambda: ("a/fact", b"2") in heard)
        assert speaker.publish("a/report", b"fresh")
        await until(lambda: ("a/report", b"fresh") in heard)
        assert ("a/report", b"stale") not in heard
        assert ("a/fact", b"1") not in heard
    assert states == [True, False, True, False]
    assert (speaker.dropped, speaker.problem) == (1, "closed")


async def test_facts_are_confirmed_in_the_order_they_were_last_stated(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    speaker, (listener, heard) = Bus(url), listening(url, "a/+")
    speaker.retain("a/1", b"old")
    speaker.retain("a/2", b"x")
    speaker.retain("a/1", b"new")
    assert not await speaker.flush(0.01)
    async with running(listener):
        await until(lambda: listener.connected)
        async with running(speaker):
            assert await speaker.flush(20)
        await until(lambda: len(heard) >= 2)
    assert heard == [("a/2", b"x"), ("a/1", b"new")]


async def test_a_will_is_spoken_for_the_dead_and_not_for_those_who_leave(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    listener, heard = listening(url, "a/+")
    async with running(listener):
        await until(lambda: listener.connected)
        polite, witness = Bus(url, will=LastWill("a/polite", b"gone")), Bus(url)
        async with running(polite):
            await until(lambda: polite.connected)
        async with running(witness):
            witness.retain("a/after", b"1")
            await until(lambda: ("a/after", b"1") in heard)
    assert heard == [("a/after", b"1")]


async def test_only_matching_messages_within_the_size_limit_are_handed_on(broker: tuple[ChildProcess, str]) -> None:
    _, url = broker
    speaker = Bus(url, max_payload_bytes=10_000)
    heard: list[tuple[str, bytes]] = []
    listener = Bus(url, max_payload_bytes=10)
    listener.subscribe("mine/+", lambda topic, payload: heard.append((topic, payload)))
    other, _ = listening(url, "others/#")
    async with running(speaker, other):
        speaker.retain("others/fact", b"theirs")
        assert await speaker.flush(20)
        await until(lambda: other.connected)
        async with running(listener):
            await until(lambda: listener.connected)
            for payload in (b"x" * 11, b"x" * 10_000, b"small"):
                speaker.publish("mine/report", payload)
            await until(lambda: bool(heard))
    assert heard == [("mine/report", b"small")]
    assert listener.dropped == 2


async def test_a_broker_that_never_answers_is_given_up_and_tried_again() -> None:
    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: connections.append(writer), HOST, 0)
    bus = Bus(f"mqtt://{HOST}:{server.sockets[0].getsockname()[1]}")
    async with running(bus):
        await until(lambda: len(connections) >= 2)
        assert (bus.connected, bus.problem) == (False, "Operation timed out")
    for writer in connections:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_a_wrong_password_is_a_problem_that_names_no_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    async with broker_process("amqtt", port, username="me", password="s3cret"):
        right, wrong = Bus(f"mqtt://me:s3cret@{HOST}:{port}"), Bus(f"mqtt://me:hunter2@{HOST}:{port}")
        nobody = Bus(f"mqtt://{HOST}:{port}")
        async with running(right, wrong, nobody):
            await until(lambda: right.connected)
            await until(lambda: "uthori" in (wrong.problem or "") and "uthori" in (nobody.problem or ""))
            assert not wrong.connected
    assert "hunter2" not in caplog.text
    assert "s3cret" not in caplog.text
    assert f"broker mqtt://{HOST}:{port}: no connection" in caplog.text
