"""Who gets into the broker, and what may they say there? A worker speaks on its own topics only."""

import json
from pathlib import Path

from tests.compose.cluster import Cluster, until

OWN = [f"agentserve/v1/default/workers/h100-1/{channel}" for channel in ("announce", "status", "report")]
OTHERS = [
    "agentserve/v1/default/workers/h200-1/announce",
    "agentserve/v1/default/workers/h200-1/status",
    "agentserve/v1/default/workers/h200-1/control",
    "agentserve/v1/default/workers/h100-1/control",
    "agentserve/v1/default/gateways/one/echo",
    "agentserve/v1/other/workers/h100-1/report",
    "anything",
]


def test_a_worker_publishes_under_its_own_topics_only_and_nobody_without_a_login(cluster: Cluster) -> None:
    script = Path(__file__).with_name("as_worker.py").read_text()
    topics = ("-e", "OWN=h100-1", "-e", f"TOPICS={' '.join([*OWN, *OTHERS])}")
    told = json.loads(cluster.compose("exec", "-T", *topics, "worker-h100-1", "python", "-", stdin=script))
    assert told["anonymous"] == {"connect": "Not authorized"}
    assert told["wrong password"] == {"connect": "Not authorized"}
    own = told["own login"]
    assert own.pop("connect") == "Success"
    # "No matching subscribers" says that a message was let through and nobody listens just now.
    assert {topic for topic, said in own.items() if said in ("Success", "No matching subscribers")} == set(OWN)
    assert {topic for topic, said in own.items() if said == "Not authorized"} == set(OTHERS)
    until(cluster.all_online, "what was said there did no harm")


def test_a_worker_sees_no_login_but_its_own(cluster: Cluster) -> None:
    assert cluster.compose("exec", "-T", "worker-h100-1", "ls", "/run/secrets").split() == ["agentserve_mqtt_url"]
    url = cluster.compose("exec", "-T", "worker-h100-1", "cat", "/run/secrets/agentserve_mqtt_url")
    assert url.startswith("mqtt://h100-1:")


def test_logins_stay_when_they_are_made_again(cluster: Cluster) -> None:
    before = cluster.compose("exec", "-T", "gateway", "cat", "/run/secrets/agentserve_mqtt_url")
    said = cluster.compose("run", "--rm", "-T", "logins")
    assert "logins are there for: gateway" in said
    assert cluster.compose("exec", "-T", "gateway", "cat", "/run/secrets/agentserve_mqtt_url") == before
    until(cluster.all_online, "all still online")


def test_redis_and_broker_cannot_be_reached_from_an_engine(cluster: Cluster) -> None:
    look = """
import socket
for name in ("redis", "mosquitto", "gateway"):
    try:
        socket.gethostbyname(name)
        print(name, "seen")
    except OSError:
        print(name, "hidden")
"""
    told = cluster.compose("exec", "-T", "engine-h100-1", "python", "-c", look)
    assert told.split() == ["redis", "hidden", "mosquitto", "hidden", "gateway", "seen"]
