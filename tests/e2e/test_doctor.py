"""`agentserve doctor` on a whole local cluster: all well, then with parts killed."""

import json
import os
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from typing import Any

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group


async def doctor(cluster: LocalCluster, *flags: str) -> tuple[int | None, str]:
    settings = {
        "AGENTSERVE_REDIS_URL": cluster.redis_url,
        "AGENTSERVE_MQTT_URL": cluster.mqtt_url,
        "AGENTSERVE_GATEWAY": cluster.gateway_url,
        "COLUMNS": "200",
    }
    command = (sys.executable, "-m", "agentserve", "doctor", "--timeout", "10", *flags)
    child = await create_subprocess_exec(*command, env={**os.environ, **settings}, stdout=PIPE, stderr=PIPE)
    out, errors = await child.communicate()
    assert errors == b""
    return child.returncode, out.decode()


def bad(out: str) -> list[tuple[str, str]]:
    told: dict[str, Any] = json.loads(out)
    return [(one["part"], one["check"]) for one in told["findings"] if one["verdict"] == "problem"]


async def test_the_doctor_finds_what_was_killed() -> None:
    fleet = Fleet(model="llama-3.1-8b", speed=10, workers=(Group(gpu="h100", count=2),))
    async with LocalCluster(fleet) as cluster:
        code, out = await doctor(cluster)
        assert code == 0, out
        for words in ("engine h100-1", "worker h100-2", "on: a call with one was served", "1 warning"):
            assert words in out

        await cluster.parts["engine-h100-1"].kill()
        code, out = await doctor(cluster, "--json")
        assert (code, bad(out)) == (1, [("worker h100-1", "reports"), ("engine h100-1", "reachable")])

        await cluster.parts["broker"].kill()
        code, out = await doctor(cluster, "--json")
        assert code == 1
        assert ("broker", "reachable") in bad(out)
