"""`make compose-test`: does the compose file work for real? Docker, images, cluster, tests, and everything down again.

Ends with 0 only if the cluster came up, every test passed and the machine is as it was; with 2 and a message where that
cannot be tried, for example without rights to use or to start Docker.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.compose import host, images
from tests.compose.cluster import PROJECT, STARTED, Cluster
from tests.compose.commands import CALM, CannotRun, lines, say
from tests.compose.daemon import Docker, check_rights, machines_own, own_daemon
from tests.compose.packages import fetch_compose, fetch_tools

CANNOT_RUN = 2


def main() -> int:
    """Do all of it; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    before = host.look()
    work = Path(tempfile.mkdtemp(prefix="agentserve-compose-"))
    try:
        code = _with_some_docker(work)
    except CannotRun as error:
        sys.stderr.write(f"compose-test cannot run: {error}\n")
        code = CANNOT_RUN
    finally:
        host.remove_cgroups()
        shutil.rmtree(work)
    changed = host.as_before(before)
    for change in changed:
        say(f"LEFT BEHIND: {change}")
    if not changed and code != CANNOT_RUN:
        say("the machine is as it was: no daemon, interface, firewall rule, mount, control group or folder of ours")
    return code or int(bool(changed))


def _with_some_docker(work: Path) -> int:
    docker = machines_own()
    if docker is not None:
        docker = _with_compose(docker, work)
        new = images.pulled(docker, _images(docker))
        if new is not None:
            say("Docker of this machine, images from the registry")
            try:
                images.build(docker)
                return _tested(docker, has_stand_ins=False)
            finally:
                images.drop(docker, [*new, images.OURS])
        say("this machine's Docker gets no images, and stand-ins do not belong there: one of our own")
    check_rights()
    cache = Path(os.environ.get("COMPOSE_TEST_CACHE") or work)  # keeps packages and stand-ins for the next time
    cache.mkdir(exist_ok=True)
    tools = fetch_tools(cache)
    with own_daemon(tools, work, new_network=False) as fetching:
        names = _images(fetching)
        has_stand_ins = images.pulled(fetching, names) is None
        if has_stand_ins:
            images.stand_ins(fetching, tools, cache, names)
        else:
            images.build(fetching)
    with own_daemon(tools, work, new_network=True) as running:
        return _tested(running, has_stand_ins=has_stand_ins)


def _with_compose(docker: Docker, work: Path) -> Docker:
    if docker.works("compose", "version"):
        return docker
    say("Compose from its Debian package")
    return Docker({**docker.env, "DOCKER_CONFIG": str(fetch_compose(work))})


def _images(docker: Docker) -> list[str]:
    """The published images that the services of no profile, and the Dockerfile, begin with."""
    told = docker("compose", "--project-directory", images.ROOT, "config", "--format", "json")
    config = json.loads(told)
    return [images.base_image(), *images.named_in(config, lambda name: not name.startswith("agentserve:"))]


def _tested(docker: Docker, *, has_stand_ins: bool) -> int:
    say(f"{images.OURS}: {images.size_bytes(docker) / 1e6:.0f} MB")
    ports = dict(zip(("GATEWAY", "JAEGER", "PROMETHEUS", "GRAFANA"), _free_ports(4), strict=True))
    env = {f"{name}_PORT": str(port) for name, port in ports.items()} | {"AGENTSERVE_IMAGE": images.OURS}
    urls = {name.lower(): f"http://127.0.0.1:{port}" for name, port in ports.items()}
    cluster = Cluster(**urls, has_stand_ins=has_stand_ins)
    docker = dataclasses.replace(docker, env={**docker.env, **env})
    with _up(docker):
        return _pytest(docker, cluster)


@contextlib.contextmanager
def _up(docker: Docker) -> Iterator[None]:
    """The cluster, brought up as a user would; taken down with all that it made."""
    compose = ("compose", "--project-name", PROJECT, "--project-directory", images.ROOT)
    try:
        say("docker compose up")
        try:
            docker(*compose, "up", "--detach", "--no-build", within_s=900)
        except CannotRun:
            sys.stdout.write(docker(*compose, "logs", "--tail", "40", "--no-color")[-20000:])
            raise
        for container in _containers(docker):
            say(f"  {container['Service']}: {container['State']} {container.get('Health', '')}".rstrip())
        yield
    finally:
        say("docker compose down")
        docker(*compose, "--profile", "agents", "down", "--volumes", "--remove-orphans", within_s=300)
        for kind in ("container", "network", "volume"):
            everything = ("--all",) if kind == "container" else ()
            label = f"label=com.docker.compose.project={PROJECT}"
            left = docker(kind, "ls", *everything, "--quiet", "--filter", label).split()
            if left:
                raise CannotRun(f"`docker compose down` left {kind}s behind: {', '.join(left)}")


def _containers(docker: Docker) -> list[Mapping[str, Any]]:
    told = docker("compose", "--project-name", PROJECT, "ps", "--all", "--format", "json")
    return sorted((json.loads(line) for line in lines(told)), key=lambda container: str(container["Service"]))


def _pytest(docker: Docker, cluster: Cluster) -> int:
    """The tests, from where the published ports can be reached."""
    say("the tests")
    command = [
        *docker.enter,
        *CALM,
        sys.executable,
        "-m",
        "pytest",
        "tests/compose",
        "-p",
        "no:randomly",
        "-s",
        "-v",
        "--timeout=400",
    ]
    env = {
        **os.environ,
        **docker.env,
        STARTED: json.dumps(dataclasses.asdict(cluster)),
        "COLUMNS": "160",
    }
    code = subprocess.run(command, cwd=images.ROOT, env=env, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        for service in ("gateway", "mosquitto", "worker-h100-1", "jaeger"):
            with contextlib.suppress(CannotRun):
                sys.stdout.write(
                    docker("compose", "--project-name", PROJECT, "logs", "--tail", "30", "--no-color", service)
                )
    return code


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


if __name__ == "__main__":
    sys.exit(main())
