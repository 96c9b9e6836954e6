"""What happened to a run, told once: the tracker keeps it, the tracer makes spans of it, metrics count it.

The gateway is the only writer. Every event is plain data, so that a trace can be drawn from Redis alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Kind(StrEnum):
    """Kinds of event, with the keys that `RunEvent.data` holds for each."""

    RUN_SUBMITTED = "run.submitted"
    """workflow, slo_s, deadline_s, traceparent (of the client, or None), mode"""
    MODE_CHANGED = "mode.changed"
    """mode, before: told to every run that lives then"""
    STEP_STARTED = "step.started"
    """node, kind (llm or tool), parents"""
    STEP_DEADLINES = "step.deadlines"
    """node, target_deadline_s, latest_deadline_s, slack_s (of the run, expected), predicted_s, downstream_s"""
    CALL_ARRIVED = "call.arrived"
    """node, model, prompt_tokens, stream, traceparent (of the client, or None)"""
    CALL_DECIDED = "call.decided"
    """decision (dispatch, hold, migrate, cancel, reject) and that decision's fields as plain data"""
    CALL_PREFILLED = "call.prefilled"
    """instance: the prefill leg of a split call ended"""
    CALL_FIRST_TOKEN = "call.first_token"  # noqa: S105  # a token of text, no secret
    """instance, cached_tokens: of each attempt"""
    CALL_MIGRATED = "call.migrated"
    """source, target, cause, by (replay or kv), replayed_tokens: the stream goes on at the target"""
    CALL_MIGRATION_REFUSED = "call.migration_refused"
    """reason"""
    CALL_ATTEMPT_FAILED = "call.attempt_failed"
    """instance, error, output_tokens"""
    CALL_FINISHED = "call.finished"
    """outcome (ok, failed, cancelled), error, prompt_tokens, output_tokens, cached_tokens, ttft_s, tpot_s, e2e_s"""
    STEP_FINISHED = "step.finished"
    """node, outcome (ok, failed, cancelled), error"""
    RUN_FINISHED = "run.finished"
    """status (succeeded, failed, cancelled), e2e_s, attained, error, blame (None, or reason, step_id, node, lost_s),
    mode (None if it changed meanwhile), foreseen (of runs in mode observe, else None: `telemetry/foreseen.py`)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One fact of a run, at `at_s` (Unix seconds). `step_id` and `request_id` are None where they do not apply."""

    run_id: str
    kind: Kind
    at_s: float
    step_id: str | None = None
    request_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Takes run events as they happen; must not block and must not raise."""

    def record(self, event: RunEvent) -> None:
        """Take one event."""
        ...
