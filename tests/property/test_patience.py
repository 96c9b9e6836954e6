"""A waiting call that gives way is asked about in short: never with another outcome than if it were priced."""

from dataclasses import replace
from typing import Any

import pytest

from agentserve.lab.options import Fault, FaultKind, SimulationOptions
from agentserve.lab.simulation import simulate
from scheduler.call import Call
from scheduler.policies.agentserve import AgentServe
from scheduler.policy import Wait
from scheduler.state import ClusterState
from tests.property.test_lab_simulation import FLEET, MODEL, SPLIT_FLEET, digest, workload

FAULTS = (
    Fault(at_s=3.0, instance_id="a", kind=FaultKind.LOST),
    Fault(at_s=4.0, instance_id="a", kind=FaultKind.BACK),
    Fault(at_s=6.0, instance_id="c", kind=FaultKind.DRAIN),
)


@pytest.mark.parametrize("fleet", [FLEET, SPLIT_FLEET], ids=["mixed", "split"])
def test_a_call_that_is_told_in_short_to_wait_would_be_told_so_by_its_price(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = workload(90)
    load = replace(load, plans=tuple(replace(plan, arrival_s=plan.arrival_s / 3) for plan in load.plans))
    slos = {plan.run_id: 0.5 + i % 4 for i, plan in enumerate(load.plans)}
    options = SimulationOptions(faults=FAULTS)
    still_waits, told = AgentServe.still_waits, list[bool]()

    def run() -> str:
        return digest(simulate(load, slos, fleet, model=MODEL, policy="agentserve", seed=3, options=options))

    def checked(self: AgentServe, call: Call, state: ClusterState, now_s: float) -> bool:
        told.append(still_waits(self, call, state, now_s))
        if told[-1]:
            assert isinstance(self.place(call, state, now_s), Wait)
        return told[-1]

    monkeypatch.setattr(AgentServe, "still_waits", checked)
    in_short = run()
    assert sum(told) > 20  # else the load is too light to say anything
    monkeypatch.setattr(AgentServe, "still_waits", lambda *_: False)
    assert run() == in_short
