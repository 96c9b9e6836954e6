"""What the engine model is asked, what it answers, and what it remembers of a request in between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteKv:
    """KV that a prefill instance holds for this request: how many tokens of it, and the bandwidth of its link."""

    tokens: int
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request as the engine model sees it: sizes and prefix keys, no text.

    `output_tokens` (at least 1) are emitted, one per iteration, then the request is finished. `block_keys` name the
    full blocks of prompt and reply, see `tokens.block_keys`; empty: nothing is shared. `priority`: lower runs earlier,
    used by the priority policy. `keep_kv`: when finished, pin the KV until it is released or its lease ends.
    `remote_kv`: wait for that KV instead of computing the prompt.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    block_keys: Sequence[int] = ()
    priority: int = 0
    keep_kv: bool = False
    remote_kv: RemoteKv | None = None


@dataclass(slots=True)
class IterationResult:
    """One iteration, which takes `duration_s`; 0 when nothing could run, and then only time or a request changes it.

    Each id in `emitted` has one more token at the iteration's end. `transferred` requests have got their remote KV,
    which its owner may release. `started` requests were given to the GPU for the first time.
    """

    duration_s: float = 0.0
    emitted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    transferred: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    cached_tokens: dict[str, int] = field(default_factory=dict)
    """Of the started, the prompt tokens that need no computing."""
    prefill_tokens: int = 0


class Phase(IntEnum):
    """Where a sequence is in its life."""

    WAITING = 0
    TRANSFERRING = 1
    RUNNING = 2
    DONE = 3


@dataclass(slots=True, eq=False)
class RunningSequence:
    """The engine's memory of one request. `computed` tokens are in `blocks`, of `total` = prompt + emitted."""

    request: EngineRequest
    rank: tuple[int, int]
    """Order of service: (priority, arrival number); a larger rank is preempted first."""
    total: int
    phase: Phase = Phase.WAITING
    blocks: list[int] = field(default_factory=list)
    room: int = 0
    """Tokens that `blocks` can hold."""
    computed: int = 0
    remembered: int = 0
    """Leading blocks that are already findable by key."""
    emitted: int = 0
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache (or sent by a prefill instance) at first admission."""
    decoding: bool = False
    admitted: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """KV pinned for another instance until `expires_s`."""

    blocks: list[int]
    tokens: int
    expires_s: float


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start, as vLLM counts them (tokens unless said otherwise)."""

    requests: int = 0
    prompt_tokens: int = 0
    prefill_tokens: int = 0
    """Computed in prefills, preempted ones again."""
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    iterations: int = 0
    transferred_tokens: int = 0
    expired_leases: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineState:
    """Figures of the moment: running and waiting requests (transfers wait), and the share of KV blocks in use."""

    running: int
    waiting: int
    kv_usage: float
