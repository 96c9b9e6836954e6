"""However often and whenever the mode of a simulated cluster is switched: every call is served, every run ends."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentserve.lab import simulation
from agentserve.lab.options import Fault, FaultKind, SimulationOptions
from agentserve.lab.results import SimulationResult
from scheduler.core import Scheduler, make_scheduler
from scheduler.decisions import Decision, Dispatch, Migrate
from scheduler.events import Event, Mode, ModeChanged
from tests.property.test_lab_simulation import FLEET, MODEL, SPLIT_FLEET, slos, workload

Switches = Sequence[tuple[float, Mode, str]]
PLAIN = ("least_requests", "random", "round_robin", "session_affinity")
SWITCHES = st.lists(st.tuples(st.floats(0.0, 6.0), st.sampled_from(Mode), st.sampled_from(PLAIN)), max_size=8)


class Switched:
    """A scheduler whose driver switches its mode just before the first event after each of these times."""

    def __init__(self, scheduler: Scheduler, switches: Switches) -> None:
        self._scheduler = scheduler
        self._due = sorted(switches)
        self.mode = Mode.SPLIT
        self.decided: list[tuple[Mode, Decision]] = []

    def handle(self, event: Event, now_s: float) -> list[Decision]:
        decisions: list[Decision] = []
        while self._due and self._due[0][0] <= now_s:
            at_s, self.mode, observed = self._due.pop(0)
            decisions += self._scheduler.handle(
                ModeChanged(event_id=f"m{at_s}", mode=self.mode, observed=observed), now_s
            )
        decisions += self._scheduler.handle(event, now_s)
        self._scheduler.check_integrity()
        self.decided += [(self.mode, decision) for decision in decisions]
        return decisions

    def check_integrity(self) -> None:
        self._scheduler.check_integrity()


def played(switches: Switches, fleet: Any, faults: tuple[Fault, ...] = ()) -> tuple[SimulationResult, Switched]:
    made: list[Switched] = []

    def make(*args: Any) -> Switched:
        made.append(Switched(make_scheduler(*args), switches))
        return made[-1]

    load = workload(24)
    with mock.patch.object(simulation, "make_scheduler", make):
        result = simulation.simulate(
            load, slos(load), fleet, model=MODEL, policy="agentserve", options=SimulationOptions(faults=faults)
        )
    return result, made[0]


@pytest.mark.parametrize("fleet", [FLEET, SPLIT_FLEET], ids=["mixed", "split"])
@given(switches=SWITCHES)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_call_is_lost(fleet: Any, switches: Switches) -> None:
    result, _ = played(switches, fleet)
    assert result.replay.errors == {}
    assert all(call.ok for call in result.replay.calls)
    assert {run.run_id for run in result.replay.runs if run.succeeded} == {f"r{i}" for i in range(24)}


@given(switches=SWITCHES, at_s=st.floats(0.5, 4.0), kind=st.sampled_from([FaultKind.LOST, FaultKind.DRAIN]))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_call_is_lost_when_an_instance_goes_as_well(switches: Switches, at_s: float, kind: FaultKind) -> None:
    result, _ = played(switches, FLEET, (Fault(at_s=at_s, instance_id="c", kind=kind),))
    assert len([run for run in result.replay.runs if run.succeeded]) == 24


@given(switches=SWITCHES)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_decision_exceeds_the_mode_it_was_taken_in(switches: Switches) -> None:
    _, switched = played(switches, FLEET)
    for mode, decision in switched.decided:
        assert not isinstance(decision, Migrate) or mode in (Mode.MIGRATE, Mode.SPLIT)
        if isinstance(decision, Dispatch):
            assert not decision.is_split or mode in (Mode.SPLIT, Mode.OBSERVE)
            assert (decision.shadow is not None) <= (mode is Mode.OBSERVE)
            assert (decision.reason.policy == "agentserve") is (mode is not Mode.OBSERVE)
