"""How are the facts of a call told to the journal? One writer, so that every event has the same shape."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentserve.journal import Kind, RunEvent, Sink
from agentserve.orchestrator.call import LiveCall
from agentserve.records import CallRecord


class Diary:
    """Sends run events to all sinks, in order."""

    def __init__(self, sinks: Sequence[Sink], clock: Callable[[], float]) -> None:
        self._sinks = tuple(sinks)
        self._clock = clock

    def write(
        self,
        kind: Kind,
        run_id: str,
        step_id: str | None = None,
        request_id: str | None = None,
        data: Mapping[str, Any] | None = None,
        at_s: float | None = None,
    ) -> None:
        """Tell one fact that happened now, or at `at_s`."""
        event = RunEvent(
            run_id=run_id,
            kind=kind,
            at_s=self._clock() if at_s is None else at_s,
            step_id=step_id,
            request_id=request_id,
            data=data if data is not None else {},
        )
        for sink in self._sinks:
            sink.record(event)

    def of_call(self, live: LiveCall, kind: Kind, **data: Any) -> None:
        """Tell one fact of a call."""
        request = live.request
        self.write(kind, request.run_id, request.step_id, request.request_id, data)

    def call_ended(self, live: LiveCall) -> CallRecord:
        """Tell how a call ended; returns its record."""
        request, usage = live.request, live.stream.usage()
        record = CallRecord(
            request_id=request.request_id,
            run_id=request.run_id,
            node=request.node,
            arrived_s=live.arrived_s,
            first_token_s=live.first_token_s,
            finished_s=self._clock(),
            prompt_tokens=int(usage.get("prompt_tokens") or live.estimate.tokens),
            output_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=live.stream.cached_tokens,
            migrations=live.migrations,
            split=live.split,
            ok=live.outcome == "ok",
        )
        self.of_call(
            live,
            Kind.CALL_FINISHED,
            outcome=live.outcome,
            error=live.error.record if live.error is not None else None,
            prompt_tokens=record.prompt_tokens,
            output_tokens=record.output_tokens,
            cached_tokens=record.cached_tokens,
            ttft_s=record.ttft_s,
            tpot_s=record.tpot_s,
            e2e_s=record.e2e_s,
        )
        return record
