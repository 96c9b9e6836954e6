"""What does the scheduler know of one live call? Its state, its deadlines, and what it charges to instances."""

from dataclasses import dataclass
from enum import StrEnum

from scheduler.decisions import LengthForecast
from scheduler.events import RequestArrived
from scheduler.length import LengthDistribution


class CallState(StrEnum):
    """A live call is in exactly one of these; an ended one is forgotten."""

    HELD = "held"
    DISPATCHED = "dispatched"
    """Sent; the first token of this attempt was not seen yet."""
    RUNNING = "running"
    MOVING = "moving"
    """A Migrate was issued; the first token from its target was not seen yet."""


@dataclass(slots=True, kw_only=True)
class Seat:
    """Where an attempt runs and what it was predicted to take; the amounts are what its instances were charged."""

    prefill: str
    decode: str
    dispatched_s: float
    cached_tokens: float
    predicted_queue_s: float
    predicted_prefill_s: float
    predicted_transfer_s: float
    predicted_decode_s: float
    first_token_s: float | None = None
    queued_tokens: float = 0.0
    work_s: float = 0.0
    kv_tokens: float = 0.0
    remaining: float = 0.0
    is_queued: bool = False
    """Charged to the prefill instance's queue."""
    is_bound: bool = False
    """Charged to the decode instance."""
    window_from_s: float = 0.0
    window_tokens: int = 0
    window_profile_s: float = 0.0
    stake: float = 0.0
    """What its run loses of its chance per second of delay, as last taken."""
    stake_tokens: float = 0.0
    """The same per second by which a token is slowed."""

    @property
    def is_split(self) -> bool:
        """Whether prefill and decode run on different instances."""
        return self.prefill != self.decode


@dataclass(slots=True, kw_only=True)
class Call:
    """One live LLM call."""

    arrived: RequestArrived
    arrived_s: float
    distribution: LengthDistribution
    target_deadline_s: float | None
    latest_deadline_s: float | None
    state: CallState = CallState.HELD
    attempt: int = 0
    failures: int = 0
    emitted: int = 0
    held_since_s: float | None = None
    failed_on: str | None = None
    """The instance of the last failure: avoided while others live."""
    seat: Seat | None = None
    left_seat: Seat | None = None
    """The seat a moving call comes from, should the move be refused."""
    moves: int = 0
    moved_s: float | None = None
    next_check_s: float = 0.0
    gives_way: bool = False
    """While it waits: as its policy last said."""

    @property
    def request_id(self) -> str:
        """The id every event and decision about this call carries."""
        return self.arrived.request_id

    @property
    def context_tokens(self) -> int:
        """Prompt and what was put out so far: what another instance would have to prefill."""
        return self.arrived.prompt_tokens + self.emitted

    @property
    def deadline_s(self) -> float | None:
        """Past which its run misses its SLO; of a call that names no run's deadline, its own latest or target one."""
        for deadline_s in (self.arrived.run_deadline_s, self.latest_deadline_s, self.target_deadline_s):
            if deadline_s is not None:
                return deadline_s
        return None

    def forecast(self) -> LengthForecast:
        """The whole output length, given what was put out so far."""
        return self.distribution.forecast(self.arrived.max_tokens, self.emitted)

    def remaining_tokens(self) -> float:
        """The median of what is still to come, at least one."""
        limit = self.arrived.max_tokens
        length = self.distribution.quantile(0.5, self.emitted) if self.emitted else self.distribution.quantiles[1]
        return max((length if limit is None else min(length, limit)) - self.emitted, 1.0)
