"""Whose Docker is it? The machine's own daemon where there is one, else one of ours that leaves nothing behind.

Ours lives in namespaces of its own (network, mounts, processes): its bridges, firewall rules, mounts and containers
are nobody else's, and the kernel takes them away with its first process. It runs twice: with the machine's network but
without bridges to get images, and with a network of its own to run them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.compose.commands import CALM, CannotRun, ran, say, works
from tests.compose.packages import Tools

CGROUP: Final = "agentserve-compose-test"
_START_S: Final = 60.0
_STOP_S: Final = 60.0


@dataclass(frozen=True)
class Docker:
    """A daemon that answers: `env` for its clients, `enter` before a program that is to see its published ports."""

    env: Mapping[str, str] = field(default_factory=dict)
    enter: tuple[str, ...] = ()

    def __call__(self, *arguments: str | Path, within_s: float = 600, stdin: str | None = None) -> str:
        """Run the command line client."""
        return ran("docker", *arguments, env=self.env, within_s=within_s, stdin=stdin)

    def works(self, *arguments: str | Path, within_s: float = 60) -> bool:
        """Whether the client ends well."""
        return works("docker", *arguments, env=self.env, within_s=within_s)


def machines_own() -> Docker | None:
    """The daemon that this machine runs, if we may use it."""
    docker = Docker()
    return docker if shutil.which("docker") and docker.works("info", within_s=20) else None


def check_rights() -> None:
    """Raise CannotRun unless we may start a daemon of our own."""
    if os.geteuid() != 0:
        raise CannotRun(
            "no Docker daemon answers and we are not root: start Docker, join the group `docker`, or run this as root"
        )
    if shutil.which("unshare") is None or not works(*own_namespaces(new_network=True), "true"):
        raise CannotRun(
            "no Docker daemon answers and this machine does not let root make namespaces: start Docker first"
        )


@contextlib.contextmanager
def own_daemon(tools: Tools, work: Path, *, new_network: bool) -> Iterator[Docker]:
    """Our daemon, until the block ends. `new_network`: bridges and ports of its own; else the machine's, no bridges."""
    socket, log = work / "docker.sock", work / "dockerd.log"
    apart = () if new_network else ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
    command = [
        *own_namespaces(new_network=new_network),
        *CALM,
        *(sys.executable, str(Path(__file__).with_name("inside.py")), str(work / "shelters")),
        *("dockerd", "--host", f"unix://{socket}", "--data-root", str(work / "data")),
        *("--exec-root", str(work / "exec"), "--pidfile", str(work / "dockerd.pid"), "--cgroup-parent", CGROUP),
        *("--default-ulimit", "nofile=16384:16384", "--log-level", "warn", *apart),
    ]
    with log.open("a") as out:
        outer = subprocess.Popen(
            command, env={**os.environ, **tools.env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        docker = _answering(outer, tools, socket, log, new_network)
        yield docker
    finally:
        _stop(outer)
        socket.unlink(missing_ok=True)


def own_namespaces(*, new_network: bool = False) -> tuple[str, ...]:
    """What to write before a command, so that its mounts and processes, and if wanted its network, end with it."""
    network = ("--net",) if new_network else ()
    dies_with_us = ("setpriv", "--pdeathsig", "KILL")
    return (*dies_with_us, "unshare", *network, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def _answering(outer: subprocess.Popen[bytes], tools: Tools, socket: Path, log: Path, new_network: bool) -> Docker:
    env = {**tools.env, "DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "1"}
    end_s = time.monotonic() + _START_S
    while not works("docker", "info", env=env, within_s=20):
        if outer.poll() is not None or time.monotonic() > end_s:
            raise CannotRun(f"a Docker daemon of our own does not start here:\n{log.read_text()[-2000:]}")
        time.sleep(0.3)
    enter = ("nsenter", f"--net=/proc/{_first_process(outer)}/ns/net") if new_network else ()
    say(f"our Docker daemon answers ({'a network of its own' if new_network else 'to get images'})")
    return Docker(env, enter)


def _first_process(outer: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])


def _stop(outer: subprocess.Popen[bytes]) -> None:
    """Ask the daemon to stop; with its first process the kernel ends all others of its namespace."""
    if outer.poll() is None:
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
            os.kill(_first_process(outer), signal.SIGTERM)
    try:
        outer.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        outer.kill()  # unshare takes its child along
        outer.wait()
