"""What does the gateway know about one worker? Its facts, its state, and who found it alive or dead."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from agentserve.telemetry.messages import Announce, Report

_REMEMBERED_BOOTS = 8
_MAX_HOLD_DOWN_S = 30.0
_TRUSTED_CLOCK_SKEW_S = 0.25


class MemberState(StrEnum):
    """Where a worker stands; only ONLINE ones are candidates for new work."""

    WAITING = "waiting"
    """Announced, but nothing fresh has been heard: the announcement may be a dead worker's."""
    ONLINE = "online"
    DRAINING = "draining"
    LOST = "lost"
    REFUSED = "refused"
    """The scheduler does not know its GPU or model."""


class Witness(StrEnum):
    """Who says that a worker is lost: its own silence or will, its engine's health, or the gateway's calls."""

    TELEMETRY = "telemetry"
    ENGINE = "engine"
    GATEWAY = "gateway"


@dataclass(slots=True)
class Member:
    """One worker, or one static engine (`static`), as the registry keeps it. Times are on the caller's clock."""

    worker_id: str
    static: bool = False
    announce: Announce | None = None
    state: MemberState = MemberState.WAITING
    drain_boot_id: str | None = None
    """The boot that asked for no more work; known, at times, before that boot has announced itself."""
    reason: str | None = None
    """Why it is lost or refused."""
    report: Report | None = None
    last_heard_s: float | None = None
    lost_by: Witness | None = None
    lost_at_s: float = 0.0
    hold_down_s: float = 0.0
    """How long after the gateway saw it dead its own reports are not believed."""
    clock_skew_s: float | None = None
    past_boots: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_BOOTS))

    @property
    def boot_id(self) -> str | None:
        """The worker's present boot, as announced."""
        return self.announce.boot_id if self.announce else None

    @property
    def wants_drain(self) -> bool:
        """Whether its present boot asked for no more work."""
        return self.drain_boot_id is not None and self.drain_boot_id == self.boot_id

    @property
    def is_live(self) -> bool:
        """Whether the scheduler knows it as an instance now."""
        return self.state in (MemberState.ONLINE, MemberState.DRAINING)

    def same_facts(self, announce: Announce) -> bool:
        """Whether `announce` tells nothing new but, perhaps, another boot."""
        return self.announce is not None and self.announce.model_copy(update={"boot_id": announce.boot_id}) == announce

    def take_announce(self, announce: Announce) -> None:
        """Put new facts in place of the old; a new boot begins with nothing reported."""
        if self.boot_id != announce.boot_id:
            if self.boot_id is not None:
                self.past_boots.append(self.boot_id)
            self.report, self.clock_skew_s = None, None
            self.lost_by, self.hold_down_s = None, 0.0
        self.announce = announce

    def take_report(self, report: Report, now_s: float) -> Report:
        """Remember a report; gives it back with its time on the gateway's clock.

        Clocks that differ by more than 0.25 s are told from delay by the smallest difference seen since the boot.
        """
        behind_s = now_s - report.measured_at_s
        self.clock_skew_s = behind_s if self.clock_skew_s is None else min(self.clock_skew_s, behind_s)
        if abs(self.clock_skew_s) > _TRUSTED_CLOCK_SKEW_S:
            report = report.model_copy(update={"measured_at_s": report.measured_at_s + self.clock_skew_s})
        self.report, self.last_heard_s = report, now_s
        return report

    def mark_lost(self, reason: str, witness: Witness, now_s: float, first_hold_down_s: float) -> None:
        """Note who found it lost; each time in a row that the gateway does, its own word counts for less."""
        if witness is Witness.GATEWAY:
            repeated = self.hold_down_s and now_s - self.lost_at_s < 2 * _MAX_HOLD_DOWN_S
            self.hold_down_s = min(2 * self.hold_down_s, _MAX_HOLD_DOWN_S) if repeated else first_hold_down_s
        self.state, self.reason, self.lost_by, self.lost_at_s = MemberState.LOST, reason, witness, now_s

    def believes(self, report: Report, now_s: float) -> bool:
        """Whether a healthy report is enough to take a lost worker back."""
        if self.lost_by is not Witness.GATEWAY:
            return True
        return report.measured_at_s > self.lost_at_s and now_s - self.lost_at_s >= self.hold_down_s
