"""What has each run had so far? Calls, service and places of the runs and sessions that are or were lately in flight.

Only what a gateway sees is kept: when calls came and ended, how long they ran, where they last were.
"""

from collections import OrderedDict
from dataclasses import dataclass

from scheduler.call import Call


@dataclass(slots=True)
class RunFacts:
    """One run as seen so far."""

    first_seen_s: float
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

    def begin(self, call: Call, now_s: float) -> None:
        """A call arrived."""
        run_id = call.arrived.run_id
        facts = self._runs.get(run_id)
        if facts is None:
            facts = self._runs[run_id] = RunFacts(now_s)
            self._forget()
        facts.live_calls += 1
        self._runs.move_to_end(run_id)

    def dispatched(self, call: Call, decode: str) -> None:
        """A call was sent to an instance."""
        facts = self._runs[call.arrived.run_id]
        facts.last_instance = decode
        facts.served_calls += call.attempt == 1
        session = session_of(call)
        self._sessions[session] = decode
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._limit:
            self._sessions.popitem(last=False)

    def ended(self, call: Call, now_s: float) -> None:
        """A call ended, however it did."""
        facts = self._runs[call.arrived.run_id]
        facts.live_calls -= 1
        facts.ended_calls += 1
        facts.last_ended_s = now_s
        facts.output_tokens += call.emitted
        if call.seat is not None:
            facts.service_s += now_s - call.seat.dispatched_s

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
