"""Which workers are there now? Decoded MQTT messages, and what the gateway sees itself, in; callbacks out.

A worker joins when it has announced itself *and* reported: retained announcements outlive their worker. It is lost by
its last will, by silence while the broker is known to work, by reporting its engine unhealthy, or because the gateway
could not reach the engine. Without a broker silence means nothing, and only the gateway's own observations count.
Every method may be called with anything, any number of times; none raises on what came from outside.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from pydantic import ValidationError

from agentserve.errors import AgentServeError
from agentserve.telemetry.messages import MAX_PAYLOAD_BYTES, Announce, Channel, Message, Report, Status
from agentserve.telemetry.signing import is_signed, opened, worker_key
from agentserve.workers.member import Member, MemberState, Witness
from scheduler.errors import SchedulerError
from scheduler.events import InstanceSpec

logger = logging.getLogger(__name__)

MAX_WORKERS: Final = 4096
_LOG_EVERY_MALFORMED: Final = 1000
_M = TypeVar("_M", bound=Message)


class Registry:
    """Tells its callbacks when instances join, report, drain and are lost; time comes in as an argument.

    `on_joined(spec, announce)`: a candidate, new or with other facts, or back again; raises SchedulerError or
    AgentServeError to refuse it. `on_reported(report)`: once per fresh report of a live one. `on_draining(id)`: no new
    work. `on_lost(id, reason)`: exactly once per live one that goes.
    """

    def __init__(
        self,
        cluster: str,
        lost_after_s: float,
        on_joined: Callable[[InstanceSpec, Announce], None],
        on_reported: Callable[[Report], None],
        on_draining: Callable[[str], None],
        on_lost: Callable[[str, str], None],
        *,
        max_workers: int = MAX_WORKERS,
        secret: str | None = None,
    ) -> None:
        """`secret`: messages that their worker has not signed with its key, made of it, are counted and ignored."""
        self._secret = secret
        self.unsigned = 0
        """Messages on worker topics that their worker has not signed."""
        self.cluster = cluster
        self.lost_after_s = lost_after_s
        self.malformed = 0
        """Messages on worker topics that could not be read."""
        self._on_joined, self._on_reported = on_joined, on_reported
        self._on_draining, self._on_lost = on_draining, on_lost
        self._max_workers = max_workers
        self._members: dict[str, Member] = {}
        self._heard_all_since_s: float | None = None
        self._overflowed = False
        self._prefix = f"agentserve/v1/{cluster}/workers/"

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, worker_id: str) -> Member | None:
        """The worker or static engine of that id, whatever its state."""
        return self._members.get(worker_id)

    def to_probe(self) -> tuple[Member, ...]:
        """Those whose life only the gateway can judge now: their engines want a health check (`observed_*`)."""
        silent = self._heard_all_since_s is None
        return tuple(
            m
            for m in self._members.values()
            if m.announce is not None
            and m.state is not MemberState.REFUSED
            and (m.static or silent or m.lost_by is Witness.GATEWAY)
        )

    def handle_message(self, topic: str, payload: bytes, now_s: float) -> None:
        """Take one MQTT message; foreign topics are ignored, malformed payloads counted and ignored."""
        worker_id, _, channel = topic.removeprefix(self._prefix).partition("/")
        if not topic.startswith(self._prefix):
            return
        payload, signature = opened(payload)
        if self._secret is not None and not self._is_its_own(worker_id, payload, signature, topic):
            return
        if channel == Channel.ANNOUNCE:
            if announce := self._decode(Announce, worker_id, payload):
                self._announced(announce, now_s)
        elif channel == Channel.STATUS:
            if status := self._decode(Status, worker_id, payload):
                self._status_changed(status, now_s)
        elif channel == Channel.REPORT and (report := self._decode(Report, worker_id, payload)):
            self._reported(report, now_s)

    def tick(self, now_s: float, broker_connected: bool) -> None:
        """Find the silent; call it a few times per `lost_after_s`."""
        if not broker_connected:
            self._heard_all_since_s = None
            return
        if self._heard_all_since_s is None:
            self._heard_all_since_s = now_s
        for member in tuple(self._members.values()):
            if member.static or not member.is_live:
                continue
            heard_s = max(member.last_heard_s or 0.0, self._heard_all_since_s)
            if now_s - heard_s > self.lost_after_s:
                self._lose(member, f"no report for {now_s - heard_s:.1f} s", Witness.TELEMETRY, now_s)

    def add_static(self, announce: Announce, now_s: float) -> None:
        """Take an engine that has no worker; whoever calls this has just spoken with it."""
        member = self._member(announce.worker_id)
        if member is not None:
            member.static = True
            member.take_announce(announce)
            member.last_heard_s = now_s
            self._join(member)

    def observed_lost(self, worker_id: str, reason: str, now_s: float) -> None:
        """The gateway could not reach this engine: out at once, broker or no broker."""
        member = self._members.get(worker_id)
        if member is not None and member.is_live:
            self._lose(member, reason, Witness.GATEWAY, now_s)

    def observed_alive(self, worker_id: str) -> None:
        """The gateway's health check passed: back in, unless a working broker says that the worker is gone."""
        member = self._members.get(worker_id)
        if member is None or member.announce is None or member.state not in (MemberState.LOST, MemberState.WAITING):
            return
        if member.static or member.lost_by is Witness.GATEWAY or self._heard_all_since_s is None:
            self._join(member)

    def _announced(self, announce: Announce, now_s: float) -> None:
        member = self._member(announce.worker_id)
        if member is None or member.static or announce.boot_id in member.past_boots:
            return
        unchanged = member.same_facts(announce)
        member.take_announce(announce)
        if unchanged:
            return
        if member.is_live:
            self._join(member)
        elif member.state is MemberState.REFUSED:
            member.state, member.reason = MemberState.WAITING, None

    def _status_changed(self, status: Status, now_s: float) -> None:
        if status.state == "offline":
            gone = self._members.get(status.worker_id)
            if gone is not None and gone.is_live and not gone.static and gone.boot_id == status.boot_id:
                self._lose(gone, "its worker left or its connection broke", Witness.TELEMETRY, now_s)
            return
        member = self._member(status.worker_id)
        if member is None or member.static or status.boot_id in member.past_boots:
            return
        before = member.wants_drain
        if status.state == "draining":
            member.drain_boot_id = status.boot_id
        elif member.drain_boot_id == status.boot_id:
            member.drain_boot_id = None
        if member.is_live and before != member.wants_drain:
            self._join(member)

    def _reported(self, report: Report, now_s: float) -> None:
        member = self._members.get(report.worker_id)
        if member is None or member.static or member.boot_id != report.boot_id:
            return
        if member.report is not None and report.seq <= member.report.seq:
            return
        report = member.take_report(report, now_s)
        if not report.healthy:
            if member.is_live:
                self._lose(member, "its engine is unhealthy", Witness.ENGINE, now_s)
            return
        waiting = member.state is MemberState.WAITING
        if waiting or (member.state is MemberState.LOST and member.believes(report, now_s)):
            self._join(member)
        if member.is_live:
            self._on_reported(report)

    def _join(self, member: Member) -> None:
        announce = member.announce
        if announce is None:
            return
        try:
            self._on_joined(announce.to_spec(), announce)
        except (SchedulerError, AgentServeError) as error:
            was_live = member.is_live
            member.state, member.reason = MemberState.REFUSED, str(error)
            logger.error("worker %s is refused: %s", member.worker_id, error)
            if was_live:
                self._on_lost(member.worker_id, f"refused: {error}")
            return
        if not member.is_live:
            logger.info("worker %s joined: %s on %s", member.worker_id, announce.model, announce.gpu)
        member.state, member.reason, member.lost_by = MemberState.ONLINE, None, None
        if member.wants_drain:
            member.state = MemberState.DRAINING
            self._on_draining(member.worker_id)

    def _lose(self, member: Member, reason: str, witness: Witness, now_s: float) -> None:
        member.mark_lost(reason, witness, now_s, self.lost_after_s)
        logger.warning("worker %s is lost: %s", member.worker_id, reason)
        self._on_lost(member.worker_id, reason)

    def _member(self, worker_id: str) -> Member | None:
        """The member of that id, made if there is room; a full registry forgets its longest lost one first."""
        member = self._members.get(worker_id)
        if member is not None:
            return member
        if len(self._members) >= self._max_workers:
            idle = [m for m in self._members.values() if m.state in (MemberState.LOST, MemberState.WAITING)]
            if not idle:
                if not self._overflowed:
                    logger.error("there are %d workers already; %s is left out", self._max_workers, worker_id)
                self._overflowed = True
                return None
            del self._members[min(idle, key=lambda m: (m.lost_at_s, m.worker_id)).worker_id]
        return self._members.setdefault(worker_id, Member(worker_id))

    def _is_its_own(self, worker_id: str, payload: bytes, signature: bytes, topic: str) -> bool:
        key = worker_key(self._secret or "", self.cluster, worker_id)
        if is_signed(payload, signature, topic, key):
            return True
        if self.unsigned % _LOG_EVERY_MALFORMED == 0:
            logger.warning("a message of worker %.64r is not signed by it; it is ignored", worker_id)
        self.unsigned += 1
        return False

    def _decode(self, kind: type[_M], worker_id: str, payload: bytes) -> _M | None:
        try:
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise ValueError(f"{len(payload)} bytes")
            message = kind.model_validate_json(payload)
            if getattr(message, "worker_id", worker_id) != worker_id:
                raise ValueError("it names another worker than its topic")
        except (ValidationError, ValueError) as error:
            if self.malformed % _LOG_EVERY_MALFORMED == 0:
                why = str(error) if not isinstance(error, ValidationError) else f"{error.error_count()} bad fields"
                logger.warning("unreadable %s from worker %.64r: %s", kind.__name__.lower(), worker_id, why)
            self.malformed += 1
            return None
        return message
