"""What the scheduler asks of its driver: one frozen dataclass per kind of act, each with its cause and its reason.

The reason is data: the trace, the live view and the tests read the same fields.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class LengthForecast:
    """Predicted output tokens of a call: median and an 80 % interval, and what they were learned from."""

    p10_tokens: float
    p50_tokens: float
    p90_tokens: float
    source: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One placement that was weighed, with every term of its predicted finish, and why it won or lost."""

    prefill_instance: str
    decode_instance: str
    predicted_queue_s: float
    predicted_prefill_s: float
    predicted_transfer_s: float
    predicted_decode_s: float
    predicted_finish_s: float
    """Absolute, on the driver's clock."""
    slack_s: float | None
    """Target deadline − predicted finish; None without a deadline."""
    cached_tokens: int
    verdict: str
    """`chosen`, or in words why not, with figures."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision was taken: the best few candidates (the chosen one first) and how many were weighed in all."""

    policy: str
    rule: str
    """The rule that decided, in words: `just enough: weakest of 3 that finish by the target deadline`."""
    candidates: tuple[Candidate, ...] = ()
    candidates_total: int = 0
    length: LengthForecast | None = None
    target_deadline_s: float | None = None
    latest_deadline_s: float | None = None


class MigrationCause(StrEnum):
    """What made a running call move."""

    LATE = "late"
    DRAIN = "drain"
    LOST = "lost"
    BALANCE = "balance"


class MoveBy(StrEnum):
    """How a running call gets to its target."""

    REPLAY = "replay"
    """The target prefills prompt and emitted tokens again."""
    KV = "kv"
    """The source runs one more token behind its own prefix cache and hands the KV over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What a policy that only looks on would have done with a call, foreseen from the same state by the same model.

    Times are predictions, before the first token and for each output token: there, and where the call really went.
    """

    policy: str
    rule: str
    prefill_instance: str | None
    """None: it would have kept the call at the gateway."""
    decode_instance: str | None
    ready_s: float | None
    token_s: float | None
    taken_ready_s: float
    taken_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Send the call to its instances. `attempt` counts from 1; a smaller `priority` runs earlier (vLLM's sign)."""

    cause_id: str
    request_id: str
    attempt: int
    prefill_instance: str
    decode_instance: str
    priority: int
    reason: Explanation
    shadow: Shadow | None = None
    """Of a first attempt in mode `observe`; None otherwise."""

    @property
    def is_split(self) -> bool:
        """Whether prefill and decode run on different instances."""
        return self.prefill_instance != self.decode_instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep the call at the gateway; the scheduler will dispatch or reject it by itself."""

    cause_id: str
    request_id: str
    reason: Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """Stop the running call at `source` and go on at `target` from the tokens emitted so far."""

    cause_id: str
    request_id: str
    attempt: int
    source: str
    target: str
    priority: int
    cause: MigrationCause
    predicted_gain_s: float
    predicted_cost_s: float
    reason: Explanation
    by: MoveBy = MoveBy.REPLAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop the call on its instances (both legs of a split one)."""

    cause_id: str
    request_id: str
    reason: Explanation


class Refusal(StrEnum):
    """Why a call is answered with an error; the gateway maps each to one HTTP status."""

    UNKNOWN_MODEL = "unknown_model"
    TOO_LONG = "too_long"
    NO_INSTANCE = "no_instance"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    NOT_RETRYABLE = "not_retryable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Answer the call with an error; it will not be served."""

    cause_id: str
    request_id: str
    refusal: Refusal
    message: str
    reason: Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt:
    """Send Woke at `at_s` if nothing asked for an earlier one; a later WakeAt replaces this one."""

    cause_id: str
    at_s: float


Decision = Dispatch | Hold | Migrate | Cancel | Reject | WakeAt
