"""What the driver tells the scheduler: one frozen dataclass per kind of fact, each with its own id.

Times are seconds on the driver's clock (live: Unix time; lab: virtual time). Counts are tokens. `None` means
unknown, never zero. A driver that sees the same facts at the same times gets the same decisions.
"""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Which phases an instance may serve."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


class Mode(StrEnum):
    """How much the scheduler may do; each allows what those before it do. Without a word it is `SPLIT`: everything."""

    OBSERVE = "observe"
    """Another policy places the calls; what the scheduler's own would have done is told beside."""
    ROUTE = "route"
    """Its own policy places them; running calls stay where they are."""
    MIGRATE = "migrate"
    """And running calls may move."""
    SPLIT = "split"
    """And prefill and decode of a call may go to two instances although one could serve both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One model replica as its worker announced it.

    `speed` is the factor by which the instance runs faster than its GPU profile (an emulator with compressed time, a
    power-capped card). `kv_link_bytes_per_s` is the one-way bandwidth of its KV link; None: it cannot hand over KV.
    """

    instance_id: str
    model: str
    gpu: str
    role: Role = Role.MIXED
    kv_capacity_tokens: int
    block_tokens: int
    max_num_seqs: int
    max_batched_tokens: int
    kv_bytes_per_token: int
    kv_link_bytes_per_s: float | None = None
    kv_group: str | None = None
    """KV passes between instances of the same group only: same model, layout and transfer dialect."""
    speed: float = 1.0
    supports_priority: bool = False
    supports_replay: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceJoined:
    """An instance became a candidate, or announced itself anew with other facts (idempotent)."""

    event_id: str
    instance: InstanceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReported:
    """A worker's periodic report; every figure is as the engine gave it at `measured_at_s`."""

    event_id: str
    instance_id: str
    measured_at_s: float
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    """Share of KV blocks in use, 0 to 1."""
    prefix_hit_rate: float | None = None
    """Cached share of the prompt tokens seen since the last report, 0 to 1."""
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    preemptions: int | None = None
    """Preemptions since the last report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDraining:
    """An instance takes no new work; what runs there may finish or move."""

    event_id: str
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLost:
    """An instance is gone; the driver reports each of its requests by its own RequestFailed."""

    event_id: str
    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """One LLM call of one step attempt, not yet placed.

    `prefix_hashes[i]` identifies the first `(i + 1) * prefix_block_tokens` prompt tokens (chained, so that equal hashes
    mean equal prefixes). `target_deadline_s` is the step's fair share of the run's slack, `latest_deadline_s` the time
    past which the run is lost; both None for a call without SLO. `downstream_s` is the forecast of what the run still
    has to do after this call. `migration_refused` says why the call may not move, None when it may.
    """

    event_id: str
    request_id: str
    model: str
    prompt_tokens: int
    max_tokens: int | None
    run_id: str
    workflow: str
    node: str
    run_deadline_s: float | None
    target_deadline_s: float | None
    latest_deadline_s: float | None
    downstream_s: float = 0.0
    first_call_of_run: bool = True
    session_id: str | None = None
    prefix_hashes: tuple[int, ...] = ()
    prefix_block_tokens: int = 256
    migration_refused: str | None = None
    tenant: str = ""
    """Whose call it is; with several of them `scheduler/shares.py` decides who goes first."""
    tenant_weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinesMoved:
    """A call in flight got new deadlines, because its run's state changed elsewhere."""

    event_id: str
    request_id: str
    target_deadline_s: float | None
    latest_deadline_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFinished:
    """The prefill leg of a split call ended; its KV is ready to be pulled."""

    event_id: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The first output token of the present attempt reached the gateway."""

    event_id: str
    request_id: str
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`output_tokens` of the call, over all its attempts, have reached the gateway so far."""

    event_id: str
    request_id: str
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFinished:
    """The call ended well; counts are the engine's own where it reports them."""

    event_id: str
    request_id: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed:
    """The present attempt broke on `instance_id`; `output_tokens` reached the gateway and need not be made again."""

    event_id: str
    request_id: str
    instance_id: str
    output_tokens: int
    error: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """The client left or its run was cancelled; nothing more is wanted of this call."""

    event_id: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run is over; of those that succeeded it is learned how long runs go on after each of their calls."""

    event_id: str
    run_id: str
    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRefused:
    """The driver could not carry out a Migrate; the call goes on where it was."""

    event_id: str
    request_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """The time asked for by a WakeAt has come."""

    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChanged:
    """From now on the scheduler may do what `mode` allows; calls in flight stay where they are.

    `observed` names the policy that places calls in `OBSERVE`: one that moves none (`scheduler.modes.plain_policy`).
    """

    event_id: str
    mode: Mode
    observed: str


Event = (
    InstanceJoined
    | InstanceReported
    | InstanceDraining
    | InstanceLost
    | RequestArrived
    | DeadlinesMoved
    | PrefillFinished
    | FirstToken
    | Progress
    | RequestFinished
    | RequestFailed
    | RequestCancelled
    | RunEnded
    | MigrationRefused
    | Woke
    | ModeChanged
)
