"""Does the gateway answer, can it serve, and does it see the workers that are there?"""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import httpx

from agentserve.doctor.finding import Finding, Part, reason, shown_url
from agentserve.sdk.credentials import api_key
from agentserve.workers.asking import MAX_METRICS_BYTES, as_object, fetch, open_client

_PART: Final = Part("gateway")
LOST: Final = "lost"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gateway said: findings, and the instances that it knows."""

    findings: tuple[Finding, ...]
    cluster: Mapping[str, Any] | None = None

    @property
    def instances(self) -> Sequence[Mapping[str, Any]]:
        """As `/v1/cluster` lists them."""
        return () if self.cluster is None else self.cluster["instances"]


async def check_gateway(url: str, cluster: str, timeout_s: float) -> Seen:
    """Ask for its health, readiness, cluster and metrics. Never raises."""
    try:
        async with asyncio.timeout(4 * timeout_s), open_client(url, api_key=api_key(), timeout_s=timeout_s) as client:
            status, body = await fetch(client, "/v1/cluster", MAX_METRICS_BYTES)
            state = as_object(body) if status == httpx.codes.OK else None
            if status == httpx.codes.UNAUTHORIZED:
                found, fix = f"at {shown_url(url)}: it wants an API key", "set AGENTSERVE_API_KEY to an admin's key"
                return Seen((_PART.problem("reachable", found, fix),))
            if not _is_cluster(state):
                found = f"at {shown_url(url)}: HTTP {status}, and no cluster in it"
                return Seen((_PART.problem("reachable", found, "name an agentserve gateway with --gateway"),))
            ready, why_not = await fetch(client, "/readyz")
            metrics, page = await fetch(client, "/metrics", MAX_METRICS_BYTES)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        found = f"at {shown_url(url)}: {reason(error)}"
        return Seen((_PART.problem("reachable", found, "start it, or name it with --gateway or AGENTSERVE_GATEWAY"),))
    findings = [
        _PART.ok("reachable", f"at {shown_url(url)}, policy {state['policy']}"),
        _ready(ready, as_object(why_not)),
        *_metrics(metrics, page),
        *_states(state, cluster),
    ]
    return Seen(tuple(findings), state)


def compare(seen: Seen, alive: Sequence[str]) -> Iterator[Finding]:
    """Workers that report to the broker, and are no instance of the gateway."""
    if seen.cluster is None:
        return
    known = {one["instance_id"] for one in seen.instances if one["state"] != LOST}
    for name in alive:
        if name not in known:
            fix = "see the gateway's log: it refuses unknown GPUs and models, or has another broker or cluster"
            yield _PART.problem("workers", f"worker {name} reports, but is no instance here", fix)


def _is_cluster(state: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    if state is None or not isinstance(state.get("instances"), list) or not isinstance(state.get("scheduler"), dict):
        return False
    return all({"instance_id", "state", "url", "gpu", "model"} <= one.keys() for one in state["instances"])


def _ready(status: int, said: Mapping[str, Any] | None) -> Finding:
    if status == httpx.codes.OK:
        return _PART.ok("ready", "it can serve")
    error = (said or {}).get("error")
    reason = error.get("message") if isinstance(error, dict) else None
    return _PART.problem("ready", str(reason or f"HTTP {status}"), "mend what it names; the other findings say more")


def _metrics(status: int, page: bytes) -> Iterator[Finding]:
    if status != httpx.codes.OK or b"agentserve_" not in page:
        found = f"/metrics: HTTP {status}, nothing of agentserve in it"
        yield _PART.warning("metrics", found, "see the gateway's log")
        return
    yield _PART.ok("metrics", f"{len(page.splitlines())} lines at /metrics")
    if re.search(rb"^agentserve_broker_connected 0", page, re.MULTILINE):
        yield _PART.problem("broker", "it has no connection to its broker", "set its AGENTSERVE_MQTT_URL; see its log")


def _states(state: Mapping[str, Any], cluster: str) -> Iterator[Finding]:
    if (its := state.get("cluster")) != cluster:
        fix = "set AGENTSERVE_CLUSTER alike for gateway, workers and doctor"
        yield _PART.warning("cluster", f"it serves cluster {its}, here {cluster} is meant", fix)
    for one in state["instances"]:
        if one["state"] == LOST and not one.get("drained"):
            fix = "see the logs of its engine and its worker"
            yield _PART.warning("instances", f"{one['instance_id']} is lost: {one.get('reason')}", fix)
    for one in state["scheduler"].get("instances", ()):
        for phase in one.get("drifted", ()):
            found = f"{one['instance_id']}: {phase} takes {one[f'{phase}_correction']:.2f} × its GPU profile's time"
            yield _PART.warning("GPU profile", found, "`agentserve profile` measures it anew")
