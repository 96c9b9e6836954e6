"""How does a process speak over MQTT without ever being held up by the broker? One reconnecting client.

Three rules make it safe to call from serving code: publishing never waits; what is worth having only while fresh
(reports) is dropped when there is no connection; what must be known (retained facts) is kept and sent again after
every reconnect, as are subscriptions. A broker that is gone changes `connected`, nothing else.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiomqtt

from agentserve.errors import BadInput
from agentserve.telemetry.messages import MAX_PAYLOAD_BYTES

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 2.0
_OPERATION_TIMEOUT_S: Final = 3.0
_MAX_QUEUED_OUT: Final = 256
_MAX_QUEUED_IN: Final = 16_384
_CLOSED: Final = "closed"
_JITTER: Final = random.SystemRandom()

Handler = Callable[[str, bytes], None]
"""Takes a topic and its payload; runs on the event loop, so it must be quick and must not raise."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens and as whom to log in; its text form never shows the password."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker says for us, retained at QoS 1, when the connection breaks without a goodbye."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Outgoing:
    topic: str
    payload: bytes
    qos: int


def parse_mqtt_url(url: str) -> BrokerAddress:
    """Read `mqtt://user:password@host:port` or `mqtts://…` (ports 1883 and 8883 when left out).

    Raises BadInput, which never repeats the URL, since that may hold a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadInput("MQTT URL: host or port cannot be read") from None
    if parts.scheme not in ("mqtt", "mqtts"):
        raise BadInput("MQTT URL: must begin with mqtt:// or mqtts://")
    if not parts.hostname:
        raise BadInput("MQTT URL: no host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise BadInput("MQTT URL: nothing may follow host and port")
    tls = parts.scheme == "mqtts"
    return BrokerAddress(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


class Bus:
    """One MQTT 3.1.1 connection that is made again for as long as `run()` is running."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str | None = None,
        will: LastWill | None = None,
        on_change: Callable[[bool], None] | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        keepalive_s: int = 5,
        ca_file: Path | None = None,
    ) -> None:
        """Only parses the URL and reads `ca_file`, whose certificates sign an mqtts:// broker's (BadInput).

        Nothing is opened before `run()`.
        """
        self.address = parse_mqtt_url(url)
        self._tls = _checked_tls(ca_file) if self.address.tls else None
        self._client_id = client_id
        self._will = will
        self._on_change = on_change
        self._max_payload_bytes = max_payload_bytes
        self._keepalive_s = keepalive_s
        self._handlers: dict[str, Handler] = {}
        self._facts: dict[str, bytes] = {}
        self._unsent_facts: dict[str, bytes] = {}
        self._outgoing: deque[_Outgoing] = deque(maxlen=_MAX_QUEUED_OUT)
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._connected = False
        self._problem: str | None = "not connected yet"
        self.dropped = 0
        """Messages not sent because there was no connection, or received over the size limit."""

    @property
    def connected(self) -> bool:
        """Whether the broker accepted us and every subscription is in place."""
        return self._connected

    @property
    def problem(self) -> str | None:
        """Why there is no connection, without credentials; None while connected."""
        return self._problem

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Hand messages that match `topic_filter` to `handler`; call before `run()`.

        Messages are matched again here, because some brokers resend retained messages that nobody asked for.
        """
        self._handlers[topic_filter] = handler

    def publish(self, topic: str, payload: bytes, *, qos: int = 0) -> bool:
        """Send soon, or drop now when there is no connection; returns which. Raises BadInput on too large a payload."""
        self._check_size(topic, payload)
        if not self._connected:
            self.dropped += 1
            return False
        if len(self._outgoing) == _MAX_QUEUED_OUT:  # the deque lets go of the oldest, which is worth least
            self.dropped += 1
        self._outgoing.append(_Outgoing(topic, payload, qos))
        self._wake.set()
        return True

    def retain(self, topic: str, payload: bytes) -> None:
        """Make `payload` the retained message of `topic`, now and again after each reconnect (QoS 1)."""
        self._check_size(topic, payload)
        for facts in (self._facts, self._unsent_facts):
            facts.pop(topic, None)  # to the end: facts leave in the order they were last stated
            facts[topic] = payload
        self._settled.clear()
        self._wake.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has confirmed every retained fact; returns whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Keep connected until cancelled; leaving is a clean goodbye, so the will stays unspoken. Never raises else."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            was_connected = False
            try:
                await self._session()
            except (aiomqtt.MqttError, OSError, ValueError) as error:
                was_connected = self._connected
                self._set_connected(False, str(error) or type(error).__name__)
            finally:
                self._set_connected(False, self._problem or _CLOSED)
            _heed_cancellation()
            backoff_s = _FIRST_BACKOFF_S if was_connected else min(backoff_s * 2, _LAST_BACKOFF_S)
            await asyncio.sleep(backoff_s * _JITTER.uniform(0.5, 1.0))

    async def _session(self) -> None:
        client = self._new_client()
        try:
            await _connect(client)
        except aiomqtt.MqttError:
            if self._tls is not None:
                self._tls.close_last()
            raise
        try:
            for topic_filter in self._handlers:
                await client.subscribe(topic_filter, qos=1)
                _heed_cancellation()
            self._outgoing.clear()
            self._unsent_facts = dict(self._facts)
            if self._facts:
                self._settled.clear()
            self._set_connected(True, None)
            await _until_one_ends(self._receive(client), self._send(client))
        finally:
            await _disconnect(client)

    def _new_client(self) -> aiomqtt.Client:
        address, will = self.address, self._will
        return aiomqtt.Client(
            address.host,
            address.port,
            username=address.username,
            password=address.password,
            identifier=self._client_id,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True) if will else None,
            clean_session=True,
            timeout=_OPERATION_TIMEOUT_S,
            keepalive=self._keepalive_s,
            max_queued_incoming_messages=_MAX_QUEUED_IN,
            tls_context=self._tls,
        )

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload
            if len(payload) > self._max_payload_bytes:
                self.dropped += 1
                continue
            for topic_filter, handler in self._handlers.items():
                if message.topic.matches(topic_filter):
                    handler(str(message.topic), payload)

    async def _send(self, client: aiomqtt.Client) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent_facts or self._outgoing:
                if self._outgoing:  # before facts, so that nothing follows a goodbye
                    message = self._outgoing.popleft()
                    await client.publish(message.topic, message.payload, message.qos)
                else:
                    await self._send_fact(client)
                _heed_cancellation()
            self._settled.set()

    async def _send_fact(self, client: aiomqtt.Client) -> None:
        topic, payload = next(iter(self._unsent_facts.items()))
        await client.publish(topic, payload, qos=1, retain=True)
        if self._unsent_facts.get(topic) is payload:  # it may have been restated while we waited
            del self._unsent_facts[topic]

    def _check_size(self, topic: str, payload: bytes) -> None:
        if len(payload) > self._max_payload_bytes:
            raise BadInput(f"message for {topic} has {len(payload)} bytes, over the limit of {self._max_payload_bytes}")

    def _set_connected(self, connected: bool, problem: str | None) -> None:
        changed, new_problem = connected != self._connected, problem != self._problem
        self._connected, self._problem = connected, problem
        if connected:
            self._wake.set()
            logger.info("broker %s: connected", self.address)
        elif problem != _CLOSED and (changed or new_problem):
            logger.warning("broker %s: no connection (%s), trying on", self.address, problem)
        if changed and self._on_change is not None:
            self._on_change(connected)


class _Tls(ssl.SSLContext):
    """Checks the broker's certificate and name; closes the socket of a failed handshake, which paho forgets."""

    _last: ssl.SSLSocket | None = None

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As the base class, but the socket is remembered."""
        self._last = super().wrap_socket(*args, **kwargs)
        return self._last

    def close_last(self) -> None:
        """Close the socket that was wrapped last; nothing happens if it is closed."""
        if self._last is not None:
            self._last.close()


def _checked_tls(ca_file: Path | None) -> _Tls:
    """As `ssl.create_default_context`: PROTOCOL_TLS_CLIENT demands a certificate and its name."""
    context = _Tls(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(ca_file)
        return context
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"AGENTSERVE_MQTT_CA_FILE={str(ca_file)!r}: no certificates can be read ({error})") from None


async def _until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run them side by side until one ends, and raise its error.

    Not a TaskGroup: before Python 3.13 that loses a cancellation which comes with an error, and leaves the task marked
    as cancelled by an error alone.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _heed_cancellation() -> None:
    """Raise a cancellation that `asyncio.wait_for`, which aiomqtt uses, has swallowed (before Python 3.12)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _connect(client: aiomqtt.Client) -> None:
    """Connect; when cancelled, wait for the connecting thread, which nothing can stop, and close what it opened."""
    connecting = asyncio.ensure_future(client.__aenter__())
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait({connecting})
        if connecting.exception() is None:
            await _disconnect(client)
        raise
    except aiomqtt.MqttError:
        _close_socket(client)
        raise


async def _disconnect(client: aiomqtt.Client) -> None:
    with contextlib.suppress(aiomqtt.MqttError, OSError, ValueError):
        await client.__aexit__(None, None, None)
    _close_socket(client)


def _close_socket(client: aiomqtt.Client) -> None:
    """Let go of a socket that aiomqtt leaves open when the broker answers neither CONNECT nor DISCONNECT in time."""
    left_open = client._client.socket()
    if left_open is None or left_open.fileno() < 0:
        return
    loop = asyncio.get_running_loop()
    loop.remove_reader(left_open.fileno())
    loop.remove_writer(left_open.fileno())
    left_open.close()
