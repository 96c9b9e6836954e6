"""How does the gateway keep its registry current? It follows the bus, and proves the broker alive by an echo.

A broker that hangs, or an event loop that stood still, looks like every worker falling silent at once. So the gateway
sends itself a small message over the broker on every tick: silence counts only while that echo comes back.
"""

import asyncio
import secrets
from collections.abc import Callable

from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Channel, Control, topic
from agentserve.telemetry.signing import signed, worker_key
from agentserve.workers.registry import Registry

_TICKS_PER_LOST_AFTER = 6
_REPORTED_CHANNELS = (Channel.ANNOUNCE, Channel.STATUS, Channel.REPORT)


class Echo:
    """Tells whether the broker has lately brought us our own message."""

    def __init__(self, bus: Bus, cluster: str, fresh_s: float, clock: Callable[[], float]) -> None:
        self._bus, self._clock, self._fresh_s = bus, clock, fresh_s
        self._topic = f"agentserve/v1/{cluster}/gateways/{secrets.token_hex(6)}/echo"
        self._heard_s: float | None = None
        bus.subscribe(self._topic, self._heard)

    def _heard(self, _topic: str, _payload: bytes) -> None:
        self._heard_s = self._clock()

    def send(self) -> None:
        """Send one more; dropped while there is no connection."""
        self._bus.publish(self._topic, b"1")

    def is_fresh(self, now_s: float) -> bool:
        """Whether the broker works, as far as can be told now."""
        return self._bus.connected and self._heard_s is not None and now_s - self._heard_s <= self._fresh_s


async def follow(bus: Bus, registry: Registry, clock: Callable[[], float]) -> None:
    """Run `bus` and feed `registry` from it until cancelled; call before the bus runs, once per bus."""
    echo = Echo(bus, registry.cluster, registry.lost_after_s / 2, clock)
    for channel in _REPORTED_CHANNELS:
        bus.subscribe(
            topic(registry.cluster, "+", channel),
            lambda where, payload: registry.handle_message(where, payload, clock()),
        )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.run())
        while True:
            echo.send()
            await asyncio.sleep(registry.lost_after_s / _TICKS_PER_LOST_AFTER)
            now_s = clock()
            registry.tick(now_s, broker_connected=echo.is_fresh(now_s))


def ask(bus: Bus, cluster: str, worker_id: str, control: Control, secret: str | None = None) -> bool:
    """Ask a worker to drain or to resume, signed if there is a secret; False without a connection to ask over."""
    where = topic(cluster, worker_id, Channel.CONTROL)
    key = None if secret is None else worker_key(secret, cluster, worker_id)
    return bus.publish(where, signed(control.model_dump_json().encode(), where, key), qos=1)
