"""What is to blame when a run misses its SLO: made-up runs, each late for one reason, and the rules that decide."""

import pytest

from agentserve.journal import Kind
from agentserve.telemetry.blame import Blame, BlameReason, blame, blame_of_plain, losses, told_blame
from agentserve.telemetry.story import tell_run
from tests.unit.made_up_run import START_S, event, whole_run

P_S, D_S, TOKENS = 0.5, 2.0, 100.0
"""The plan of every call here: prefill, decode, and how many tokens."""


def step(start_s, end_s, name, *calls, planned_s=2.5, downstream_s=0.0, node=None, kind=None, parents=(), outcome="ok"):
    """A step with what was expected of it and of the run behind it when it began."""
    kind = kind or ("llm" if calls else "tool")
    node = node or name
    begun = [
        event(Kind.STEP_STARTED, start_s, name, node=node, kind=kind, parents=list(parents)),
        event(
            Kind.STEP_DEADLINES,
            start_s,
            name,
            node=node,
            target_deadline_s=START_S + 9.0,
            latest_deadline_s=START_S + 9.0,
            slack_s=1.0,
            predicted_s=planned_s,
            downstream_s=downstream_s,
        ),
    ]
    ended = event(Kind.STEP_FINISHED, end_s, name, node=node, outcome=outcome, error=None)
    return [*begun, *(one for call in calls for one in call(name)), ended]


def dispatch(attempt, queue_s=0.0, on="a", tokens=TOKENS):
    chosen = {
        "prefill_instance": on,
        "decode_instance": on,
        "predicted_queue_s": queue_s,
        "predicted_prefill_s": P_S,
        "predicted_transfer_s": 0.0,
        "predicted_decode_s": D_S,
    }
    length = {"p10_tokens": tokens / 2, "p50_tokens": tokens, "p90_tokens": tokens * 2, "source": "node"}
    reason = {"policy": "agentserve", "rule": "made up", "candidates": [chosen], "length": length}
    where = {"prefill_instance": on, "decode_instance": on}
    return {"type": "dispatch", "attempt": attempt, "priority": 0, "reason": reason, **where}


def call(start_s, *, held_s=0.0, prefill_s=P_S, decode_s=D_S, tokens=100, queue_s=0.0, name="c", outcome="ok"):
    """A call of one attempt."""

    def events(step_id):
        request = f"{step_id}-{name}"
        sent_s, first_s = start_s + held_s, start_s + held_s + prefill_s
        return [
            event(Kind.CALL_ARRIVED, start_s, step_id, request, node=step_id, model="m", prompt_tokens=9),
            event(Kind.CALL_DECIDED, sent_s, step_id, request, **dispatch(1, queue_s)),
            event(Kind.CALL_FIRST_TOKEN, first_s, step_id, request, instance="a", cached_tokens=0),
            event(Kind.CALL_FINISHED, first_s + decode_s, step_id, request, outcome=outcome, output_tokens=tokens),
        ]

    return events


def retried_call(start_s, *, broke_after_s, again_after_s):
    """The first attempt breaks before its first token; the second is served as planned."""

    def events(step_id):
        request, broke_s = f"{step_id}-c", start_s + broke_after_s
        again_s = broke_s + again_after_s
        return [
            event(Kind.CALL_ARRIVED, start_s, step_id, request, node=step_id, model="m", prompt_tokens=9),
            event(Kind.CALL_DECIDED, start_s, step_id, request, **dispatch(1)),
            event(Kind.CALL_ATTEMPT_FAILED, broke_s, step_id, request, instance="a", error="gone", output_tokens=0),
            event(Kind.CALL_DECIDED, again_s, step_id, request, **dispatch(2, on="b")),
            event(Kind.CALL_FIRST_TOKEN, again_s + P_S, step_id, request, instance="b", cached_tokens=0),
            event(Kind.CALL_FINISHED, again_s + P_S + D_S, step_id, request, outcome="ok", output_tokens=100),
        ]

    return events


def moved_call(start_s, *, stood_s):
    """The stream stands still while the call moves in the middle of its decode."""

    def events(step_id):
        request, moved_s = f"{step_id}-c", start_s + P_S + D_S / 2
        move = {"type": "migrate", "attempt": 2, "source": "a", "target": "b", "cause": "late", "reason": {}}
        return [
            event(Kind.CALL_ARRIVED, start_s, step_id, request, node=step_id, model="m", prompt_tokens=9),
            event(Kind.CALL_DECIDED, start_s, step_id, request, **dispatch(1)),
            event(Kind.CALL_FIRST_TOKEN, start_s + P_S, step_id, request, instance="a", cached_tokens=0),
            event(Kind.CALL_DECIDED, moved_s, step_id, request, **move),
            event(Kind.CALL_FIRST_TOKEN, moved_s + stood_s, step_id, request, instance="b", cached_tokens=0),
            event(Kind.CALL_FINISHED, moved_s + stood_s + D_S / 2, step_id, request, outcome="ok", output_tokens=100),
        ]

    return events


def run(end_s, *steps, slo_s=4.0, status="succeeded"):
    """A run that ended at `end_s`, as its journal tells it."""
    submitted = event(Kind.RUN_SUBMITTED, 0.0, workflow="w", slo_s=slo_s, deadline_s=START_S + slo_s)
    attained = status == "succeeded" and end_s <= slo_s
    ended = event(Kind.RUN_FINISHED, end_s, status=status, e2e_s=end_s, attained=attained, error=None)
    between = sorted((one for events in steps for one in events), key=lambda one: one.at_s)
    return tell_run([submitted, *between, ended])


LATE = {
    "held at the gateway": (run(7.5, step(0, 7.5, "plan", call(0, held_s=5.0))), "queue_wait", "plan", 5.0),
    "behind others in the engine": (
        run(7.5, step(0, 7.5, "plan", call(0, prefill_s=5.5, queue_s=4.0))),
        "queue_wait",
        "plan",
        5.0,
    ),
    "slow prefill on an idle instance": (
        run(7.5, step(0, 7.5, "plan", call(0, prefill_s=5.5))),
        "slow_instance",
        "plan",
        5.0,
    ),
    "slow decode": (run(7.5, step(0, 7.5, "plan", call(0, decode_s=7.0))), "slow_instance", "plan", 5.0),
    "longer answer than predicted": (
        run(7.5, step(0, 7.5, "plan", call(0, decode_s=7.0, tokens=350))),
        "wrong_length",
        "plan",
        5.0,
    ),
    "slow more than long": (
        run(10.5, step(0, 10.5, "plan", call(0, decode_s=10.0, tokens=200))),
        "slow_instance",
        "plan",
        6.0,
    ),
    "long tool": (
        run(9.0, step(0, 2.5, "plan", call(0), downstream_s=1.0), step(2.5, 9.0, "fetch", planned_s=1.0)),
        "tool",
        "fetch",
        5.5,
    ),
    "a node's own code": (run(8.5, step(0, 8.5, "plan", call(6.0))), "client", "plan", 6.0),
    "time between steps": (
        run(9.0, step(0, 2.5, "plan", call(0), downstream_s=2.5), step(6.5, 9.0, "write", call(6.5))),
        "client",
        "write",
        4.0,
    ),
    "time before the first step": (run(7.5, step(5.0, 7.5, "plan", call(5.0))), "client", "plan", 5.0),
    "a broken attempt": (
        run(7.5, step(0, 7.5, "plan", retried_call(0, broke_after_s=3.0, again_after_s=2.0))),
        "retry",
        "plan",
        5.0,
    ),
    "a call that failed and was made again": (
        run(
            7.5,
            step(0, 7.5, "plan", call(0, prefill_s=4.0, decode_s=1.0, outcome="failed"), call(5.0, name="again")),
        ),
        "retry",
        "plan",
        5.0,
    ),
    "a move": (run(5.5, step(0, 5.5, "plan", moved_call(0, stood_s=3.0))), "migration", "plan", 3.0),
    "one round more than forecast": (
        run(
            7.5,
            step(0, 2.5, "plan", call(0), downstream_s=0.0),
            step(2.5, 5.0, "again", call(2.5), downstream_s=0.0),
            step(5.0, 7.5, "once more", call(5.0), downstream_s=0.0),
        ),
        "extra_steps",
        "again",
        2.5,
    ),
    "an SLO below its own plan": (run(2.5, step(0, 2.5, "plan", call(0)), slo_s=1.0), "infeasible", None, 1.5),
}


@pytest.mark.parametrize("name", LATE)
def test_the_reason_that_lost_the_most_is_to_blame(name):
    story, reason, node, lost_s = LATE[name]
    found = blame(story)
    assert (found.reason, found.node) == (reason, node)
    assert found.lost_s == pytest.approx(lost_s)


@pytest.mark.parametrize("name", LATE)
def test_losses_and_what_was_planned_make_up_the_whole_run(name):
    """The losses explain all of the run's lateness, and are no more than its time."""
    story = LATE[name][0]
    told = losses(story)
    assert sum(loss.lost_s for loss in told) >= story.e2e_s - story.slo_s - 1e-6
    without_plan = [loss.lost_s for loss in told if loss.reason is not BlameReason.INFEASIBLE]
    assert sum(without_plan) <= story.e2e_s + 1e-6


def test_of_parallel_steps_only_the_one_that_ended_last_counts():
    """The short branch lost more seconds, but the run would have ended no sooner without them."""
    story = run(
        9.0,
        step(0, 2.5, "plan", call(0), downstream_s=4.0),
        step(2.5, 6.0, "search", planned_s=0.5, parents=["plan"]),
        step(2.5, 9.0, "write", call(2.5, held_s=2.0, decode_s=4.0), parents=["plan"], node="write", planned_s=4.0),
        slo_s=6.0,
    )
    assert [loss.node for loss in losses(story)] == ["write", "write"]
    assert blame(story).node == "write"


def test_the_time_of_a_join_is_charged_to_its_slowest_parent():
    story = run(
        9.0,
        step(0, 1.0, "a", planned_s=1.0, downstream_s=2.5),
        step(0, 6.5, "b", planned_s=1.0, downstream_s=2.5),
        step(6.5, 9.0, "join", call(6.5), parents=["a", "b"]),
    )
    assert blame(story) == Blame(BlameReason.TOOL, "b", "b", pytest.approx(5.5))


def test_a_step_around_others_is_not_counted_twice():
    story = run(
        7.5,
        step(0, 7.5, "team", planned_s=2.5, kind="llm"),
        step(0, 7.5, "inner", call(0, held_s=5.0), node="team:plan"),
    )
    assert blame(story) == Blame(BlameReason.QUEUE_WAIT, "inner", "team:plan", pytest.approx(5.0))


def test_calls_of_one_step_that_run_at_once_count_once():
    slow, quick = call(0, decode_s=7.0, name="slow"), call(0, held_s=2.0, name="quick")
    story = run(7.5, step(0, 7.5, "plan", slow, quick))
    assert [(loss.reason, round(loss.lost_s, 6)) for loss in losses(story)] == [("slow_instance", 5.0)]


def test_a_gap_that_the_forecast_expected_is_no_loss():
    """A client that always takes 3 s between two steps; this time a call waited for 2.5 s."""
    story = run(
        10.5,
        step(0, 2.5, "plan", call(0), downstream_s=5.5),
        step(5.5, 10.5, "write", call(5.5, held_s=2.5)),
        slo_s=9.0,
    )
    assert blame(story).reason is BlameReason.QUEUE_WAIT


def test_a_failed_run_is_blamed_on_the_first_step_that_failed():
    story = run(3.0, step(0, 2.5, "plan", call(0)), step(2.5, 3.0, "fetch", outcome="failed"), status="failed")
    assert blame(story) == Blame(BlameReason.FAILURE, "fetch", "fetch", pytest.approx(3.0))


def test_a_run_cancelled_in_time_is_blamed_on_that_and_a_late_one_on_what_made_it_late():
    assert blame(run(2.0, status="cancelled")).reason is BlameReason.CANCELLED
    late = run(7.5, step(0, 7.5, "plan", call(0, held_s=5.0)), status="cancelled")
    assert blame(late).reason is BlameReason.QUEUE_WAIT


@pytest.mark.parametrize("story", [run(3.0, slo_s=4.0), tell_run(whole_run())])
def test_a_run_that_kept_its_slo_has_nothing_to_blame(story):
    assert blame(story) is None


def test_a_run_without_slo_or_end_has_nothing_to_blame():
    submitted = event(Kind.RUN_SUBMITTED, 0.0, workflow="w", slo_s=None, deadline_s=None)
    ended = event(Kind.RUN_FINISHED, 9.0, status="failed", e2e_s=9.0, attained=None, error="gone")
    assert blame(tell_run([submitted, ended])) is None
    going_on = event(Kind.RUN_SUBMITTED, 0.0, workflow="w", slo_s=4.0, deadline_s=START_S + 4.0)
    assert blame(tell_run([going_on, *step(0, 7.5, "plan", call(0, held_s=5.0))])) is None


def test_a_late_run_of_which_nothing_is_known_lost_its_time_at_the_client():
    assert blame(run(9.0)) == Blame(BlameReason.CLIENT, None, None, pytest.approx(9.0))


def test_what_the_gateway_said_at_the_end_is_believed_and_else_worked_out():
    story = LATE["long tool"][0]
    assert told_blame(story).reason is BlameReason.TOOL
    story.blame = {"reason": "retry", "step_id": "s", "node": "n", "lost_s": 1.0}
    said = told_blame(story)
    story.blame = {"reason": "of a later version"}
    assert (said.reason, told_blame(story).reason) == (BlameReason.RETRY, BlameReason.TOOL)


def test_a_blame_survives_the_journal():
    one = Blame(BlameReason.TOOL, "s", "n", 1.5)
    assert blame_of_plain(one.to_plain()) == one
