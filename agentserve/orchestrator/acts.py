"""How is each decision of the scheduler carried out? One short act per kind of decision."""

import asyncio
from typing import TYPE_CHECKING, Any, Final, assert_never

from agentserve.engines.http import EngineBusy, EngineRefused
from agentserve.errors import AgentServeError
from agentserve.journal import Kind
from agentserve.orchestrator.call import Attempt, CallFailed, LiveCall
from scheduler.decisions import Cancel, Decision, Dispatch, Hold, Migrate, MoveBy, Refusal, Reject, WakeAt
from scheduler.events import MigrationRefused
from scheduler.wire import to_plain

if TYPE_CHECKING:
    from agentserve.orchestrator.driver import Orchestrator

STATUS: Final = {
    Refusal.UNKNOWN_MODEL: (404, "model_not_found"),
    Refusal.TOO_LONG: (400, "context_length_exceeded"),
    Refusal.NO_INSTANCE: (503, "no_instance"),
    Refusal.TOO_MANY_ATTEMPTS: (502, "engine_failed"),
    Refusal.NOT_RETRYABLE: (502, "engine_failed"),
}


class Acts:
    """Carries out decisions at once and without waiting; what takes time happens in the calls' own tasks."""

    def __init__(self, driver: "Orchestrator") -> None:
        self._driver = driver
        self._timer: asyncio.TimerHandle | None = None

    def carry_out(self, decision: Decision) -> None:
        """Do what was decided; a decision about a call that has ended is void."""
        if isinstance(decision, WakeAt):
            self._wake_at(decision)
            return
        live = self._driver.calls.get(decision.request_id)
        if live is None:
            return
        self._tell(live, decision)
        match decision:
            case Dispatch():
                self._dispatch(live, decision)
            case Hold():
                pass  # the call's task waits for its next attempt anyway
            case Migrate():
                self._migrate(live, decision)
            case Cancel():
                self._stop(live, CallFailed("cancelled by the scheduler", 503, "cancelled"))
            case Reject():
                self._stop(live, self._refusal(live, decision))
            case _:
                assert_never(decision)

    def stop_timer(self) -> None:
        """Wake the core no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self, live: LiveCall, decision: Decision) -> None:
        kind = type(decision).__name__.lower()
        data: dict[str, Any] = {**to_plain(decision), "type": kind, "decision": kind}
        self._driver.diary.of_call(live, Kind.CALL_DECIDED, **data)

    def _dispatch(self, live: LiveCall, decision: Dispatch) -> None:
        live.assign(
            Attempt(
                number=decision.attempt,
                prefill=decision.prefill_instance,
                decode=decision.decode_instance,
                priority=decision.priority,
                cause="lost" if live.last_failure is not None else None,
            )
        )

    def _migrate(self, live: LiveCall, decision: Migrate) -> None:
        refusal = live.cannot_move
        if refusal is not None:
            driver = self._driver
            driver.diary.of_call(live, Kind.CALL_MIGRATION_REFUSED, reason=refusal)
            driver.feed(MigrationRefused(event_id=driver.next_id(), request_id=live.request_id, reason=refusal))
            return
        live.assign(
            Attempt(
                number=decision.attempt,
                prefill=decision.source if decision.by is MoveBy.KV else decision.target,
                decode=decision.target,
                priority=decision.priority,
                cause=str(decision.cause),
                by=str(decision.by),
            )
        )
        if live.leg is not None:
            live.leg.cancel()

    def _stop(self, live: LiveCall, error: AgentServeError) -> None:
        self._driver.conclude(live, "failed", error)
        if live.task is not None:
            live.task.cancel()

    def _refusal(self, live: LiveCall, decision: Reject) -> AgentServeError:
        if decision.refusal is Refusal.NOT_RETRYABLE and isinstance(live.last_failure, EngineRefused):
            return live.last_failure
        status, code = STATUS[decision.refusal]
        if decision.refusal is Refusal.TOO_MANY_ATTEMPTS and isinstance(live.last_failure, EngineBusy):
            status, code = live.last_failure.status, live.last_failure.code  # clients know how to come back later
        if (failure := live.last_failure) is None:
            return CallFailed(decision.message, status, code)
        record = decision.message
        if failure.record not in record:
            record = f"{record}: {failure.record}"
        return CallFailed(record.replace(failure.record, str(failure)), status, code, record=record)

    def _wake_at(self, decision: WakeAt) -> None:
        self.stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, decision.at_s - self._driver.clock()), self._driver.wake)
