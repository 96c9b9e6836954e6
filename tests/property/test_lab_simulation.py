"""Simulations repeat bit for bit, lose nothing, and let no policy see what is still to come."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentserve.lab.options import Fault, FaultKind, SimulatedInstance, SimulationOptions
from agentserve.lab.plans import RunPlan, StepPlan, Workload
from agentserve.lab.results import SimulationResult
from agentserve.lab.simulation import simulate
from agentserve.lab.virtual_engine import VirtualEngine
from scheduler.core import Scheduler
from scheduler.events import InstanceSpec, Role
from scheduler.policies import policy_names
from scheduler.policies.round_robin import RoundRobin
from scheduler.profiles import load_profile
from workflows.graph import END, START, declare

MODEL = "llama-3.1-8b"
WORKFLOW = declare("w", [(START, "n"), ("tools", "n")], choices={"n": ["n", "tools", END]}, tools=["tools"])


class PoisonedStep(StepPlan):
    """A step whose future cannot be read while the scheduler decides."""

    __slots__ = ()
    is_watched = False

    def _read(self, name: str) -> Any:
        if PoisonedStep.is_watched:
            raise AssertionError(f"the scheduler read {name} of a plan")
        return getattr(StepPlan, name).__get__(self)

    output_tokens = property(  # type: ignore[assignment]  # it stands for the field
        lambda self: self._read("output_tokens"),
        lambda self, value: StepPlan.output_tokens.__set__(self, value),  # type: ignore[attr-defined]
    )
    tool_gap_s = property(  # type: ignore[assignment]  # likewise
        lambda self: self._read("tool_gap_s"),
        lambda self, value: StepPlan.tool_gap_s.__set__(self, value),  # type: ignore[attr-defined]
    )


class PoisonedRun(RunPlan):
    """A run whose steps to come cannot be read while the scheduler decides."""

    __slots__ = ()
    steps = property(  # type: ignore[assignment]  # it stands for the field
        lambda self: PoisonedStep._read(self, "steps") if PoisonedStep.is_watched else RunPlan.steps.__get__(self),  # type: ignore[attr-defined,arg-type]
        lambda self, value: RunPlan.steps.__set__(self, value),  # type: ignore[attr-defined]
    )


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading a plan raises while Scheduler.handle is on the stack."""
    handle = Scheduler.handle

    def guarded(self: Scheduler, event: Any, now_s: float) -> Any:
        PoisonedStep.is_watched = True
        try:
            return handle(self, event, now_s)
        finally:
            PoisonedStep.is_watched = False

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "handle", guarded)
        yield


def instance(name: str, gpu: str, kv_tokens: int = 60_000, role: Role = Role.MIXED) -> SimulatedInstance:
    profile = load_profile(gpu, MODEL)
    spec = InstanceSpec(
        instance_id=name,
        model=MODEL,
        gpu=gpu,
        role=role,
        kv_capacity_tokens=kv_tokens,
        block_tokens=64,
        max_num_seqs=8,
        max_batched_tokens=2048,
        kv_bytes_per_token=profile.kv_bytes_per_token,
        kv_link_bytes_per_s=profile.kv_link_bytes_per_s,
        kv_group="g",
        supports_priority=True,
        supports_replay=True,
    )
    return SimulatedInstance(spec=spec)


FLEET = (instance("a", "a100-80g"), instance("b", "h100"), instance("c", "h200"))


def workload(runs: int, *, step: type[StepPlan] = StepPlan, run: type[RunPlan] = RunPlan) -> Workload:
    """Runs of one to three calls, alone, in a chain and side by side, that share prefixes."""
    plans = []
    for i in range(runs):
        steps = []
        for j in range(1 + i % 3):
            parents = () if j == 0 else ("s0",) if i % 2 else (f"s{j - 1}",)
            steps.append(
                step(
                    step_id=f"s{j}",
                    node="n",
                    prompt_tokens=500 + 300 * (i % 7) + 700 * j,
                    output_tokens=20 + 37 * ((i + j) % 5),
                    parents=parents,
                    tool_gap_s=0.4 * (j % 2),
                    blocks=((0, 6 + 5 * j), (1000 * (i % 4 + 1), 2)),
                    block_tokens=64.0,
                    block_space="shared",
                )
            )
        plans.append(run(run_id=f"r{i}", workflow="w", arrival_s=0.15 * i, session_id=f"q{i % 4}", steps=tuple(steps)))
    return Workload(source="made up", plans=tuple(plans), workflows={"w": WORKFLOW})


def slos(load: Workload) -> dict[str, float]:
    return {plan.run_id: 1.0 + (i % 5) for i, plan in enumerate(load.plans)}


def digest(result: SimulationResult) -> str:
    """Everything that a result says but how long it took."""
    replay = result.replay
    told = repr((replay.runs, replay.calls, replay.placements, result.instances, result.samples, result.events))
    return hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.parametrize("policy", ["agentserve", "random", "hexagent"])
def test_the_same_seed_gives_the_same_result_bit_for_bit_in_any_process(policy: str) -> None:
    load = workload(25)
    here = digest(simulate(load, slos(load), FLEET, model=MODEL, policy=policy, seed=3))
    code = (
        "from tests.property.test_lab_simulation import *\n"
        f"load = workload(25)\nprint(digest(simulate(load, slos(load), FLEET, model=MODEL, policy={policy!r}, seed=3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == here


def test_another_seed_draws_otherwise() -> None:
    load = workload(25)
    one, other = (digest(simulate(load, slos(load), FLEET, model=MODEL, policy="random", seed=seed)) for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize("policy", [name for name in policy_names() if not name.startswith("oracle_")])
def test_no_policy_can_read_the_future(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = workload(12, step=PoisonedStep, run=PoisonedRun)
    with watched(monkeypatch):
        result = simulate(load, slos(load), FLEET, model=MODEL, policy=policy)
    assert len(result.replay.runs) == 12


@pytest.mark.parametrize("name", ["output_tokens", "tool_gap_s", "steps"])
def test_a_policy_that_peeks_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = workload(2, step=PoisonedStep, run=PoisonedRun)
    first = load.plans[0].steps[0]
    place = RoundRobin.place

    def peek(self: RoundRobin, call: Any, state: Any, now_s: float) -> Any:
        getattr(load.plans[0] if name == "steps" else first, name)
        return place(self, call, state, now_s)

    monkeypatch.setattr(RoundRobin, "place", peek)
    with watched(monkeypatch), pytest.raises(AssertionError, match=f"read {name} of a plan"):
        simulate(load, slos(load), FLEET, model=MODEL, policy="round_robin")


FAULTS = st.lists(
    st.tuples(st.floats(0.1, 6.0), st.sampled_from("abc"), st.sampled_from(FaultKind), st.sampled_from([0.5, 3.0])),
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=st.sampled_from(policy_names()), drawn=FAULTS, kv_tokens=st.sampled_from([5_000, 60_000]))
def test_every_request_ends_once_and_kv_stays_within_its_bounds(
    policy: str, drawn: list[Any], kv_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_s, go_on = 0.0, VirtualEngine._go_on

    def checked(self: VirtualEngine, turn: int) -> None:
        nonlocal last_s
        assert self.kernel.now_s >= last_s
        last_s = self.kernel.now_s
        go_on(self, turn)
        self.engine.check_integrity()

    faults = [Fault(at_s=at_s, instance_id=name, kind=kind, factor=factor) for at_s, name, kind, factor in drawn]
    # Whatever is lost or drained comes back in the end, so that everything can be served.
    faults += [Fault(at_s=8.0 + i, instance_id=name, kind=FaultKind.LOST) for i, name in enumerate("abc")]
    faults += [Fault(at_s=8.5 + i, instance_id=name, kind=FaultKind.BACK) for i, name in enumerate("abc")]
    fleet = [instance(one.spec.instance_id, one.spec.gpu, kv_tokens) for one in FLEET]
    load = workload(20)
    with monkeypatch.context() as patch:
        patch.setattr(VirtualEngine, "_go_on", checked)
        options = SimulationOptions(faults=tuple(sorted(faults, key=lambda fault: fault.at_s)))
        result = simulate(load, slos(load), fleet, model=MODEL, policy=policy, options=options)
    _check_records(load, result)


def _check_records(load: Workload, result: SimulationResult) -> None:
    ended = Counter(record.request_id for record in result.replay.calls)
    assert not [name for name, times in ended.items() if times > 1]
    assert sorted(run.run_id for run in result.replay.runs) == sorted(plan.run_id for plan in load.plans)
    succeeded = {run.run_id for run in result.replay.runs if run.succeeded}
    lengths: Mapping[str, int] = {
        f"{plan.run_id}.{step.step_id}": step.output_tokens for plan in load.plans for step in plan.steps
    }
    for record in result.replay.calls:
        assert record.arrived_s <= (record.first_token_s or record.arrived_s) <= record.finished_s
        assert not record.ok or record.output_tokens == lengths[record.request_id]
    expected = sum(len(plan.steps) for plan in load.plans if plan.run_id in succeeded)
    assert sum(record.ok for record in result.replay.calls if record.run_id in succeeded) == expected
    assert all(0.0 <= sample.kv_usage <= 1.0 for sample in result.samples)
