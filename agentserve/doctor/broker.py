"""Does the broker let us in, and which workers are heard over it? Announcements, signs of life, clocks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agentserve.doctor.finding import Finding, Part
from agentserve.errors import BadInput
from agentserve.telemetry.bus import Bus
from agentserve.telemetry.messages import Channel, Status, topic
from agentserve.workers.follow import Echo
from agentserve.workers.member import Member, MemberState
from agentserve.workers.registry import Registry

_PART: Final = Part("broker")
_LOOK_EVERY_S: Final = 0.05
_TRUSTED_SKEW_S: Final = 0.25
_LOGIN_WORDS: Final = ("authori", "password", "user name", "credential")


@dataclass(frozen=True, slots=True)
class Heard:
    """What the broker showed: findings, and the workers that announced themselves there."""

    findings: tuple[Finding, ...]
    members: tuple[Member, ...] = ()

    @property
    def alive(self) -> tuple[Member, ...]:
        """Workers that report."""
        return tuple(member for member in self.members if member.is_live)


async def check_broker(
    url: str | None,
    cluster: str,
    timeout_s: float,
    listen_s: float,
    clock: Callable[[], float] = time.time,
    ca_file: Path | None = None,
) -> Heard:
    """Log in, send a message to ourselves, and listen to the workers for `listen_s`. Never raises."""
    if not url:
        return Heard((_PART.ok("reachable", "none in the settings: engines are named to the gateway"),))
    try:
        listener = _Listener(url, cluster, clock, ca_file)
    except BadInput as error:
        return Heard((_PART.problem("reachable", str(error), "set AGENTSERVE_MQTT_URL"),))
    running = asyncio.create_task(listener.bus.run())
    try:
        await listener.within(timeout_s, lambda: listener.bus.connected or _is_refused(listener.bus))
        if not listener.bus.connected:
            return Heard((_unreachable(listener.bus),))
        reachable = _PART.ok("reachable", f"at {listener.bus.address}, logged in")
        if not await listener.within(timeout_s, lambda: listener.echo.is_fresh(clock())):
            fix = f"let the user publish and subscribe to agentserve/v1/{cluster}/#"
            return Heard((reachable, _PART.problem("messages", "our own message did not come back", fix)))
        await asyncio.sleep(listen_s)
    finally:
        running.cancel()
        await asyncio.wait({running})
    messages = _PART.ok("messages", "our own message came back")
    members = tuple(sorted(listener.registry, key=lambda member: member.worker_id))
    return Heard((reachable, messages, *listener.announced(), *_of_workers(members, listener.left)), members)


class _Listener:
    """A bus with a registry behind it that only listens."""

    def __init__(self, url: str, cluster: str, clock: Callable[[], float], ca_file: Path | None) -> None:
        self.bus = Bus(url, ca_file=ca_file)
        self.echo = Echo(self.bus, cluster, 10.0, clock)
        self.left: set[str] = set()
        """Workers whose retained status, or last will, says that they are gone."""
        self.registry = Registry(
            cluster,
            10.0,
            on_joined=lambda *_: None,
            on_reported=lambda *_: None,
            on_draining=lambda *_: None,
            on_lost=lambda *_: None,
        )
        for channel in (Channel.ANNOUNCE, Channel.STATUS, Channel.REPORT):
            self.bus.subscribe(
                topic(cluster, "+", channel), lambda where, payload: self._heard(where, payload, clock())
            )

    async def within(self, timeout_s: float, condition: Callable[[], bool]) -> bool:
        """Whether it comes true in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self.echo.send()
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            return False
        return True

    def announced(self) -> Iterator[Finding]:
        """How many there are, and whether others speak on their topics."""
        if self.registry.malformed:
            found = f"{self.registry.malformed} unreadable messages on the workers' topics"
            yield _PART.warning(
                "announcements", found, "look for workers of another version, or foreign programs there"
            )
        if len(self.registry):
            yield _PART.ok("announcements", f"{len(self.registry)} workers known in cluster {self.registry.cluster}")
        else:
            found = f"no worker has announced itself in cluster {self.registry.cluster}"
            yield _PART.warning("announcements", found, "start workers, or set AGENTSERVE_CLUSTER as they have it")

    def _heard(self, where: str, payload: bytes, now_s: float) -> None:
        self.registry.handle_message(where, payload, now_s)
        if where.endswith(f"/{Channel.STATUS}"):
            try:
                status = Status.model_validate_json(payload)
            except ValidationError:  # the registry has counted it
                return
            (self.left.add if status.state == "offline" else self.left.discard)(status.worker_id)


def _unreachable(bus: Bus) -> Finding:
    said = bus.problem or "it did not answer in time"
    found = f"at {bus.address}: {said}"
    if _is_refused(bus):
        return _PART.problem("login", found, "give user and password in AGENTSERVE_MQTT_URL")
    return _PART.problem("reachable", found, "start it, or set AGENTSERVE_MQTT_URL to where it is")


def _is_refused(bus: Bus) -> bool:
    said = (bus.problem or "").lower()
    return any(word in said for word in _LOGIN_WORDS)


def _of_workers(members: tuple[Member, ...], left: set[str]) -> Iterator[Finding]:
    for member in members:
        if member.announce is None and member.worker_id in left:
            continue  # its announcement was cleared: it is to be forgotten
        part = Part(f"worker {member.worker_id}")
        yield _state(part, member, member.worker_id in left)
        if member.clock_skew_s is not None:
            yield _clock(part, member.clock_skew_s)


def _state(part: Part, member: Member, has_left: bool) -> Finding:
    match member.state:
        case MemberState.ONLINE:
            return part.ok("reports", "online")
        case MemberState.DRAINING:
            return part.warning("reports", "draining: it takes no new calls", "let it end, or start it again")
        case _ if member.announce is None:
            return part.warning("reports", "it has a status but no announcement", "start it again")
        case _ if member.report is not None and not member.report.healthy:
            return part.problem("reports", "it says that its engine is unhealthy", "see the engine's log")
        case _ if has_left:
            fix = "start it again, or clear its retained announcement"
            return part.warning("reports", "it left or its connection broke; its announcement is still kept", fix)
    return part.problem(
        "reports", "announced, but nothing is heard of it", "see whether it runs and reaches the broker"
    )


def _clock(part: Part, behind_s: float) -> Finding:
    """`behind_s`: the smallest difference between the arrival of a report and its own time."""
    if abs(behind_s) <= _TRUSTED_SKEW_S:
        return part.ok("clock", f"within {_TRUSTED_SKEW_S:g} s of here")
    how = f"{abs(behind_s):.2f} s {'behind' if behind_s > 0 else 'ahead of'} here"
    return part.warning("clock", how, "set the clocks by NTP, on its machine and here")
