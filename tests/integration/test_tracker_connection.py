"""What a store does when its server is gone, hangs, refuses, or comes back: it says so, and goes on."""

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import agentserve
from agentserve.errors import BadInput, Unavailable
from agentserve.journal import Kind, RunEvent
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.settings import Settings
from agentserve.tracker.connection import Connection
from agentserve.tracker.redis import RedisStore
from tests.integration.tracker_servers import cluster, connect, server, store
from workflows.run import Run

__all__ = ["cluster", "connect", "server", "store"]

SECRET = "hunter2"


def a_run(run_id: str = "r1") -> Run:
    return Run(run_id=run_id, workflow="triage", submitted_s=1.0, slo_s=None, deadline_s=None)


@contextlib.asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[str]:
    """A server that answers everything with `reply`: None never answers, empty hangs up. Yields its URL."""
    connected: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.add(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                if reply == b"":
                    break
                writer.write(reply or b"")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://:{SECRET}@127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    finally:
        listening.close()
        for writer in connected:
            writer.close()
        await listening.wait_closed()


async def every_call(store: RedisStore) -> list[Unavailable]:
    event = RunEvent(run_id="r1", kind=Kind.RUN_SUBMITTED, at_s=1.0)
    refused = []
    for call in (
        store.ping(),
        store.create(a_run()),
        store.load("r1"),
        store.list(None, 10),
        store.append([event]),
        store.read("r1"),
        store.add("triage", {"a": 1}),
        store.counts("triage"),
        store.get_workflow("triage"),
    ):
        with pytest.raises(Unavailable) as caught:
            await call
        refused.append(caught.value)
    return refused


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "the connection failed"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "still loading its data"),
        (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", "refused the user or password"),
        (b"-NOAUTH Authentication required.\r\n", "refused the user or password"),
        (b"-ERR something about hunter2\r\n", "refused"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
        (b"\x00\xff\r\n", ""),
    ],
)
async def test_a_broken_server_makes_every_call_unavailable(reply: bytes, reason: str) -> None:
    async with answering(reply) as url:
        store = RedisStore(url, "test")
        for error in await every_call(store):
            assert store.address in str(error)
            assert reason in str(error)
            assert SECRET not in str(error)
        await store.close()


async def test_a_server_that_hangs_makes_every_call_unavailable_in_time() -> None:
    async with answering(None) as url:
        store = RedisStore(url, "test", timeout_s=0.05)
        for error in await every_call(store):
            assert "did not answer in time" in str(error)
        await store.close()


async def test_no_server_is_unavailable_and_says_where() -> None:
    port = free_port()
    store = RedisStore(f"redis://user:{SECRET}@127.0.0.1:{port}/0", "test")
    for error in await every_call(store):
        assert str(error).startswith(f"Redis at 127.0.0.1:{port}: the connection failed")
        assert SECRET not in str(error)
    await store.close()


async def test_connecting_to_no_server_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"Redis at /nowhere/redis\.sock: the connection failed"):
        await RedisStore.connect(Settings(redis_url="unix:///nowhere/redis.sock"))


async def test_connecting_gives_a_store_that_answers(server: RedisServer, cluster: str) -> None:
    store = await RedisStore.connect(Settings(redis_url=server.url, cluster=cluster))
    await store.ping()
    await store.close()


@pytest.mark.parametrize(
    "url", ["http://:hunter2@h/", "hunter2", "", "redis://h:hunter2/", "unix://", "redis://[hunter2"]
)
def test_a_malformed_url_is_bad_input_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput, match="AGENTSERVE_REDIS_URL") as caught:
        RedisStore(url, "test")
    assert SECRET not in str(caught.value)


async def test_a_wrong_password_is_told_from_a_missing_server(server: RedisServer, store: RedisStore) -> None:
    closed = RedisStore(server.url.replace("redis://", f"redis://nobody:{SECRET}@"), "test")
    with pytest.raises(Unavailable, match="refused the user or password") as caught:
        await closed.ping()
    assert SECRET not in str(caught.value)
    await closed.close()


async def test_a_restarted_server_is_used_again(server: RedisServer, tmp_path: Path) -> None:
    own = RedisServer(binary=server.binary, data_dir=tmp_path / "data")
    await own.start()
    store = RedisStore(own.url, "test")
    try:
        await asyncio.gather(*(store.create(a_run(f"r{n}")) for n in range(10)))  # several pooled connections
        await own.stop()
        with pytest.raises(Unavailable):
            await store.load("r0")
        await own.start()
        assert await asyncio.gather(*(store.load(f"r{n}") for n in range(10))) == [a_run(f"r{n}") for n in range(10)]
        assert await store.create(a_run("r0")) == (a_run("r0"), False)
        assert await store.create(a_run("new")) == (a_run("new"), True)  # the server forgot its scripts
    finally:
        await store.close()
        await own.stop()


async def test_a_cancelled_call_does_not_spoil_the_next(store: RedisStore) -> None:
    await store.create(a_run())
    for _ in range(50):
        task = asyncio.create_task(store.load("r1"))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await store.load("r1") == a_run()


async def test_more_calls_than_connections_wait_for_their_turn(server: RedisServer) -> None:
    connection = Connection(server.url, max_connections=2)
    answers = await asyncio.gather(*(connection.command("ECHO", n) for n in range(200)))
    assert answers == [str(n).encode() for n in range(200)]
    await connection.close()


def test_redis_is_spoken_to_in_one_place() -> None:
    root = Path(agentserve.__file__).parent
    importers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            if any(name.split(".")[0] in ("redis", "valkey") for name in names):
                importers.add(path.relative_to(root).as_posix())
    # The SDK's checkpoints are in the user's process, which has no tracker.
    assert importers == {"tracker/connection.py", "sdk/redis_link.py"}


async def test_commands_that_come_together_share_round_trips(server: RedisServer) -> None:
    connection = Connection(server.url)
    await asyncio.gather(*(connection.command("ECHO", "open") for _ in range(8)))  # connections say hello first
    before = (await connection.command("INFO", "stats"))["total_reads_processed"]
    answers = await asyncio.gather(*(connection.command("ECHO", f"{n}") for n in range(256)))
    after = (await connection.command("INFO", "stats"))["total_reads_processed"]
    assert answers == [f"{n}".encode() for n in range(256)]
    assert after - before <= 16
    await connection.close()


async def test_of_commands_that_share_a_round_trip_only_the_bad_one_fails(server: RedisServer) -> None:
    connection = Connection(server.url)
    await connection.command("SET", "text", "no number")
    commands = [("ECHO", "a"), ("ECHO", "b"), ("INCR", "text"), ("ECHO", "c"), ("ECHO", "d")]
    answers = await asyncio.gather(*(connection.command(*one) for one in commands), return_exceptions=True)
    assert [one for one in answers if isinstance(one, bytes)] == [b"a", b"b", b"c", b"d"]
    assert isinstance(answers[2], Unavailable)
    await connection.close()


async def test_a_command_given_up_by_its_caller_harms_no_other(server: RedisServer) -> None:
    connection = Connection(server.url)
    calls = [asyncio.ensure_future(connection.command("ECHO", f"{n}")) for n in range(8)]
    await asyncio.sleep(0)
    calls[5].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [one for one in answers if isinstance(one, bytes)] == [f"{n}".encode() for n in range(8) if n != 5]
    await connection.close()
