"""How is a part of the cluster started as a child process, known to be ready, and never left behind?

A child writes its output to a file, so it can never block on a full pipe. On Linux the kernel kills it when its parent
dies, even by SIGKILL: the child asks for that itself (`prctl`) between fork and exec, in a fresh interpreter, since
code in a forked copy of a threaded process can deadlock.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import httpx

from agentserve.errors import Unavailable

Probe = Callable[[], Awaitable[bool]]
"""Asks once whether a child is ready; must return False, not raise, while it is not."""

_POLL_S: Final = 0.03
_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 12

# argv: parent's pid, program, its arguments. Signal 9 at the parent's death, then become the program.
_TIE_TO_PARENT: Final = """
import ctypes, os, sys
ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    os.write(2, f"cannot start {sys.argv[2]}: {error.strerror}\\n".encode())
    os._exit(127)
"""


class ChildProcess:
    """One child of this process: `start` returns when it is ready, `stop` when it is gone.

    `name` appears in errors. `env` replaces the environment if given. `probe` None: ready as soon as it runs.
    `log_path` receives stdout and stderr (appended); without it they go to an unnamed file that is gone with the child.
    Start it from the thread that lives as long as the child should: Linux ties a child to the thread that forked it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        probe: Probe | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log_path: Path | None = None,
        ready_timeout_s: float = 15.0,
        grace_s: float = 3.0,
    ) -> None:
        self.name = name
        self._argv = tuple(argv)
        self._probe = probe
        self._env = env
        self._cwd = cwd
        self._log_path = log_path
        self._ready_timeout_s = ready_timeout_s
        self._grace_s = grace_s
        self._log: BinaryIO | None = None
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The child's process id; raises Unavailable if it was never started."""
        if self._process is None:
            raise Unavailable(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit code, -N if signal N ended it, None while it runs or before it started."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the child and wait until its probe says ready.

        Raises Unavailable, with the child's last lines of output, if it ends or stays silent for `ready_timeout_s`;
        the child is gone then. Does nothing if the child runs already.
        """
        if self.running:
            return
        self._open_log()
        assert self._log is not None  # noqa: S101  # for the type checker: _open_log has just set it
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=None if self._env is None else dict(self._env),
                cwd=self._cwd,
                start_new_session=True,  # a Ctrl-C in the terminal reaches the parent alone, which stops its children
            )
        except OSError as error:
            self._log.close()
            self._log = None
            raise Unavailable(f"{self.name} cannot be started: {error.strerror}") from error
        try:
            await self._until_ready()
        except BaseException:
            await self.kill()
            raise

    async def wait(self) -> int:
        """Wait until the child has ended; return its exit code (-N for signal N)."""
        if self._process is None:
            raise Unavailable(f"{self.name} has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Ask the child to end (SIGTERM), kill it after the grace time, and return when it is gone."""
        if self.running:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s):
                    await self.wait()
        await self.kill()

    async def kill(self) -> None:
        """End the child and its own children at once (SIGKILL); return when it is gone."""
        if self._process is None or self._log is None:
            return
        self._signal_group(signal.SIGKILL)
        await self._process.wait()
        self._log.close()
        self._log = None

    async def restart(self) -> None:
        """Stop the child if it runs, then start it anew."""
        await self.stop()
        await self.start()

    def output(self) -> str:
        """The last lines that the child wrote since it started; at most 12 lines of 4 KiB."""
        if self._log is None:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        start = max(self._log_start, size - _TAIL_BYTES)
        text = os.pread(self._log.fileno(), _TAIL_BYTES, start).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _command(self) -> tuple[str, ...]:
        if sys.platform != "linux":
            return self._argv
        return (sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *self._argv)

    def _open_log(self) -> None:
        if self._log is not None:
            self._log.close()
        if self._log_path is None:
            self._log = tempfile.TemporaryFile("w+b", buffering=0)  # noqa: SIM115  # kill() closes it
        else:
            try:
                self._log = self._log_path.open("a+b", buffering=0)
            except OSError as error:
                raise Unavailable(f"{self.name} cannot write its log {self._log_path}: {error.strerror}") from error
        self._log_start = os.fstat(self._log.fileno()).st_size

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(self._ready_timeout_s):
                while self.running:
                    if self._probe is None or await self._probe():
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Unavailable(f"{self.name} was not ready within {self._ready_timeout_s:g} s{self._said()}") from None
        raise Unavailable(f"{self.name} ended with exit code {self.returncode} before it was ready{self._said()}")

    def _said(self) -> str:
        output = self.output()
        return f"; its last output:\n{output}" if output else " and it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def _signal_group(self, number: signal.Signals) -> None:
        # The group may be gone; macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def tcp_ready(host: str, port: int) -> Probe:
    """A probe that is true once something accepts connections at host:port."""

    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        writer.close()
        return True

    return probe


def http_ready(url: str) -> Probe:
    """A probe that is true once a GET of `url` is answered with a 2xx status."""

    async def probe() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
                return (await client.get(url)).is_success
        except httpx.HTTPError:
            return False

    return probe


def port_in_use(host: str, port: int) -> bool:
    """Whether a server that binds host:port now would be refused."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
        except OSError:
            return True
    return False


_given: set[int] = set()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nothing listens on, all different, and none that this process was given before.

    Another process may still take one before it is bound; a caller that can should then try again with new ones.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            if len(held) > count + len(_given):
                raise Unavailable(f"no free port on {host}")
            candidate = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            held.append(candidate)
            candidate.bind((host, 0))
            port = candidate.getsockname()[1]
            if port not in _given:
                _given.add(port)
                ports.append(port)
    except OSError as error:
        raise Unavailable(f"no free port on {host}: {error.strerror}") from error
    finally:
        for candidate in held:
            candidate.close()
    return ports


def free_port(host: str = "127.0.0.1") -> int:
    """One port as from `free_ports`."""
    return free_ports(1, host)[0]
