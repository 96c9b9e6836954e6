"""Which MQTT broker runs inside `agentserve up` when there is none: mosquitto if installed, else amqtt; on loopback."""

import asyncio
import atexit
import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput, Unavailable
from agentserve.local.process import port_in_use
from agentserve.telemetry.messages import MAX_PAYLOAD_BYTES

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
_SHUTDOWN_TIMEOUT_S: Final = 1.5
_ANONYMOUS: Final = "amqtt.plugins.authentication.AnonymousAuthPlugin"
_ONE_LOGIN: Final = "agentserve.local.broker_login.OneLogin"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """The embedded broker's port on loopback, and the login it asks for (None: none)."""

    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises BadInput naming the field."""
        if not 1 <= self.port <= 65535:
            raise BadInput(f"broker: port {self.port} is not within 1..65535")
        if (self.username is None) != (self.password is None):
            raise BadInput("broker: give both a user name and a password, or neither")


async def run_broker(config: BrokerConfig) -> None:
    """Serve MQTT 3.1.1 with amqtt until SIGTERM or SIGINT.

    Raises Unavailable if amqtt is not installed or the port is in use.
    """
    if importlib.util.find_spec("amqtt") is None:
        raise Unavailable("no MQTT broker: amqtt is not installed; run `pip install agentserve[local]`")
    if port_in_use(HOST, config.port):
        raise Unavailable(f"port {config.port} on {HOST} is in use; the broker needs another one")
    from amqtt.broker import Broker  # type: ignore[import-untyped]  # it ships no types
    from amqtt.errors import BrokerError  # type: ignore[import-untyped]  # it ships no types

    logging.getLogger("amqtt").setLevel(logging.ERROR)  # it warns of every client that leaves without a goodbye
    logging.getLogger("transitions").setLevel(logging.WARNING)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    broker = Broker(_amqtt_config(config))
    try:
        await broker.start()
    except BrokerError as error:
        raise Unavailable(f"the broker cannot listen on {HOST}:{config.port}: {error}") from None
    logger.info("MQTT broker (amqtt) at %s:%d", HOST, config.port)
    await stopped.wait()
    try:
        await asyncio.wait_for(broker.shutdown(), _SHUTDOWN_TIMEOUT_S)
    except TimeoutError:
        logger.warning("the broker's connections did not close in %.1f s; leaving them", _SHUTDOWN_TIMEOUT_S)


def find_broker_command(port: int, *, mosquitto: str | None = None) -> list[str]:
    """The command of a broker on loopback: mosquitto (the given one, or on PATH), else our own on amqtt.

    A mosquitto reads its configuration from a private directory that is removed when this process ends.
    Raises Unavailable saying how to get a broker.
    """
    binary = mosquitto or shutil.which("mosquitto")
    if binary is not None:
        return [binary, "-c", str(_mosquitto_config(port))]
    return amqtt_command(port)


def amqtt_command(port: int) -> list[str]:
    """The command of our own broker process; raises Unavailable if amqtt is not installed."""
    if importlib.util.find_spec("amqtt") is None:
        raise Unavailable(
            "no MQTT broker found: mosquitto is not on PATH; "
            "run `pip install agentserve[local]`, or point AGENTSERVE_MQTT_URL at a running one"
        )
    return [sys.executable, "-m", "agentserve", "broker", "--port", str(port)]


def _amqtt_config(config: BrokerConfig) -> dict[str, object]:
    """No packet logging and no $SYS topics: both cost more than the messages themselves."""
    login: dict[str, object] = {_ANONYMOUS: {"allow_anonymous": True}}
    if config.username is not None:
        login = {_ONE_LOGIN: {"username": config.username, "password": config.password}}
    return {"listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{config.port}"}}, "plugins": login}


def _mosquitto_config(port: int) -> Path:
    directory = tempfile.mkdtemp(prefix="agentserve-mosquitto-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    lines = [
        f"listener {port} {HOST}",
        "allow_anonymous true",
        "persistence false",
        "sys_interval 0",
        f"message_size_limit {MAX_PAYLOAD_BYTES}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if os.geteuid() == 0:  # else it would change to a user who may not read this file
        lines.append("user root")
    path = Path(directory) / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
