"""How do all gateways of a cluster know its mode, and what runs did in each? A list of switches, counters for each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson

from agentserve.errors import Unavailable
from agentserve.tracker import codec, scripts
from agentserve.tracker.connection import Argument, Connection
from agentserve.tracker.keys import Keys
from agentserve.tracker.store import MAX_SWITCHES, ModeSwitch

MAX_COUNTERS: Final = 2000
COUNTED_TTL_S: Final = 30 * 86_400
"""Counters of a switch are kept this long after their last change."""


class RedisModes:
    """The switches of one cluster and their counters. Every call raises Unavailable when Redis cannot be reached."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def switch(self, switch: ModeSwitch) -> None:
        """Make a switch the newest; sent twice it is one."""
        stored = orjson.dumps(asdict(switch))
        await self._connection.run(scripts.PUSH, [self._keys.modes], [stored, MAX_SWITCHES])

    async def switches(self, limit: int = MAX_SWITCHES) -> Sequence[ModeSwitch]:
        """The newest first; empty if nobody ever switched."""
        rows = await self._connection.command("LRANGE", self._keys.modes, 0, limit - 1)
        return [_switch(row) for row in rows]

    async def count(self, token: str, increments: Mapping[str, int], once: str) -> None:
        """Add to the counters of a switch; the same `once` adds once, however often it is sent within a minute."""
        flat: list[Argument] = [item for pair in increments.items() for item in pair]
        keys = [self._keys.mode(token), self._keys.once(once)]
        await self._connection.run(scripts.COUNT, keys, [COUNTED_TTL_S, MAX_COUNTERS, *flat])

    async def counts(self, tokens: Sequence[str]) -> Sequence[Mapping[str, int]]:
        """All counters of each of these switches."""
        stored: list[Any] = await self._connection.pipeline([("HGETALL", self._keys.mode(token)) for token in tokens])
        return [codec.counters(one) for one in stored]


def _switch(row: bytes) -> ModeSwitch:
    try:
        switch = ModeSwitch(**orjson.loads(row))
    except (TypeError, ValueError) as error:
        raise Unavailable(f"a stored switch of the mode cannot be read: {type(error).__name__}") from error
    if not (isinstance(switch.mode, str) and isinstance(switch.token, str) and isinstance(switch.at_s, int | float)):
        raise Unavailable("a stored switch of the mode cannot be read")
    return switch
