"""What has each run had so far? Calls, service and places of the runs and sessions that are or were lately in flight.

Only what a gateway sees is kept: when calls came and ended, how long they ran, where they last were.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.call import Call

MAX_MARKS = 512
"""Calls of one run from which rests are learned."""


class _Begun(NamedTuple):
    """What preceded a live call in its run, in the longest chain of ended calls, and what it needs alone itself."""

    after_busy_s: float
    after_alone_s: float
    alone_s: float
    after_needed_s: float
    """The same as `after_alone_s`, of what was not cached, with the tools before it."""
    between_s: float
    """What passed before it with no call of its run in flight."""


@dataclass(slots=True)
class RunFacts:
    """One run as seen so far."""

    first_seen_s: float
    workflow: str = ""
    slo_s: float | None = None
    """From its first call to its deadline."""
    live_calls: int = 0
    ended_calls: int = 0
    last_ended_s: float | None = None
    last_instance: str | None = None
    """Where its last call was dispatched to decode."""
    service_s: float = 0.0
    """Seconds that its ended calls spent on instances, from dispatch to end."""
    output_tokens: int = 0
    """Of its ended calls."""
    served_calls: int = 0
    """Calls that were dispatched at least once."""
    busy_s: float = 0.0
    """Seconds in which its ended calls were served: prefill as predicted, decode as it went."""
    waited_s: float = 0.0
    """The rest of their time, at the gateway and in engines' queues."""
    busy_path_s: float = 0.0
    """`busy_s` of the longest chain of ended calls, each of which arrived after the one before it had ended."""
    alone_path_s: float = 0.0
    """What the longest such chain takes alone on the cluster, nothing cached."""
    needed_path_s: float = 0.0
    """What the longest such chain took of prefixes not cached and of tokens, alone, with what passed between calls."""
    home_instance: str | None = None
    """Where the call with its longest prompt was last dispatched to decode."""
    home_tokens: int = 0
    live: dict[str, _Begun] = field(default_factory=dict)
    visits: dict[str, int] = field(default_factory=dict)
    """Calls begun, by node."""
    marks: list["Mark"] = field(default_factory=list)
    """What is to be learned of its ended calls once the run ends."""

    def needed_until_s(self, now_s: float) -> float:
        """What the run would have taken alone until now; no call of it is live."""
        return self.needed_path_s + max(
            now_s - (self.first_seen_s if self.last_ended_s is None else self.last_ended_s), 0.0
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands at a call, in seconds that it takes alone on the cluster, and in output tokens."""

    done_s: float
    """What precedes the tokens to come: earlier calls and tools, the call's prefill, tokens that have come."""
    step_s: float
    """An output token."""
    expected_tokens: float
    """Still to come of the call."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A call that ended: the how many-th of its node, when, and what the run had waited until then."""

    node: str
    visit: int
    ended_s: float
    waited_s: float
    progress: Progress | None = None
    """As of its first token; None of a call that was not served at one go."""
    lengths: NDArray[np.float64] | None = None
    """Equally likely tokens that were expected then."""
    decode_s: float = 0.0
    tokens: int = 0


class Runs:
    """Facts of runs and the last instance of sessions; of those without live calls only the newest `limit` are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, RunFacts] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def of(self, call: Call) -> RunFacts:
        """The facts of a live call's run."""
        return self._runs[call.arrived.run_id]

    def last_instance(self, call: Call) -> str | None:
        """Where the call's session, or its run, last went; None at first."""
        return self._sessions.get(session_of(call))

    def alone_s(self, call: Call) -> float:
        """What the call's run, as far as it is known, takes alone on the cluster: its longest chain of calls."""
        facts = self._runs[call.arrived.run_id]
        return max(facts.alone_path_s, *(begun.after_alone_s + begun.alone_s for begun in facts.live.values()))

    def busy_before_s(self, call: Call) -> float:
        """Service of the longest chain of calls of its run that had ended when the call arrived."""
        return self._runs[call.arrived.run_id].live[call.request_id].after_busy_s

    def needed_before_s(self, call: Call) -> float:
        """What the call's run would have taken alone until the call arrived, with its tools, prefixes cached."""
        return self._runs[call.arrived.run_id].live[call.request_id].after_needed_s

    def begin(self, call: Call, now_s: float, alone_s: float) -> None:
        """A call arrived that is predicted to take `alone_s` alone on the cluster."""
        run_id = call.arrived.run_id
        facts = self._runs.get(run_id)
        if facts is None:
            deadline_s = call.arrived.run_deadline_s
            slo_s = None if deadline_s is None or deadline_s <= now_s else deadline_s - now_s
            facts = self._runs[run_id] = RunFacts(now_s, call.arrived.workflow, slo_s)
            self._forget()
        facts.live_calls += 1
        facts.visits[call.arrived.node] = facts.visits.get(call.arrived.node, 0) + 1
        since_s = 0.0 if facts.last_ended_s is None else now_s - facts.last_ended_s
        between_s = since_s if facts.live_calls == 1 else 0.0
        needed_s = facts.needed_path_s + since_s
        facts.live[call.request_id] = _Begun(facts.busy_path_s, facts.alone_path_s, alone_s, needed_s, between_s)
        self._runs.move_to_end(run_id)

    def dispatched(self, call: Call, decode: str) -> None:
        """A call was sent to an instance."""
        facts = self._runs[call.arrived.run_id]
        facts.last_instance = decode
        facts.served_calls += call.attempt == 1
        if call.arrived.prompt_tokens >= facts.home_tokens:
            facts.home_instance, facts.home_tokens = decode, call.arrived.prompt_tokens
        session = session_of(call)
        self._sessions[session] = decode
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._limit:
            self._sessions.popitem(last=False)

    def ended(self, call: Call, now_s: float, alone_s: float, prefill_s: float, step_s: float) -> tuple[float, float]:
        """A call ended, however it did; what it put out would have taken `alone_s` alone on the cluster.

        `prefill_s` and `step_s`: what of that were a prefill of what was not cached, and a token. Returns what it took,
        waits left out, and what it would have taken alone, each with what passed between it and the call before.
        """
        facts = self._runs[call.arrived.run_id]
        begun = facts.live.pop(call.request_id)
        facts.live_calls -= 1
        facts.ended_calls += 1
        facts.last_ended_s = now_s
        facts.output_tokens += call.emitted
        busy_s, seat = 0.0, call.seat
        if seat is not None:
            facts.service_s += now_s - seat.dispatched_s
            if seat.first_token_s is not None:
                served_s = min(seat.predicted_prefill_s, seat.first_token_s - seat.dispatched_s)
                busy_s = served_s + now_s - seat.first_token_s
        facts.busy_s += busy_s
        facts.waited_s += now_s - call.arrived_s - busy_s
        if len(facts.marks) < MAX_MARKS:
            facts.marks.append(_mark(call, facts, now_s, begun.after_needed_s + prefill_s, step_s))
        facts.busy_path_s = max(facts.busy_path_s, begun.after_busy_s + busy_s)
        facts.alone_path_s = max(facts.alone_path_s, begun.after_alone_s + alone_s)
        needed_s = prefill_s + call.emitted * step_s
        facts.needed_path_s = max(facts.needed_path_s, begun.after_needed_s + needed_s)
        return busy_s + begun.between_s, needed_s + begun.between_s

    def close(self, run_id: str) -> RunFacts | None:
        """A run is over: forget it; None if it was not known."""
        facts = self._runs.get(run_id)
        if facts is None or facts.live_calls:
            return None
        return self._runs.pop(run_id)

    def _forget(self) -> None:
        if len(self._runs) <= self._limit:
            return
        oldest = next(iter(self._runs))
        if self._runs[oldest].live_calls:
            self._runs.move_to_end(oldest)
        else:
            del self._runs[oldest]


def _mark(call: Call, facts: RunFacts, now_s: float, done_s: float, step_s: float) -> Mark:
    node, seat = call.arrived.node, call.seat
    visit = facts.visits[node]
    if seat is None or seat.first_token_s is None or call.attempt > 1 or not call.emitted:
        return Mark(node, visit, now_s, facts.waited_s)
    progress = Progress(done_s, step_s, call.distribution.quantiles[1])
    decode_s = max(now_s - seat.first_token_s, 0.0)
    return Mark(node, visit, now_s, facts.waited_s, progress, call.distribution.spread, decode_s, call.emitted)


def session_of(call: Call) -> str:
    """The session that shares the call's prefix: as the client named it, else its run."""
    return call.arrived.session_id or call.arrived.run_id


def remember(ids: dict[str, None], name: str, limit: int) -> None:
    """Add an id to those that were; past `limit` the oldest is forgotten."""
    ids[name] = None
    if len(ids) > limit:
        del ids[next(iter(ids))]
