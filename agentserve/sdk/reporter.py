"""When do step reports reach the gateway? At once, in batches, from a thread of their own: no graph waits for it."""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from agentserve.errors import AgentServeError, Conflict
from agentserve.sdk.rest import GatewayClient

_log = logging.getLogger("agentserve.sdk")
_MAX_WAITING: Final = 10_000
_BATCH: Final = 100
_IDLE_S: Final = 2.0


class StepReporter:
    """Sends what it is given, in order per run; the oldest reports are dropped when too many wait. Thread-safe.

    Its thread starts with the first report and ends after two idle seconds.
    """

    def __init__(self, gateway: GatewayClient) -> None:
        self._gateway = gateway
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=_MAX_WAITING)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sending: str | None = None

    def report(self, run_id: str, event: Mapping[str, Any]) -> None:
        """Take one report; returns at once."""
        with self._changed:
            self._waiting.append((run_id, event))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agentserve-reports", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, run_id: str, timeout_s: float = 5.0) -> bool:
        """Wait until the run's reports were sent (or given up); whether that was so in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._owes(run_id), timeout_s)

    def _owes(self, run_id: str) -> bool:
        return self._sending == run_id or any(waiting == run_id for waiting, _ in self._waiting)

    def _work(self) -> None:
        while batch := self._next_batch():
            run_id, events = batch
            self._send(run_id, events)
            with self._changed:
                self._sending = None
                self._changed.notify_all()

    def _send(self, run_id: str, events: list[Mapping[str, Any]]) -> None:
        try:
            self._gateway.report_steps(run_id, events)
        except Conflict as error:
            # A call's headers told the gateway already, with other times; what follows the refused report still counts.
            if len(events) == 1:
                _log.debug("a step report of run %s was not needed: %s", run_id, error)
            else:
                for event in events:
                    self._send(run_id, [event])
        except AgentServeError as error:
            _log.warning("%d step reports of run %s were lost: %s", len(events), run_id, error)

    def _next_batch(self) -> tuple[str, list[Mapping[str, Any]]] | None:
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._waiting), _IDLE_S):
                self._thread = None
                return None
            run_id = self._waiting[0][0]
            events: list[Mapping[str, Any]] = []
            while self._waiting and self._waiting[0][0] == run_id and len(events) < _BATCH:
                events.append(self._waiting.popleft()[1])
            self._sending = run_id
            return run_id, events
