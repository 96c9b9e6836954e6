"""What happened so far in the runs that go on? Small stories, so that at a run's end its lateness can be explained.

Of a decision only the chosen candidate is kept. Runs are bounded in number, in age since their last event, and in what
is kept of each; what was dropped is blamed on less.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.blame import blame
from agentserve.telemetry.foreseen import foreseen
from agentserve.telemetry.story import RunTeller, decision_of
from scheduler.events import Mode

_MAX_PARTS: Final = 2000
_MAX_CALL_EVENTS: Final = 100

_logger = logging.getLogger(__name__)


class OpenRuns:
    """Takes journal events of runs until they end. Never raises; a run of which nothing is known has no blame."""

    def __init__(self, *, max_runs: int = 4096, max_age_s: float = 3600.0) -> None:
        self._max_runs, self._max_age_s = max_runs, max_age_s
        self._tellers: OrderedDict[str, RunTeller] = OrderedDict()
        self._last_s: dict[str, float] = {}
        self._failures_logged = 0

    def __len__(self) -> int:
        return len(self._tellers)

    def record(self, event: RunEvent) -> None:
        """Take one event; the end of a run lets go of it."""
        if event.kind is Kind.RUN_FINISHED:
            self._forget(event.run_id)
            return
        if event.run_id not in self._tellers and event.kind not in (Kind.RUN_SUBMITTED, Kind.STEP_STARTED):
            return  # of a call that outlives its run
        try:
            self._teller(event).take(_small(event))
        except Exception:  # a malformed event must not harm the call that it tells of
            if self._may_log():
                _logger.exception("no story from event %s of run %s", event.kind, event.run_id)

    def restore(self, events: Sequence[RunEvent]) -> None:
        """Take the journal of runs that another gateway began, in place of what is known of them here."""
        for run_id in dict.fromkeys(event.run_id for event in events):
            self._forget(run_id)
        for event in events:
            self.record(event)

    def blame(self, end: RunEvent) -> Mapping[str, Any] | None:
        """What made the run miss its SLO, given the event of its end; None if it did not, or nothing is known."""
        teller = self._tellers.get(end.run_id)
        if teller is None:
            return None
        try:
            teller.take(end)
            found = blame(teller.story)
        except Exception:  # the end of a run must be told, whatever its story
            if self._may_log():
                _logger.exception("no blame for run %s", end.run_id)
            return None
        return None if found is None else found.to_plain()

    def foresee(self, end: RunEvent) -> Mapping[str, Any]:
        """The mode of the run that ends with that event, and its estimate if it was observed; nothing if not known."""
        teller = self._tellers.get(end.run_id)
        if teller is None:
            return {}
        try:
            teller.take(end)
            told = foreseen(teller.story) if teller.story.mode == Mode.OBSERVE else None
            return {"mode": teller.story.mode, "foreseen": None if told is None else told.to_plain()}
        except Exception:  # the end of a run must be told, whatever its story
            if self._may_log():
                _logger.exception("no estimate for run %s", end.run_id)
            return {}

    def _teller(self, event: RunEvent) -> RunTeller:
        teller = self._tellers.get(event.run_id)
        if teller is None:
            teller = RunTeller(event.run_id, event.at_s, max_parts=_MAX_PARTS, max_call_events=_MAX_CALL_EVENTS)
            self._tellers[event.run_id] = teller
            self._evict(event.at_s)
        self._tellers.move_to_end(event.run_id)
        self._last_s[event.run_id] = event.at_s
        return teller

    def _evict(self, now_s: float) -> None:
        while True:
            oldest = next(iter(self._tellers))
            too_old = self._last_s.get(oldest, now_s) <= now_s - self._max_age_s
            if len(self._tellers) <= self._max_runs and not too_old:
                return
            self._forget(oldest)

    def _forget(self, run_id: str) -> None:
        self._tellers.pop(run_id, None)
        self._last_s.pop(run_id, None)

    def _may_log(self) -> bool:
        self._failures_logged += 1
        return self._failures_logged <= 10


def _small(event: RunEvent) -> RunEvent:
    """The event without the candidates that lost."""
    if event.kind is not Kind.CALL_DECIDED:
        return event
    decision = decision_of(event)
    reason = decision.get("reason") or {}
    kept = {"candidates": tuple(reason.get("candidates") or ())[:1], "length": reason.get("length")}
    return RunEvent(
        run_id=event.run_id,
        kind=event.kind,
        at_s=event.at_s,
        step_id=event.step_id,
        request_id=event.request_id,
        data={**decision, "reason": kept},
    )
