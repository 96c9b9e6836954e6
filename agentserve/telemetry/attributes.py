"""Which attributes and span events does each span of a run carry? Plain mappings from the run's story."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from opentelemetry.util.types import AttributeValue

from agentserve.telemetry import names
from agentserve.telemetry.story import CallStory, RunStory, StepStory

Attributes = dict[str, AttributeValue | None]
"""Unknown values are None and are left out of the span."""

SpanEvent = tuple[str, float, Mapping[str, AttributeValue | None]]
"""Name, Unix seconds, attributes."""

_MAX_CANDIDATES: Final = 16
_MAX_DECISIONS: Final = 64
_MAX_TEXT: Final = 300


def run_attributes(run: RunStory) -> Attributes:
    """Of the `invoke_workflow` span."""
    return {
        names.OPERATION: names.INVOKE_WORKFLOW,
        names.WORKFLOW_NAME: run.workflow,
        names.RUN_ID: run.run_id,
        names.CONVERSATION: run.run_id,
        names.SLO_S: run.slo_s,
        names.DEADLINE: run.deadline_s,
        names.E2E_S: run.e2e_s,
        names.ATTAINED: run.attained,
        names.OUTCOME: run.status,
    }


def step_attributes(run: RunStory, step: StepStory) -> Attributes:
    """Of an `invoke_agent` or `execute_tool` span."""
    is_tool = step.kind == "tool"
    return {
        names.OPERATION: names.EXECUTE_TOOL if is_tool else names.INVOKE_AGENT,
        names.TOOL_NAME if is_tool else names.AGENT_NAME: step.node,
        names.CONVERSATION: run.run_id,
        names.RUN_ID: run.run_id,
        names.STEP_ID: step.step_id,
        names.STEP_PARENTS: step.parents,
        names.TARGET_DEADLINE: step.target_deadline_s,
        names.LATEST_DEADLINE: step.latest_deadline_s,
        names.SLACK_S: step.slack_s,
        names.PREDICTED_S: step.predicted_s,
        names.DOWNSTREAM_S: step.downstream_s,
        names.OUTCOME: step.outcome,
        names.ERROR_TYPE: step.outcome if step.outcome in ("failed", "cancelled") else None,
    }


def call_attributes(run: RunStory, call: CallStory) -> Attributes:
    """Of a `chat` span: what was asked, what was predicted, where it ran, how it went."""
    reason = call.explanation
    length = reason.get("length") or {}
    placement = call.placement or {}
    chosen = next(iter(reason.get("candidates") or ()), None) or {}
    return {
        names.OPERATION: names.CHAT,
        names.REQUEST_MODEL: call.model,
        names.AGENT_NAME: call.node,
        names.CONVERSATION: run.run_id,
        names.RUN_ID: run.run_id,
        names.STEP_ID: call.step_id,
        names.REQUEST_ID: call.request_id,
        names.STREAM: call.stream,
        names.INPUT_TOKENS: call.prompt_tokens,
        names.OUTPUT_TOKENS: call.output_tokens,
        names.CACHED_TOKENS: call.cached_tokens,
        names.TTFT_S: call.ttft_s,
        names.TPOT_S: call.tpot_s,
        names.E2E_S: call.e2e_s,
        names.TARGET_DEADLINE: reason.get("target_deadline_s"),
        names.LATEST_DEADLINE: reason.get("latest_deadline_s"),
        names.SLACK_S: chosen.get("slack_s"),
        names.LENGTH_P10: length.get("p10_tokens"),
        names.LENGTH_P50: length.get("p50_tokens"),
        names.LENGTH_P90: length.get("p90_tokens"),
        names.LENGTH_SOURCE: length.get("source"),
        names.LENGTH_ACTUAL: call.output_tokens,
        names.POLICY: reason.get("policy"),
        names.RULE: reason.get("rule"),
        names.PREFILL_INSTANCE: placement.get("prefill_instance"),
        names.DECODE_INSTANCE: _last_decoder(call) or placement.get("decode_instance"),
        names.SPLIT: call.split if placement else None,
        names.PRIORITY: placement.get("priority"),
        names.ATTEMPTS: call.attempts,
        names.MIGRATIONS: len(call.migrations),
        names.OUTCOME: call.outcome,
        names.ERROR_TYPE: call.outcome if call.outcome in ("failed", "cancelled") else None,
    }


def call_events(call: CallStory) -> list[SpanEvent]:
    """Decisions with their candidates, first tokens, failures and refused moves, in order of time."""
    events: list[SpanEvent] = [
        (names.DECISION_EVENT, at_s, _decision_attributes(decision))
        for at_s, decision in call.decisions[:_MAX_DECISIONS]
    ]
    events += [(names.FIRST_TOKEN_EVENT, at_s, {names.INSTANCE: instance}) for at_s, instance in call.first_tokens]
    events += [
        (names.ATTEMPT_FAILED_EVENT, at_s, {names.INSTANCE: instance, names.MESSAGE: error[:_MAX_TEXT]})
        for at_s, instance, error in call.failures
    ]
    events += [(names.REFUSED_EVENT, at_s, {names.MESSAGE: reason[:_MAX_TEXT]}) for at_s, reason in call.refusals]
    return sorted(events, key=lambda event: event[1])


def _decision_attributes(decision: Mapping[str, Any]) -> Attributes:
    reason = decision.get("reason") or {}
    candidates = reason.get("candidates") or ()
    return {
        names.DECISION: decision.get("type"),
        names.POLICY: reason.get("policy"),
        names.RULE: reason.get("rule"),
        names.CANDIDATES: tuple(orjson.dumps(candidate).decode() for candidate in candidates[:_MAX_CANDIDATES]),
        names.CANDIDATES_TOTAL: reason.get("candidates_total"),
        names.PREFILL_INSTANCE: decision.get("prefill_instance"),
        names.DECODE_INSTANCE: decision.get("decode_instance"),
        names.ATTEMPT: decision.get("attempt"),
        names.MIGRATION_SOURCE: decision.get("source"),
        names.MIGRATION_TARGET: decision.get("target"),
        names.MIGRATION_CAUSE: decision.get("cause"),
        names.GAIN_S: decision.get("predicted_gain_s"),
        names.COST_S: decision.get("predicted_cost_s"),
        names.MESSAGE: decision.get("message") or decision.get("refusal"),
    }


def _last_decoder(call: CallStory) -> str | None:
    return call.first_tokens[-1][1] if call.first_tokens else None
