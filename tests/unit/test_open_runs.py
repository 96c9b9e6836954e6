"""What is kept of runs that go on, and what is said when one ends late."""

from agentserve.journal import Kind, RunEvent
from agentserve.telemetry.open_runs import OpenRuns
from tests.unit.made_up_run import RUN, START_S, event, plan_step, run_still_going, submitted, whole_run


def end(at_s, **data):
    return event(Kind.RUN_FINISHED, at_s, **({"status": "succeeded", "e2e_s": at_s, "attained": False} | data))


def taken(events, **options):
    runs = OpenRuns(**options)
    for one in events:
        runs.record(one)
    return runs


def test_a_run_that_ends_late_is_blamed_on_what_it_lost():
    """The tool took 7 s of the run; of a tool without a plan every second is lost."""
    events = [submitted(slo_s=4.0), *plan_step(), event(Kind.STEP_STARTED, 2.4, "fetch", node="fetch", kind="tool")]
    said = taken([*events, event(Kind.STEP_FINISHED, 9.4, "fetch", node="fetch", outcome="ok")]).blame(end(9.4))
    assert (said["reason"], said["step_id"], said["node"]) == ("tool", "fetch", "fetch")
    assert round(said["lost_s"], 6) == 7.0


def test_a_run_that_kept_its_slo_or_is_not_known_gets_no_blame():
    assert taken(run_still_going()).blame(whole_run()[-1]) is None
    assert OpenRuns().blame(end(99.0)) is None


def test_a_run_that_another_gateway_began_is_blamed_from_its_journal():
    begun = [submitted(slo_s=4.0), *plan_step(), event(Kind.STEP_STARTED, 2.4, "fetch", node="fetch", kind="tool")]
    runs = taken(begun[:3])
    runs.restore(begun)
    runs.record(event(Kind.STEP_FINISHED, 9.4, "fetch", node="fetch", outcome="ok"))
    assert runs.blame(end(9.4))["reason"] == "tool"


def test_an_ended_run_is_let_go_and_a_call_that_outlives_it_does_not_bring_it_back():
    runs = taken(run_still_going())
    assert len(runs) == 1
    runs.record(end(9.0))
    runs.record(event(Kind.CALL_FINISHED, 9.1, "write", "c-w", outcome="cancelled"))
    assert len(runs) == 0


def test_runs_without_an_end_are_bounded_in_number_and_age():
    def begun(number, at_s):
        return RunEvent(run_id=f"r{number}", kind=Kind.RUN_SUBMITTED, at_s=START_S + at_s, data={})

    assert len(taken([begun(number, number) for number in range(9)], max_runs=3)) == 3
    assert len(taken([begun(0, 0.0), begun(1, 30.0), begun(2, 90.0)], max_age_s=60.0)) == 1


def test_malformed_events_never_raise(caplog):
    for kind in Kind:
        for data in ({}, {"reason": 3}, {"decision": "dispatch", "attempt": "x"}, {"blame": 1}):
            runs = taken([submitted()])
            runs.record(RunEvent(run_id=RUN, kind=kind, at_s=START_S, step_id="s", request_id="c", data=data))
            runs.blame(end(99.0))
