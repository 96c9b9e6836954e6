"""Why was each call served where it was, in words? Sentences for the waterfall, from a run's story."""

from collections.abc import Mapping
from typing import Any, Final

from agentserve.telemetry.blame import Blame, BlameReason, losses, told_blame
from agentserve.telemetry.story import CallStory, RunStory, StepStory

_LOSERS_SHOWN: Final = 3
_LOSSES_SHOWN: Final = 3
_BLAMED: Final = {
    BlameReason.QUEUE_WAIT: "waiting in queues",
    BlameReason.SLOW_INSTANCE: "an instance slower than predicted",
    BlameReason.WRONG_LENGTH: "an answer longer than predicted",
    BlameReason.TOOL: "longer than planned, without a call",
    BlameReason.EXTRA_STEPS: "steps beyond the forecast",
    BlameReason.MIGRATION: "moves between instances",
    BlameReason.RETRY: "failed attempts",
    BlameReason.CLIENT: "the client's own time",
    BlameReason.INFEASIBLE: "an SLO shorter than the plan alone",
    BlameReason.FAILURE: "its failure",
    BlameReason.CANCELLED: "its cancellation",
}


def verdict(story: RunStory, end_s: float) -> tuple[str, str]:
    """Whether the run kept its SLO, and a style (colour) for it; `end_s` is now for a run still going."""
    took_s = story.e2e_s if story.e2e_s is not None else end_s - story.submitted_s
    if story.slo_s is None:
        return f"no SLO · e2e {seconds(took_s)}" + ("" if story.finished_s is not None else " so far"), ""
    bound = f"SLO {seconds(story.slo_s)} · e2e {seconds(took_s)}"
    left_s = story.slo_s - took_s
    if story.finished_s is None:
        return f"{bound} so far · {_ahead(left_s)}", "" if left_s >= 0 else "red"
    if story.attained:
        return f"{bound} · attained, {seconds(left_s)} to spare", "green"
    return f"{bound} · missed" + (f" by {seconds(-left_s)}" if left_s < 0 else f": the run {story.status}"), "red"


def blame_words(story: RunStory) -> list[str]:
    """What made the run miss its SLO, and what else it lost; nothing for one that kept it, has none or goes on."""
    worst = told_blame(story)
    if worst is None:
        return []
    text = f"to blame: {_lost(worst)}"
    others = [one for one in losses(story) if (one.reason, one.step_id) != (worst.reason, worst.step_id)]
    most = sorted(others, key=lambda one: -one.lost_s)[: _LOSSES_SHOWN - 1]
    return [" · also ".join([text, *(_lost(one) for one in most if one.lost_s >= 0.1 * worst.lost_s)])]


def _lost(one: Blame) -> str:
    where = "" if one.node is None else f"{one.node}, "
    return f"{where}{_BLAMED[one.reason]} ({one.reason}): {seconds(one.lost_s)}"


def _ahead(left_s: float) -> str:
    return f"{seconds(left_s)} left" if left_s >= 0 else f"late by {seconds(-left_s)}"


def deadline_words(step: StepStory, story: RunStory) -> list[str]:
    """The step's deadlines since submission, and how its end stands to them; nothing without an SLO."""
    if step.target_deadline_s is None:
        return []
    target_s = step.target_deadline_s - story.submitted_s
    text = f"target {seconds(target_s)}"
    if step.latest_deadline_s is not None:
        text += f", latest {seconds(step.latest_deadline_s - story.submitted_s)}"
    if step.slack_s is not None:
        text += f" · slack of the run {signed(step.slack_s)}"
    if step.finished_s is not None:
        late_s = step.finished_s - step.target_deadline_s
        text += f" · ended {seconds(abs(late_s))} {'after' if late_s > 0 else 'before'} its target"
    return [text]


def call_words(call: CallStory, start_s: float) -> list[str]:
    """Where the call ran and why, what was predicted and what came, its failures and moves; times since `start_s`."""
    sentences = [_placed(call), *_predicted(call)]
    again = [(at_s, d) for at_s, d in call.decisions if d.get("type") == "dispatch" and (d.get("attempt") or 1) > 1]
    sentences += [
        f"✗ at {seconds(at - start_s)} on {instance or '?'}: {error}" for at, instance, error in call.failures
    ]
    for at_s, decision in again:
        rule = (decision.get("reason") or {}).get("rule")
        sentences.append(f"attempt {decision['attempt']} at {seconds(at_s - start_s)} on {_name(decision)}: {rule}")
    for move in call.migrations:
        text = (
            f"⇢ at {seconds(move.start_s - start_s)} {move.source or '?'} → {move.target or '?'} ({move.cause or '?'})"
        )
        if move.end_s is not None:
            text += f": on again after {seconds(move.end_s - move.start_s)}"
        if move.replayed_tokens is not None:
            text += f", {move.replayed_tokens} tokens replayed"
        sentences.append(text)
    sentences += [f"migration refused at {seconds(at - start_s)}: {reason}" for at, reason in call.refusals]
    if call.error:
        sentences.append(f"error: {call.error}")
    return [sentence for sentence in sentences if sentence]


def _placed(call: CallStory) -> str:
    placement = next((d for _, d in call.decisions if d.get("type") == "dispatch"), None)
    if placement is None:
        last = call.decisions[-1][1] if call.decisions else {}
        reason = last.get("reason") or {}
        return f"{last['type']}: {last.get('message') or reason.get('rule') or ''}" if last.get("type") else ""
    prefill, decode = placement.get("prefill_instance"), placement.get("decode_instance")
    where = f"{decode}" if prefill == decode else f"prefill {prefill} ⇒ decode {decode}"
    reason = call.explanation
    text = f"{where}: {reason.get('rule') or 'no reason recorded'}"
    candidates = reason.get("candidates") or ()
    if candidates and candidates[0].get("slack_s") is not None:
        text += f" · slack {signed(candidates[0]['slack_s'])}"
    losers = [f"not {_name(candidate)}: {candidate.get('verdict')}" for candidate in candidates[1 : 1 + _LOSERS_SHOWN]]
    return " · ".join([text, *losers])


def _name(candidate: Mapping[str, Any]) -> str:
    prefill, decode = candidate.get("prefill_instance"), candidate.get("decode_instance")
    return f"{decode}" if prefill == decode else f"{prefill} ⇒ {decode}"


def _predicted(call: CallStory) -> list[str]:
    length = call.explanation.get("length")
    parts = []
    if length:
        expected = (
            f"{length['p50_tokens']:.0f} tokens expected ({length['p10_tokens']:.0f} to {length['p90_tokens']:.0f})"
        )
        parts.append(expected + (f", {call.output_tokens} came" if call.output_tokens is not None else ""))
    elif call.output_tokens is not None:
        parts.append(f"{call.output_tokens} tokens")
    if call.prompt_tokens is not None:
        cached = f", {call.cached_tokens} cached" if call.cached_tokens else ""
        parts.append(f"prompt {call.prompt_tokens}{cached}")
    if call.ttft_s is not None:
        parts.append(f"TTFT {seconds(call.ttft_s)}")
    if call.tpot_s is not None:
        parts.append(f"TPOT {call.tpot_s * 1000:.1f} ms")
    return [" · ".join(parts)] if parts else []


def seconds(value_s: float) -> str:
    """A duration in three digits or so: `0.052 s`, `1.25 s`, `12.3 s`, `340 s`."""
    size = abs(value_s)
    digits = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value_s:.{digits}f} s"


def signed(value_s: float) -> str:
    """A duration with its sign."""
    return ("+" if value_s >= 0 else "−") + seconds(abs(value_s))
