"""What is the state of one call in flight? Its stream, its present attempt, and what its client has yet to read."""

import asyncio
from dataclasses import dataclass

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.errors import AgentServeError
from agentserve.orchestrator.prompts import PromptEstimate
from agentserve.orchestrator.request import CallRequest
from agentserve.orchestrator.stream import JoinedStream, Piece
from agentserve.records import CallRecord

_PROGRESS_TOKENS = 16
_PROGRESS_S = 0.1


class CallFailed(AgentServeError):
    """The call ended without its answer; `status` and `code` say what the client is told, `record` what is kept."""

    def __init__(self, message: str, status: int, code: str, *, record: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self._record = message if record is None else record

    @property
    def record(self) -> str:
        """The message without what an engine said."""
        return self._record


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Where the call is served now: as the scheduler dispatched or migrated it."""

    number: int
    prefill: str
    decode: str
    priority: int
    cause: str | None = None
    """Why the call moved here; None for a first attempt."""
    by: str | None = None
    """How a running call moves: replay or kv."""

    @property
    def is_split(self) -> bool:
        """Whether one instance prefills and another decodes."""
        return self.prefill != self.decode


class LiveCall:
    """One call from its arrival to its end. Written by the orchestrator, read by the gateway through `take`."""

    def __init__(self, request: CallRequest, stream: JoinedStream, estimate: PromptEstimate, arrived_s: float) -> None:
        self.request = request
        self.stream = stream
        self.estimate = estimate
        self.arrived_s = arrived_s
        self.first_token_s: float | None = None
        self.first_instance: str | None = None
        """The instance of the first attempt: None until it was dispatched."""
        self.served_by: str | None = None
        """The instance whose tokens came last."""
        self.runs_on: tuple[str, ...] = ()
        """The instances that the present leg needs; a failure is laid to the last."""
        self.migrations = 0
        self.split = False
        self.leg: asyncio.Task[AgentServeError | None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.broken: AgentServeError | None = None
        """Why the present leg was stopped from outside: its instance was lost."""
        self.is_failing = False
        self.last_failure: AgentServeError | None = None
        self.outcome: str | None = None
        """ok, failed or cancelled, once it ended."""
        self.error: AgentServeError | None = None
        self.record: CallRecord | None = None
        self._pieces: list[Piece] = []
        self._reader: asyncio.Future[None] | None = None
        self._next: Attempt | None = None
        self._assigned = asyncio.Event()
        self._awaits_first_token = True
        self._told_tokens = 0
        self._told_at_s = 0.0

    @property
    def request_id(self) -> str:
        """The call's name."""
        return self.request.request_id

    async def take(self) -> list[Piece]:
        """What came since the last call, at least one piece; empty at the end. Raises what the call failed with."""
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self.outcome is not None:
                return []
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        pieces, self._pieces = self._pieces, []
        return pieces

    async def whole(self) -> list[Piece]:
        """All pieces, once the call has ended well. Raises what it failed with."""
        while self.outcome is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self.error is not None:
            raise self.error
        pieces, self._pieces = self._pieces, []
        return pieces

    def push(self, piece: Piece) -> None:
        """Hand a piece to the client's side."""
        self._pieces.append(piece)
        if self.request.wants_stream:
            self._wake()

    def end(self, outcome: str, error: AgentServeError | None = None) -> None:
        """Mark the end; `take` raises `error` after the pieces that came before it."""
        self.outcome = outcome
        self.error = error
        self._wake()

    def assign(self, attempt: Attempt) -> None:
        """Give the call its next attempt; the call's task takes it up when the present leg has ended."""
        self._next = attempt
        if self.first_instance is None:
            self.first_instance = attempt.decode
        self.split = self.split or (attempt.is_split and attempt.by is None)
        self._assigned.set()

    async def next_attempt(self) -> Attempt:
        """Wait until the scheduler has placed the call."""
        while self._next is None:
            self._assigned.clear()
            await self._assigned.wait()
        attempt, self._next = self._next, None
        self._awaits_first_token = True
        self.broken = None
        self.is_failing = False
        self.runs_on = (attempt.prefill,)
        return attempt

    @property
    def has_next(self) -> bool:
        """Whether another attempt is assigned and not yet begun."""
        return self._next is not None

    def engine_call(self, attempt: Attempt, engine_request_id: str, headers: dict[str, str]) -> EngineCall:
        """The present state as an engine is to serve it."""
        stream, replay = self.stream, self.stream.replay_ids
        body = self.request.body
        if stream.owns_stops:
            body = {name: value for name, value in body.items() if name != "stop"}
        return EngineCall(
            path=self.request.path,
            body=body,
            request_id=engine_request_id,
            priority=attempt.priority,
            replay_ids=replay,
            max_tokens=stream.max_tokens_left if replay is not None else None,
            min_tokens=stream.min_tokens_left if replay is not None else None,
            headers=headers,
        )

    def is_first_token(self, delta: Delta) -> bool:
        """Whether this delta brings the first output of the present attempt; true once per attempt."""
        if not self._awaits_first_token or not (delta.token_ids or delta.text or delta.finish_reason):
            return False
        self._awaits_first_token = False
        return True

    def progress_due(self, now_s: float) -> bool:
        """Whether the scheduler should hear of new tokens: every 16 tokens or 100 ms."""
        tokens = self.stream.output_tokens
        if tokens - self._told_tokens < _PROGRESS_TOKENS and now_s - self._told_at_s < _PROGRESS_S:
            return False
        if tokens == self._told_tokens:
            return False
        self._told_tokens, self._told_at_s = tokens, now_s
        return True

    def restart(self) -> None:
        """Begin anew: nothing was shown to the client, so pieces kept for a whole answer are dropped too."""
        self._pieces.clear()
        self.stream.restart()

    @property
    def may_restart(self) -> bool:
        """Whether the client has seen nothing yet."""
        return not self.stream.has_released or not self.request.wants_stream

    @property
    def cannot_move(self) -> str | None:
        """Why the call cannot leave its engine just now; None if it can."""
        if self.stream.finish_reason is not None:
            return "it is ending"
        if self.is_failing or self.broken is not None:
            return "its engine just failed"
        if self.stream.refusal is not None and self.stream.output_tokens:
            return self.stream.refusal
        return None if self.stream.can_go_on else "its engine gives no token ids"

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
