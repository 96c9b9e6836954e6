"""What does the page tell of one run? Its story as data to draw, with the sentences of the terminal's waterfall."""

from collections.abc import Mapping
from typing import Any

from agentserve.reasons import call_words, deadline_words, verdict
from agentserve.telemetry.story import CallStory, RunStory, StepStory

_TONES = {"green": "good", "red": "bad"}


def explained(story: RunStory, now_s: float, max_steps: int) -> dict[str, Any]:
    """The run, its verdict in words, and its first `max_steps` steps; times are Unix seconds."""
    words, style = verdict(story, now_s if story.finished_s is None else story.finished_s)
    return {
        "run_id": story.run_id,
        "workflow": story.workflow,
        "status": story.status,
        "submitted_s": story.submitted_s,
        "slo_s": story.slo_s,
        "deadline_s": story.deadline_s,
        "finished_s": story.finished_s,
        "attained": story.attained,
        "verdict": words,
        "tone": _TONES.get(style, ""),
        "error": story.error,
        "now_s": now_s,
        "steps_total": len(story.steps),
        "steps": [_step(step, story) for step in story.steps[:max_steps]],
    }


def _step(step: StepStory, story: RunStory) -> dict[str, Any]:
    told = any(call.error == step.error for call in step.calls)
    return {
        "step_id": step.step_id,
        "node": step.node,
        "kind": step.kind,
        "parents": list(step.parents),
        "started_s": step.started_s,
        "finished_s": step.finished_s,
        "outcome": step.outcome,
        "error": None if told else step.error,
        "target_deadline_s": step.target_deadline_s,
        "latest_deadline_s": step.latest_deadline_s,
        "sentences": deadline_words(step, story),
        "calls": [_call(call, story) for call in step.calls],
    }


def _call(call: CallStory, story: RunStory) -> dict[str, Any]:
    reason = call.explanation
    return {
        "request_id": call.request_id,
        "model": call.model,
        "arrived_s": call.arrived_s,
        "finished_s": call.finished_s,
        "outcome": call.outcome,
        "phases": [[str(one.phase), one.start_s, one.end_s, one.instance] for one in call.phases],
        "failures": [at_s for at_s, _, _ in call.failures],
        "moves": [[move.start_s, move.source, move.target, move.cause] for move in call.migrations],
        "sentences": call_words(call, story.submitted_s),
        "candidates": [_candidate(one, call) for one in reason.get("candidates") or ()],
        "candidates_total": reason.get("candidates_total"),
    }


def _candidate(one: Mapping[str, Any], call: CallStory) -> dict[str, Any]:
    finish_s = one.get("predicted_finish_s")
    return {
        "prefill": one.get("prefill_instance"),
        "decode": one.get("decode_instance"),
        "queue_s": one.get("predicted_queue_s"),
        "prefill_s": one.get("predicted_prefill_s"),
        "transfer_s": one.get("predicted_transfer_s"),
        "decode_s": one.get("predicted_decode_s"),
        "ends_after_s": None if finish_s is None else finish_s - call.arrived_s,
        "slack_s": one.get("slack_s"),
        "cached_tokens": one.get("cached_tokens"),
        "verdict": one.get("verdict"),
    }
