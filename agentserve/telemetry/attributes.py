"""Which attributes and span events does each span of a run carry? Plain mappings from the run's story."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from opentelemetry.util.types import AttributeValue

from agentserve.telemetry import names
from agentserve.telemetry.story import CallStory, Migration, Phase, PhaseSpan, RunStory, StepStory

Attributes = dict[str, AttributeValue | None]
"""Unknown values are None and are left out of the span."""

SpanEvent = tuple[str, float, Mapping[str, AttributeValue | None]]
"""Name, Unix seconds, attributes."""

_MAX_CANDIDATES: Final = 16
_MAX_DECISIONS: Final = 64
_MAX_TEXT: Final = 300


def run_attributes(run: RunStory) -> Attributes:
    """Of the `invoke_workflow` span; of a run that missed its SLO with what was to blame."""
    blame = run.blame or {}
    return {
        names.OPERATION: names.INVOKE_WORKFLOW,
        names.AGENT_NAME: run.workflow,
        names.RUN_ID: run.run_id,
        names.CONVERSATION: run.run_id,
        names.SLO_S: run.slo_s,
        names.DEADLINE: run.deadline_s,
        names.E2E_S: run.e2e_s,
        names.ATTAINED: run.attained,
        names.OUTCOME: run.status,
        names.BLAME: blame.get("reason"),
        names.BLAME_STEP: blame.get("step_id"),
        names.BLAME_NODE: blame.get("node"),
        names.BLAME_LOST_S: blame.get("lost_s"),
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
        names.SLACK_BEFORE_S: step.slack_before_s,
        names.SLACK_AFTER_S: step.slack_after_s(run.deadline_s),
        names.PREDICTED_S: step.planned_s,
        names.DOWNSTREAM_S: step.downstream_s,
        names.OUTCOME: step.outcome,
        names.ERROR_TYPE: step.outcome if step.outcome in ("failed", "cancelled") else None,
    }


def call_attributes(run: RunStory, call: CallStory) -> Attributes:
    """Of a `chat` span: what was asked, what was predicted, where it ran, how it went."""
    reason = call.explanation
    placement = call.placement or {}
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
        names.FIRST_CHUNK_S: call.ttft_s if call.stream else None,
        names.TTFT_S: call.ttft_s,
        names.TPOT_S: call.tpot_s,
        names.E2E_S: call.e2e_s,
        names.COST_GPU_S: _gpu_s(call),
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
        **_foreseen(call),
    }


def _foreseen(call: CallStory) -> Attributes:
    """What the first dispatch predicted, and by how much it was wrong."""
    reason, chosen = call.explanation, _chosen(call)
    length = reason.get("length") or {}
    low, high, came = length.get("p10_tokens"), length.get("p90_tokens"), call.output_tokens
    target_s, finish_s, ended_s = reason.get("target_deadline_s"), chosen.get("predicted_finish_s"), call.finished_s
    return {
        names.TARGET_DEADLINE: target_s,
        names.LATEST_DEADLINE: reason.get("latest_deadline_s"),
        names.SLACK_BEFORE_S: chosen.get("slack_s"),
        names.SLACK_AFTER_S: None if target_s is None or ended_s is None else target_s - ended_s,
        names.PREDICTED_TTFT_S: _sum(chosen, "predicted_queue_s", "predicted_prefill_s", "predicted_transfer_s"),
        names.PREDICTED_FINISH: finish_s,
        names.FINISH_ERROR_S: None if finish_s is None or ended_s is None else ended_s - finish_s,
        names.PREDICTED_CACHED: chosen.get("cached_tokens"),
        names.LENGTH_P10: low,
        names.LENGTH_P50: length.get("p50_tokens"),
        names.LENGTH_P90: high,
        names.LENGTH_SOURCE: length.get("source"),
        names.LENGTH_ACTUAL: came,
        names.LENGTH_WITHIN: None if low is None or high is None or came is None else low <= came <= high,
    }


def phase_attributes(call: CallStory, phase: PhaseSpan) -> Attributes:
    """Of the span of one phase: where it was spent, and what its attempt's dispatch predicted for it."""
    chosen = _chosen(call, phase.attempt)
    predicted = {Phase.PREFILL: "predicted_prefill_s", Phase.TRANSFER: "predicted_transfer_s"}
    if _leads(call, phase):
        predicted[Phase.DECODE] = "predicted_decode_s"
    is_prefill = phase.phase is Phase.PREFILL
    return {
        names.INSTANCE: phase.instance,
        names.ATTEMPT: phase.attempt or None,
        names.PREDICTED_S: chosen.get(predicted.get(phase.phase, "")),
        names.PREDICTED_QUEUE_S: chosen.get("predicted_queue_s") if is_prefill else None,
    }


def migration_attributes(move: Migration) -> Attributes:
    """Of the span of one move."""
    return {
        names.MIGRATION_SOURCE: move.source,
        names.MIGRATION_TARGET: move.target,
        names.MIGRATION_CAUSE: move.cause,
        names.MIGRATION_BY: move.by,
        names.REPLAYED_TOKENS: move.replayed_tokens,
    }


def _chosen(call: CallStory, attempt: int | None = None) -> Mapping[str, Any]:
    """The placement chosen by the first dispatch, or by that of an attempt; empty if it is not known."""
    for _, decision in call.decisions:
        if decision.get("type") == "dispatch" and attempt in (None, decision.get("attempt")):
            return next(iter((decision.get("reason") or {}).get("candidates") or ()), None) or {}
    return {}


def _leads(call: CallStory, phase: PhaseSpan) -> bool:
    """Whether it is the first decode phase: the only one that a dispatch predicted as a whole."""
    return phase is next((one for one in call.phases if one.phase is Phase.DECODE), None)


def _sum(values: Mapping[str, Any], *parts: str) -> float | None:
    known = [values.get(part) for part in parts]
    return None if None in known else sum(value for value in known if value is not None)


def _gpu_s(call: CallStory) -> float | None:
    """Seconds for which the call had a place on an instance, over all its legs and attempts."""
    on = [one for one in call.phases if one.phase is not Phase.QUEUE and one.end_s is not None]
    return sum(one.end_s - one.start_s for one in on if one.end_s is not None) if on else None


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
