"""What do the tests see of the cluster? Compose commands, and its published ports as the harness handed them on."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from tests.compose.images import OURS

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "agentserve-compose-test"
STARTED: Final = "COMPOSE_TEST_STARTED"
WORKERS: Final = ("a100-80g-1", "a100-80g-2", "h100-1", "h200-1")


@dataclass(frozen=True)
class Cluster:
    """The cluster under test. Its environment (daemon, ports, image) is this process's own."""

    gateway: str
    jaeger: str
    prometheus: str
    grafana: str
    has_stand_ins: bool

    def compose(self, *arguments: str, stdin: str | None = None, profile: str | None = None) -> str:
        """What a compose command printed; it fails the test if the command fails."""
        flags = ("--profile", profile) if profile else ()
        done = docker("compose", "--project-name", PROJECT, *flags, *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
        return done.stdout

    def containers(self) -> list[dict[str, Any]]:
        """Every container of the project, as `docker inspect` tells it; also those that have ended."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = docker("inspect", *ids)
        assert found.returncode == 0, found.stderr
        return list(json.loads(found.stdout))

    def service(self, name: str) -> dict[str, Any]:
        """The container of one service."""
        return next(one for one in self.containers() if service_of(one) == name)

    def instances(self) -> dict[str, str]:
        """State by instance, as the gateway tells."""
        told = get(f"{self.gateway}/v1/cluster")
        return {instance["instance_id"]: instance["state"] for instance in told["instances"]}

    def all_online(self) -> bool:
        """Whether all four workers take calls."""
        return self.instances() == dict.fromkeys(WORKERS, "online")

    def query(self, promql: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an instant query."""
        return list(get(f"{self.prometheus}/api/v1/query?query={quote(promql)}")["data"]["result"])

    def value(self, promql: str) -> float:
        """The sum of a query's results; 0 without any."""
        return sum(float(result["value"][1]) for result in self.query(promql))


def docker(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the client; it finds daemon and plugin by the environment."""
    return subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env={**os.environ, "AGENTSERVE_IMAGE": OURS},  # tests begin without any AGENTSERVE_ variable
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def service_of(container: dict[str, Any]) -> str:
    """The service that a container belongs to."""
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def get(url: str, timeout_s: float = 10.0) -> Any:
    """The JSON at a URL."""
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return json.load(answer)


def until(condition: Callable[[], Any], what: str, within_s: float = 90.0) -> Any:
    """What the condition gives once it is true; a part that does not answer yet is not true yet."""
    end_s, last = time.monotonic() + within_s, "it stayed false"
    while time.monotonic() < end_s:
        try:
            if result := condition():
                return result
        except (URLError, HTTPError, ConnectionError, TimeoutError) as error:
            last = str(error)
        time.sleep(0.25)
    raise AssertionError(f"{what}: not within {within_s:g} s ({last})")


def agentserve(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command line outside of the containers."""
    return subprocess.Popen(
        [sys.executable, "-m", "agentserve", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], within_s: float = 180.0) -> str:
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=within_s)
    assert process.returncode == 0, err[-3000:]
    return out


def run_agent(cluster: Cluster, agent: str, slo: str = "60s") -> subprocess.Popen[str]:
    """Begin one run of a catalog agent, from outside of the containers."""
    return agentserve("run", f"workflows.catalog.{agent}:graph", "--slo", slo, "--json", "--gateway", cluster.gateway)


def results(processes: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What each run gave, once all have ended well."""
    return [json.loads(ended(process)) for process in processes]
