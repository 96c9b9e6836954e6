"""Which broker URLs are understood, and what never shows."""

import pytest

from agentserve.errors import BadInput
from agentserve.telemetry.bus import BrokerAddress, Bus, parse_mqtt_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://127.0.0.1:18830", BrokerAddress("127.0.0.1", 18830)),
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtts://broker/", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884)),
        ("mqtt://me:p%40ss%2F%3A@h:1", BrokerAddress("h", 1, username="me", password="p@ss/:")),
    ],
)
def test_a_url_names_host_port_and_login(url: str, address: BrokerAddress) -> None:
    assert parse_mqtt_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@h:1",
        "me:hunter2@h:1",
        "mqtt://me:hunter2@",
        "mqtt://me:hunter2@h:99999",
        "mqtt://me:hunter2@h:port",
        "mqtt://me:hunter2@[::1",
        "mqtt://me:hunter2@h:1/topic",
        "mqtt://me:hunter2@h:1?tls=no",
        "",
    ],
)
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadInput, match=r"^MQTT URL: ") as caught:
        parse_mqtt_url(url)
    assert "hunter2" not in str(caught.value)


def test_an_address_never_shows_its_password() -> None:
    address = parse_mqtt_url("mqtts://me:hunter2@h:1")
    assert "hunter2" not in f"{address} {address!r}"
    assert str(address) == "mqtts://h:1"


def test_without_a_connection_messages_are_dropped_at_once_and_facts_kept() -> None:
    bus = Bus("mqtt://127.0.0.1:1")
    assert not bus.publish("t", b"report")
    bus.retain("t", b"fact")
    assert (bus.connected, bus.dropped, bus.problem) == (False, 1, "not connected yet")


def test_an_oversized_message_is_refused_before_it_is_sent() -> None:
    bus = Bus("mqtt://127.0.0.1:1", max_payload_bytes=10)
    for send in (bus.publish, bus.retain):
        with pytest.raises(BadInput, match="message for t has 11 bytes, over the limit of 10"):
            send("t", b"x" * 11)
