"""What may this login do on the broker? Run inside a worker's container: tries to publish and to hear, prints JSON.

MQTT 5 tells for each message and each subscription whether it was let through.
"""

import json
import os
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

login = urlsplit(Path("/run/secrets/agentserve_mqtt_url").read_text().strip())


def tried(user: str | None, password: str | None, topics: list[str]) -> dict[str, str]:
    """`connect` and each topic with what the broker said to a message there."""
    said: dict[str, str] = {}
    connected, answered, waiting = threading.Event(), threading.Event(), {}

    def on_connect(_client, _data, _flags, reason, _properties):
        said["connect"] = str(reason)
        connected.set()

    def on_publish(_client, _data, message_id, reason, _properties):
        said[waiting[message_id]] = str(reason)
        answered.set()

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.on_connect, client.on_publish = on_connect, on_publish
    if user is not None:
        client.username_pw_set(user, password)
    client.connect(login.hostname, login.port)
    client.loop_start()
    connected.wait(10)
    if said.get("connect") == "Success":
        for topic in topics:
            answered.clear()
            waiting[client.publish(topic, b"{}", qos=1).mid] = topic
            answered.wait(10)
    client.disconnect()
    client.loop_stop()
    return said


own, topics = os.environ["OWN"], os.environ["TOPICS"].split()
assert login.username == own
json.dump(
    {
        "anonymous": tried(None, None, topics),
        "wrong password": tried(own, "wrong", topics),
        "own login": tried(login.username, login.password, topics),
    },
    sys.stdout,
)
