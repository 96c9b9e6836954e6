"""When would runs have ended by our placements? Made-up journals with known answers."""

import pytest

from agentserve.journal import Kind
from agentserve.telemetry.foreseen import ended_s, foreseen, took_s
from agentserve.telemetry.story import RunTeller
from tests.unit.made_up_run import (
    RUN,
    START_S,
    arrived,
    decided,
    dispatch,
    event,
    finished,
    run_still_going,
    submitted,
    whole_run,
)


def story_of(events):
    teller = RunTeller(RUN, START_S)
    for one in events:
        teller.take(one)
    return teller.story


def shadow(ready_s, token_s, *, taken=(0.5, 0.01), decode="h200-1"):
    """Our choice and its times; `taken`: what was predicted where the call went."""
    return {
        "policy": "agentserve",
        "rule": "most runs in time",
        "prefill_instance": decode,
        "decode_instance": decode,
        "ready_s": ready_s,
        "token_s": token_s,
        "taken_ready_s": taken[0],
        "taken_token_s": taken[1],
    }


def llm_step(step, start_s, end_s, told=None, *, tokens=100, parents=(), decided_after_s=0.0, **ends):
    """A step that is one call from its begin to its end, sent to a100-1."""
    name = f"c-{step}"
    sent = dispatch(name, 1, "a100-1", "a100-1") | {"shadow": told}
    return [
        event(Kind.STEP_STARTED, start_s, step, node=step, kind="llm", parents=list(parents)),
        arrived(start_s, step, name, step),
        decided(start_s + decided_after_s, step, name, sent),
        finished(end_s, step, name, output_tokens=tokens, **ends),
        event(Kind.STEP_FINISHED, end_s, step, node=step, outcome="ok", error=None),
    ]


def tool_step(step, start_s, end_s, parents=()):
    return [
        event(Kind.STEP_STARTED, start_s, step, node=step, kind="tool", parents=list(parents)),
        event(Kind.STEP_FINISHED, end_s, step, node=step, outcome="ok", error=None),
    ]


def ended(at_s, slo_s=10.0, status="succeeded"):
    return event(Kind.RUN_FINISHED, at_s, status=status, e2e_s=at_s, attained=slo_s and at_s <= slo_s, error=None)


def run(*parts, end_s, slo_s=10.0, status="succeeded"):
    return story_of([submitted(slo_s=slo_s), *(one for part in parts for one in part), ended(end_s, slo_s, status)])


def test_a_call_takes_what_was_predicted_for_its_true_length():
    """Really 4 s; by ours 0.2 + 100 · 0.005 = 0.7 s, where it went 0.5 + 100 · 0.01 = 1.5 s."""
    told = foreseen(run(llm_step("plan", 1.0, 5.0, shadow(0.2, 0.005)), end_s=5.5))
    assert told is not None
    assert told.e2e_s == pytest.approx(1.0 + 0.7 + 0.5)
    assert told.taken_e2e_s == pytest.approx(1.0 + 1.5 + 0.5)
    assert (told.calls, told.elsewhere, told.kept) == (1, 1, 0)


def test_tools_and_the_client_take_what_they_took():
    steps = (
        llm_step("plan", 0.0, 4.0, shadow(0.5, 0.005)),
        tool_step("fetch", 4.25, 6.25, parents=["plan"]),
        llm_step("answer", 6.5, 9.5, shadow(0.5, 0.005), parents=["fetch"]),
    )
    told = foreseen(run(*steps, end_s=10.0))
    assert told is not None
    assert told.e2e_s == pytest.approx(1.0 + 0.25 + 2.0 + 0.25 + 1.0 + 0.5)


def test_the_longest_of_parallel_branches_counts_as_it_would_have_been():
    steps = (
        llm_step("short", 0.0, 2.0, shadow(3.0, 0.0)),
        llm_step("long", 0.0, 5.0, shadow(1.0, 0.0)),
        llm_step("join", 5.0, 6.0, shadow(0.5, 0.0), parents=["short", "long"]),
    )
    told = foreseen(run(*steps, end_s=6.0))
    assert told is not None
    assert told.e2e_s == pytest.approx(3.0 + 0.5)


def test_a_step_of_known_parents_does_not_wait_for_others():
    steps = (
        llm_step("a", 0.0, 1.0, shadow(0.5, 0.0)),
        llm_step("other", 0.0, 2.0, shadow(8.0, 0.0)),
        llm_step("b", 3.0, 4.0, shadow(0.5, 0.0), parents=["a"]),
    )
    told = foreseen(run(*steps, end_s=4.0))
    assert told is not None
    assert told.e2e_s == pytest.approx(8.0)  # `other` ends last; b would have ended after 0.5 + 2.0 + 0.5


def test_the_wait_at_the_gateway_is_part_of_what_a_call_takes():
    told = foreseen(run(llm_step("plan", 0.0, 4.0, shadow(0.5, 0.0), decided_after_s=1.5), end_s=4.0))
    assert told is not None
    assert told.e2e_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("own_s", "taken_s", "attained", "taken_attained"), [(2.0, 3.0, True, True), (2.0, 30.0, True, False)]
)
def test_attainment_is_told_for_both(own_s, taken_s, attained, taken_attained):
    told = foreseen(run(llm_step("plan", 0.0, 4.0, shadow(own_s, 0.0, taken=(taken_s, 0.0))), end_s=4.0))
    assert told is not None
    assert (told.attained, told.taken_attained) == (attained, taken_attained)


def test_a_run_of_which_a_call_would_have_been_kept_is_not_in_time():
    kept = shadow(None, None, taken=(0.5, 0.0), decode=None)
    told = foreseen(run(llm_step("plan", 0.0, 4.0, kept), end_s=4.0))
    assert told is not None
    assert (told.attained, told.taken_attained, told.kept, told.elsewhere) == (False, True, 1, 0)
    assert told.e2e_s == told.taken_e2e_s == pytest.approx(0.5)


def test_a_run_that_failed_would_not_have_been_in_time_either():
    told = foreseen(run(llm_step("plan", 0.0, 4.0, shadow(0.1, 0.0)), end_s=4.0, status="failed"))
    assert told is not None
    assert (told.attained, told.taken_attained) == (False, False)


def test_without_an_slo_nothing_is_attained_or_missed():
    told = foreseen(run(llm_step("plan", 0.0, 4.0, shadow(0.1, 0.0)), end_s=4.0, slo_s=None))
    assert told is not None
    assert (told.attained, told.taken_attained) == (None, None)


def test_calls_that_were_not_foreseen_take_what_they_took():
    steps = (llm_step("plan", 0.0, 4.0, shadow(0.5, 0.0)), llm_step("answer", 4.0, 7.0))
    told = foreseen(run(*steps, end_s=7.0))
    assert told is not None
    assert told.e2e_s == pytest.approx(0.5 + 3.0)
    assert told.calls == 1


@pytest.mark.parametrize("events", [whole_run(), run_still_going()])
def test_runs_without_shadows_or_without_an_end_are_not_estimated(events):
    assert foreseen(story_of(events)) is None


def test_the_same_choice_is_not_elsewhere():
    told = foreseen(run(llm_step("plan", 0.0, 4.0, shadow(0.5, 0.0, decode="a100-1")), end_s=4.0))
    assert told is not None
    assert (told.calls, told.elsewhere) == (1, 0)


def test_a_made_up_run_ends_when_it_did_if_calls_take_what_they_took():
    assert ended_s(story_of(whole_run()), took_s) == pytest.approx(START_S + 9.5)
