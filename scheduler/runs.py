"""What has each run had so far? Calls, service and places of the runs and sessions that are or were lately in flight.

Only what a gateway sees is kept: when calls came and ended, how long they ran, where they last were.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.call import Call

_FEAR_ALPHA = 0.02
MAX_MARKS = 512
"""Calls of one run from which rests are learned."""


class _Begun(NamedTuple):
    """What preceded a live call in its run, in the longest chain of ended calls, and what it needs alone itself."""

    after_busy_s: float
    after_alone_s: float
    alone_s: float


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
    feared: float | None = None
    """Its chance to miss its SLO, as its policy saw it when its first call was sent."""
    served_calls: int = 0
    """Calls that were dispatched at least once."""
    busy_s: float = 0.0
    """Seconds in which its ended calls were served: prefill as predicted, decode as it went."""
    waited_s: float = 0.0
    """The rest of their time, at the gateway and in engines' queues."""
    busy_path_s: float = 0.0
    """`busy_s` of the longest chain of ended calls, each of which arrived after the one before it had ended."""
    alone_path_s: float = 0.0
    """What the longest such chain takes alone on the cluster."""
    home_instance: str | None = None
    """Where the call with its longest prompt was last dispatched to decode."""
    home_tokens: int = 0
    live: dict[str, _Begun] = field(default_factory=dict)
    visits: dict[str, int] = field(default_factory=dict)
    """Calls begun, by node."""
    marks: list["Mark"] = field(default_factory=list)
    """What is to be learned of its ended calls once the run ends."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A call that ended: the how many-th of its node, when, and what the run had waited until then."""

    node: str
    visit: int
    ended_s: float
    waited_s: float


class Runs:
    """Facts of runs and the last instance of sessions; of those without live calls only the newest `limit` are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: OrderedDict[str, RunFacts] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self.feared = self.missed = 0.5
        """Shares of the runs that ended lately: feared to miss their SLO when they began, and that did (EMA)."""

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
        facts.live[call.request_id] = _Begun(facts.busy_path_s, facts.alone_path_s, alone_s)
        self._runs.move_to_end(run_id)

    def dispatched(self, call: Call, decode: str, chance: float | None = None) -> None:
        """A call was sent to an instance; `chance`: that its run ends in time, as the policy sees it."""
        facts = self._runs[call.arrived.run_id]
        facts.last_instance = decode
        if chance is not None and not facts.served_calls:
            facts.feared = 1.0 - chance
        facts.served_calls += call.attempt == 1
        if call.arrived.prompt_tokens >= facts.home_tokens:
            facts.home_instance, facts.home_tokens = decode, call.arrived.prompt_tokens
        session = session_of(call)
        self._sessions[session] = decode
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._limit:
            self._sessions.popitem(last=False)

    def ended(self, call: Call, now_s: float, alone_s: float) -> None:
        """A call ended, however it did; what it put out would have taken `alone_s` alone on the cluster."""
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
                prefill_s = min(seat.predicted_prefill_s, seat.first_token_s - seat.dispatched_s)
                busy_s = prefill_s + now_s - seat.first_token_s
        facts.busy_s += busy_s
        facts.waited_s += now_s - call.arrived_s - busy_s
        if len(facts.marks) < MAX_MARKS:
            node = call.arrived.node
            facts.marks.append(Mark(node, facts.visits[node], now_s, facts.waited_s))
        facts.busy_path_s = max(facts.busy_path_s, begun.after_busy_s + busy_s)
        facts.alone_path_s = max(facts.alone_path_s, begun.after_alone_s + alone_s)

    def close(self, run_id: str) -> RunFacts | None:
        """A run is over: forget it; None if it was not known."""
        facts = self._runs.get(run_id)
        if facts is None or facts.live_calls:
            return None
        return self._runs.pop(run_id)

    def judge(self, facts: RunFacts, ended_s: float, *, succeeded: bool) -> None:
        """A run ended: was it feared for, and did it miss its SLO?"""
        if facts.feared is None or facts.slo_s is None:
            return
        has_missed = not succeeded or ended_s > facts.first_seen_s + facts.slo_s
        self.feared += _FEAR_ALPHA * (facts.feared - self.feared)
        self.missed += _FEAR_ALPHA * (has_missed - self.missed)

    def _forget(self) -> None:
        if len(self._runs) <= self._limit:
            return
        oldest = next(iter(self._runs))
        if self._runs[oldest].live_calls:
            self._runs.move_to_end(oldest)
        else:
            del self._runs[oldest]


def session_of(call: Call) -> str:
    """The session that shares the call's prefix: as the client named it, else its run."""
    return call.arrived.session_id or call.arrived.run_id
