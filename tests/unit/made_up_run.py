"""A made-up run with everything that can happen to one, as journal events: the tests of the views draw it."""

from agentserve.journal import Kind, RunEvent

START_S = 1_000_000.0
RUN = "run-1"


def event(kind, at_s, step=None, request=None, /, **data):
    return RunEvent(run_id=RUN, kind=kind, at_s=START_S + at_s, step_id=step, request_id=request, data=data)


def candidate(prefill, decode, finish_s, slack_s, verdict):
    return {
        "prefill_instance": prefill,
        "decode_instance": decode,
        "predicted_queue_s": 0.0,
        "predicted_prefill_s": 0.3,
        "predicted_transfer_s": 0.0,
        "predicted_decode_s": 1.0,
        "predicted_finish_s": START_S + finish_s,
        "slack_s": slack_s,
        "cached_tokens": 0,
        "verdict": verdict,
    }


def dispatch(request, attempt, prefill, decode, rule="just enough: weakest of 2 in time", slack_s=1.5):
    return {
        "type": "dispatch",
        "cause_id": f"arrived:{request}",
        "request_id": request,
        "attempt": attempt,
        "prefill_instance": prefill,
        "decode_instance": decode,
        "priority": 3,
        "reason": {
            "policy": "agentserve",
            "rule": rule,
            "candidates": [
                candidate(prefill, decode, 3.0, slack_s, "chosen"),
                candidate("a100-2", "a100-2", 6.0, -1.0, "1.0 s late"),
                candidate("h200-1", "h200-1", 2.0, 2.5, "stronger than needed"),
            ],
            "candidates_total": 5,
            "length": {"p10_tokens": 40.0, "p50_tokens": 120.0, "p90_tokens": 310.0, "source": "node"},
            "target_deadline_s": START_S + 4.0,
            "latest_deadline_s": START_S + 9.0,
        },
    }


def migrate(request, attempt, source, target):
    reason = {"policy": "agentserve", "rule": "late by 2.0 s", "candidates": [], "candidates_total": 3, "length": None}
    return {
        "type": "migrate",
        "cause_id": "woke:1",
        "request_id": request,
        "attempt": attempt,
        "source": source,
        "target": target,
        "priority": 1,
        "cause": "late",
        "by": "replay",
        "predicted_gain_s": 2.1,
        "predicted_cost_s": 0.3,
        "reason": reason,
    }


def finished(at_s, step, request, outcome="ok", **data):
    known = {"error": None, "prompt_tokens": 900, "output_tokens": 150, "cached_tokens": 256} | data
    return event(Kind.CALL_FINISHED, at_s, step, request, outcome=outcome, **known)


def submitted(**data):
    given = {"workflow": "researcher", "slo_s": 12.0, "deadline_s": START_S + 12.0, "traceparent": None} | data
    return event(Kind.RUN_SUBMITTED, 0.0, **given)


def arrived(at_s, step, request, node, **data):
    given = {"node": node, "model": "llama-3.1-8b", "prompt_tokens": 900, "stream": True, "traceparent": None} | data
    return event(Kind.CALL_ARRIVED, at_s, step, request, **given)


def decided(at_s, step, request, decision):
    return event(Kind.CALL_DECIDED, at_s, step, request, **decision)


def first_token(at_s, step, request, instance):
    return event(Kind.CALL_FIRST_TOKEN, at_s, step, request, instance=instance, cached_tokens=256)


def deadlines(at_s, step, node, target_s, latest_s):
    return event(
        Kind.STEP_DEADLINES,
        at_s,
        step,
        node=node,
        target_deadline_s=START_S + target_s,
        latest_deadline_s=START_S + latest_s,
        slack_s=3.0,
        predicted_s=2.0,
        downstream_s=4.0,
    )


def plan_step():
    """One call, split: prefill on an H100, decode on an A100."""
    return [
        event(Kind.STEP_STARTED, 0.1, "plan", node="plan", kind="llm", parents=[]),
        deadlines(0.1, "plan", "plan", 4.0, 9.0),
        arrived(0.1, "plan", "c-plan", "plan"),
        decided(0.2, "plan", "c-plan", dispatch("c-plan", 1, "h100-1", "a100-1")),
        event(Kind.CALL_PREFILLED, 0.7, "plan", "c-plan", instance="h100-1"),
        first_token(0.9, "plan", "c-plan", "a100-1"),
        finished(2.4, "plan", "c-plan", ttft_s=0.8, tpot_s=0.0101, e2e_s=2.3),
        event(Kind.STEP_FINISHED, 2.4, "plan", node="plan", outcome="ok", error=None),
    ]


def search_steps():
    """Two at once: one is migrated, the other's first attempt fails."""
    return [
        event(Kind.STEP_STARTED, 2.4, "search-a", node="search", kind="llm", parents=["plan"]),
        event(Kind.STEP_STARTED, 2.4, "search-b", node="search", kind="llm", parents=["plan"]),
        deadlines(2.4, "search-a", "search", 6.0, 9.0),
        deadlines(2.4, "search-b", "search", 6.0, 9.0),
        arrived(2.4, "search-a", "c-a", "search"),
        arrived(2.4, "search-b", "c-b", "search"),
        decided(2.45, "search-a", "c-a", dispatch("c-a", 1, "a100-1", "a100-1")),
        decided(2.45, "search-b", "c-b", dispatch("c-b", 1, "a100-2", "a100-2")),
        first_token(3.0, "search-a", "c-a", "a100-1"),
        event(
            Kind.CALL_ATTEMPT_FAILED,
            3.2,
            "search-b",
            "c-b",
            instance="a100-2",
            error="connection lost",
            output_tokens=0,
        ),
        decided(3.2, "search-b", "c-b", dispatch("c-b", 2, "h100-1", "h100-1", rule="retry on the next best")),
        first_token(3.6, "search-b", "c-b", "h100-1"),
        decided(4.0, "search-a", "c-a", migrate("c-a", 2, "a100-1", "h200-1")),
        event(
            Kind.CALL_MIGRATED,
            4.1,
            "search-a",
            "c-a",
            source="a100-1",
            target="h200-1",
            cause="late",
            replayed_tokens=87,
        ),
        first_token(4.4, "search-a", "c-a", "h200-1"),
        finished(5.0, "search-b", "c-b", ttft_s=1.2, tpot_s=0.0094, e2e_s=2.6),
        event(Kind.STEP_FINISHED, 5.0, "search-b", node="search", outcome="ok", error=None),
        finished(5.5, "search-a", "c-a", ttft_s=0.6, tpot_s=0.0168, e2e_s=3.1),
        event(Kind.STEP_FINISHED, 5.5, "search-a", node="search", outcome="ok", error=None),
    ]


def tool_step():
    return [
        event(Kind.STEP_STARTED, 5.5, "fetch", node="fetch", kind="tool", parents=["search-a", "search-b"]),
        event(Kind.STEP_FINISHED, 7.5, "fetch", node="fetch", outcome="ok", error=None),
    ]


def write_step(end_s=9.5):
    """The last call; without an end it is still going."""
    begun = [
        event(Kind.STEP_STARTED, 7.5, "write", node="write", kind="llm", parents=["fetch"]),
        deadlines(7.5, "write", "write", 11.0, 12.0),
        arrived(7.5, "write", "c-w", "write"),
        decided(7.5, "write", "c-w", dispatch("c-w", 1, "h100-1", "h100-1")),
        first_token(7.9, "write", "c-w", "h100-1"),
    ]
    if end_s is None:
        return begun
    return [
        *begun,
        finished(end_s, "write", "c-w", ttft_s=0.4, tpot_s=0.0107, e2e_s=2.0),
        event(Kind.STEP_FINISHED, end_s, "write", node="write", outcome="ok", error=None),
    ]


def whole_run():
    """An attained run: a split call, parallel siblings, a migration, a failed attempt, a tool, a last call."""
    end = event(Kind.RUN_FINISHED, 9.5, status="succeeded", e2e_s=9.5, attained=True, error=None)
    return [submitted(), *plan_step(), *search_steps(), *tool_step(), *write_step(), end]


def run_still_going():
    return [submitted(), *plan_step(), *search_steps(), *tool_step(), *write_step(None)]
