"""Child processes: ready when they say so, explained when they fail, gone when they should be."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from agentserve.errors import Unavailable
from agentserve.local.process import ChildProcess, free_port, free_ports, http_ready, port_in_use, tcp_ready

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); " + SLEEP


def python(code: str, name: str = "worker", **options: object) -> ChildProcess:
    return ChildProcess(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]


async def never() -> bool:
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while any(alive(pid) for pid in pids):  # noqa: ASYNC110  # only polling sees a process that is not ours end
            await asyncio.sleep(0.02)


async def test_a_child_runs_until_it_is_stopped() -> None:
    async with python(SLEEP) as child:
        pid = child.pid
        assert (child.running, child.returncode, alive(pid)) == (True, None, True)
        await child.start()
        assert child.pid == pid
    assert (child.running, child.returncode) == (False, -signal.SIGTERM)
    await child.stop()


async def test_a_child_is_ready_when_its_probe_says_so(tmp_path: Path) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    async with ChildProcess("web", argv, probe=http_ready(f"http://127.0.0.1:{port}/")):
        assert await tcp_ready("127.0.0.1", port)()
        assert not await http_ready(f"http://127.0.0.1:{port}/missing")()
        assert port_in_use("127.0.0.1", port)
    assert not await tcp_ready("127.0.0.1", port)()
    assert not await http_ready(f"http://127.0.0.1:{port}/")()


async def test_a_child_that_ends_before_it_is_ready_is_explained() -> None:
    child = python("print('one', flush=True); raise SystemExit('no such GPU: h900')", probe=never)
    with pytest.raises(Unavailable, match="worker ended with exit code 1 before it was ready") as caught:
        await child.start()
    assert "one\nno such GPU: h900" in str(caught.value)
    assert not child.running


async def test_a_child_that_says_nothing_is_explained_too() -> None:
    with pytest.raises(Unavailable, match="exit code 3 before it was ready and it printed nothing"):
        await python("raise SystemExit(3)", probe=never).start()


async def test_a_child_that_is_not_ready_in_time_is_ended() -> None:
    child = python("print('loading', flush=True); " + SLEEP, probe=never, ready_timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"worker was not ready within 0.5 s"):
        await child.start()
    assert not alive(child.pid)


async def test_a_cancelled_start_leaves_no_child() -> None:
    probed = asyncio.Event()

    async def probe() -> bool:
        probed.set()
        return False

    child = python(SLEEP, probe=probe)
    start = asyncio.create_task(child.start())
    await probed.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not alive(child.pid)


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(Unavailable, match="cannot start no-such-program: No such file or directory"):
        await ChildProcess("broker", ["no-such-program"], probe=never).start()


async def test_a_missing_working_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="worker cannot be started: No such file or directory"):
        await python(SLEEP, cwd=tmp_path / "missing").start()


async def test_nothing_can_be_asked_of_a_child_that_never_started() -> None:
    child = python(SLEEP)
    assert (child.running, child.returncode, child.output()) == (False, None, "")
    with pytest.raises(Unavailable, match="worker has not been started"):
        child.pid  # noqa: B018  # the property raises
    with pytest.raises(Unavailable, match="worker has not been started"):
        await child.wait()
    await child.stop()


async def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def ready() -> bool:
        return "up" in log.read_text()

    child = python(STUBBORN, probe=ready, log_path=log, grace_s=0.05)
    await child.start()
    await child.stop()
    assert child.returncode == -signal.SIGKILL


async def test_the_children_of_a_child_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def ready() -> bool:
        return log.read_text().strip().isdigit()

    code = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
    )
    async with python(code, probe=ready, log_path=log):
        grandchild = int(log.read_text())
        assert alive(grandchild)
    await until_gone(grandchild)


async def test_a_log_file_collects_every_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = python("import sys; print('out'); print('err', file=sys.stderr)", log_path=log)
    for _ in range(2):
        await child.start()
        assert await child.wait() == 0
        assert sorted(child.output().split()) == ["err", "out"]
        await child.stop()
    assert sorted(log.read_text().split()) == ["err", "err", "out", "out"]


async def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"worker cannot write its log {tmp_path}: Is a directory"):
        await python(SLEEP, log_path=tmp_path).start()


async def test_only_the_last_output_is_told() -> None:
    child = python("for n in range(100_000): print('line', n)")
    await child.start()
    await child.wait()
    assert child.output().splitlines() == [f"line {n}" for n in range(99_988, 100_000)]
    await child.stop()


async def test_a_restarted_child_is_another_process() -> None:
    async with python(SLEEP) as child:
        first = child.pid
        os.kill(first, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        await child.restart()
        assert child.running
        assert child.pid != first


async def test_a_given_environment_replaces_the_own() -> None:
    child = python("import os; print(os.environ.get('HOME'), os.environ['ONLY'])", env={"ONLY": "this"})
    await child.start()
    await child.wait()
    assert child.output() == "None this"
    await child.stop()


PARENT = """
import asyncio, sys
from agentserve.local.process import ChildProcess
from agentserve.local.redis import RedisServer
async def main():
    child = ChildProcess("child", [sys.executable, "-c", "import time; time.sleep(600)"])
    server = RedisServer()
    await child.start()
    await server.start()
    print(child.pid, server.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_children_end_with_a_parent_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.send_signal(number)
    await parent.wait()
    await until_gone(*pids)


def test_free_ports_are_free_and_never_given_twice() -> None:
    ports = free_ports(20) + [free_port() for _ in range(20)]
    assert len(set(ports)) == 40
    assert not any(port_in_use("127.0.0.1", port) for port in ports)


def test_a_port_that_is_listened_on_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert port_in_use("127.0.0.1", listening.getsockname()[1])


def test_no_port_is_free_on_a_foreign_address() -> None:
    with pytest.raises(Unavailable, match=r"no free port on 203.0.113.1"):
        free_port("203.0.113.1")
