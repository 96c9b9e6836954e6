"""Whether the bus stops when told to, though the client beneath it may swallow the order."""

import asyncio
from typing import Any

import aiomqtt
import pytest

from agentserve.telemetry.bus import Bus


class SwallowingClient:
    """Takes a cancellation of the named call for its success, as `asyncio.wait_for` may before Python 3.12."""

    def __init__(self, swallows: str) -> None:
        self.swallows = swallows
        self.reached = asyncio.Event()
        self.left = False
        self._client = self

    def socket(self) -> None:
        return None

    async def __aenter__(self) -> "SwallowingClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def subscribe(self, *_: Any, **__: Any) -> None:
        await self._call("subscribe")

    async def publish(self, *_: Any, **__: Any) -> None:
        await self._call("publish")

    @property
    async def messages(self) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.swallows == "messages":
                raise aiomqtt.MqttError("disconnected") from None
            raise
        yield

    async def _call(self, name: str) -> None:
        if name != self.swallows and self.swallows != "messages":
            return
        if name == "publish" or self.swallows == name:
            self.reached.set()
        if self.swallows == name:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return


class FakedBus(Bus):
    """A bus over the client given to it."""

    client: Any

    def _new_client(self) -> aiomqtt.Client:
        client: aiomqtt.Client = self.client
        return client


@pytest.mark.parametrize("call", ["subscribe", "publish", "messages"])
async def test_a_swallowed_cancellation_still_stops_the_bus(call: str) -> None:
    bus = FakedBus("mqtt://127.0.0.1:1")
    bus.client = SwallowingClient(call)
    bus.subscribe("t", lambda topic, payload: None)
    bus.retain("t", b"fact")
    running = asyncio.create_task(bus.run())
    await bus.client.reached.wait()
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=10)
    assert running in done
    assert running.cancelled()
    assert bus.client.left
    assert not bus.connected
