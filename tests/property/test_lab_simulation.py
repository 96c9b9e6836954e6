"""Simulations repeat bit for bit, lose nothing, and let no policy see what is still to come."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentserve.lab.options import Fault, FaultKind, SimulatedInstance, SimulationOptions
from agentserve.lab.plans import RunPlan, StepPlan, Workload
from agentserve.lab.results import SimulationResult
from agentserve.lab.simulation import simulate
from agentserve.lab.virtual_calls import VirtualCalls
from agentserve.lab.virtual_engine import VirtualEngine
from agentserve.lab.virtual_runs import BegunCall
from scheduler import events
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
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[events.Event]]:
    """Reading a plan raises while Scheduler.handle is on the stack; gives the events it was asked about."""
    handle, asked = Scheduler.handle, list[events.Event]()

    def guarded(self: Scheduler, event: Any, now_s: float) -> Any:
        asked.append(event)
        PoisonedStep.is_watched = True
        try:
            return handle(self, event, now_s)
        finally:
            PoisonedStep.is_watched = False

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "handle", guarded)
        yield asked


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
SPLIT_FLEET = (
    instance("a", "a100-80g", role=Role.PREFILL),
    instance("b", "h100", role=Role.DECODE),
    instance("c", "h200"),
)


def workload(runs: int, *, step: type[StepPlan] = StepPlan, run: type[RunPlan] = RunPlan) -> Workload:
    """Runs of one to three calls in a chain or side by side that share prefixes."""
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
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == here


def test_another_seed_draws_otherwise() -> None:
    load = workload(25)
    one, other = (digest(simulate(load, slos(load), FLEET, model=MODEL, policy="random", seed=seed)) for seed in (1, 2))
    assert one != other


def test_a_split_call_reports_the_prefix_that_its_prefill_instance_had() -> None:
    load = workload(25)
    calls = simulate(load, slos(load), SPLIT_FLEET[:2], model=MODEL, policy="agentserve").replay.calls
    assert {call.split for call in calls} == {True}
    assert any(call.cached_tokens for call in calls)


@pytest.mark.parametrize("fleet", [FLEET, SPLIT_FLEET], ids=["mixed", "split"])
@pytest.mark.parametrize("policy", policy_names())
def test_no_policy_can_read_the_future(
    policy: str, fleet: tuple[SimulatedInstance, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = workload(12, step=PoisonedStep, run=PoisonedRun)
    with watched(monkeypatch) as asked:
        result = simulate(load, slos(load), fleet, model=MODEL, policy=policy)
    assert len(result.replay.runs) == 12
    assert len(asked) > len(result.replay.calls)


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
STEPS = st.tuples(
    st.integers(1, 4_000) | st.just(7_000),  # the last fits only where there is room for it
    st.integers(1, 150),
    st.sampled_from(["", "first", "last"]),
    st.sampled_from([0.0, 0.0, 0.4]),
)
RUNS = st.lists(
    st.tuples(
        st.floats(0.0, 1.0),
        st.integers(0, 3),
        st.sampled_from([0.3, 2.0, 9.0]) | st.none(),
        st.lists(STEPS, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=12,
)
ROLES = st.sampled_from([(Role.MIXED,) * 3, (Role.PREFILL, Role.DECODE, Role.MIXED)])


def drawn_workload(runs: list[Any]) -> tuple[Workload, dict[str, float]]:
    """Runs of four families of prompts, with steps at the same time and after each other; and the SLOs of some."""
    plans, given_slos = [], {}
    for i, (at_s, (_, family, slo_s, drawn)) in enumerate(zip(accumulate(run[0] for run in runs), runs, strict=True)):
        steps = []
        for j, (prompt, output, after, gap_s) in enumerate(drawn):
            parents = {"": (), "first": ("s0",), "last": (f"s{j - 1}",)}[after] if j else ()
            steps.append(
                StepPlan(
                    step_id=f"s{j}",
                    node="n",
                    prompt_tokens=prompt,
                    output_tokens=output,
                    parents=parents,
                    tool_gap_s=gap_s,
                    blocks=((1000 * family, 20), (1000 * family + 100 * (j + 1), 50)),
                    block_space="shared",
                )
            )
        plans.append(RunPlan(run_id=f"r{i}", workflow="w", arrival_s=at_s, session_id=f"q{family}", steps=tuple(steps)))
        if slo_s is not None:
            given_slos[f"r{i}"] = slo_s
    return Workload(source="drawn", plans=tuple(plans), workflows={"w": WORKFLOW}), given_slos


class Checked:
    """A simulation whose engines are checked after every turn, and what it was asked to serve."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.calls: VirtualCalls | None = None
        self.last_s = 0.0
        begin, go_on = VirtualCalls.begin, VirtualEngine._go_on

        def checked_begin(calls: VirtualCalls, call: BegunCall) -> None:
            self.calls = calls
            self.begun.append(call.request_id)
            begin(calls, call)

        def checked_go_on(engine: VirtualEngine, turn: int) -> None:
            assert engine.kernel.now_s >= self.last_s
            self.last_s = engine.kernel.now_s
            go_on(engine, turn)
            engine.engine.check_integrity()
            assert 0 <= engine.engine.pool.used <= engine.engine.pool.total

        patch.setattr(VirtualCalls, "begin", checked_begin)
        patch.setattr(VirtualEngine, "_go_on", checked_go_on)


@settings(max_examples=20, deadline=None)
@given(
    policy=st.sampled_from(policy_names()),
    runs=RUNS,
    drawn=FAULTS,
    kv_tokens=st.sampled_from([5_000, 60_000]),
    roles=ROLES,
)
@example(  # a call is given up while the last iteration of its prefill leg runs
    policy="llmd_least",
    runs=[
        (0.2, 1, None, [(3_000, 95, "", 0.0), (7_000, 10, "", 0.2)]),
        (0.0, 2, None, [(100, 150, "", 0.0)]),
    ],
    drawn=[(0.1, "c", FaultKind.LOST, 1.0)],
    kv_tokens=5_000,
    roles=(Role.PREFILL, Role.DECODE, Role.MIXED),
)
@example(  # both calls of the last run are refused at once
    policy="agentserve",
    runs=[(0.0, 0, None, [(7_000, 1, "", 0.0), (7_000, 1, "", 0.0)])],
    drawn=[],
    kv_tokens=5_000,
    roles=(Role.MIXED,) * 3,
)
def test_whatever_fails_every_request_ends_once_and_nothing_is_left_behind(
    policy: str, runs: list[Any], drawn: list[Any], kv_tokens: int, roles: tuple[Role, ...]
) -> None:
    faults = [Fault(at_s=at_s, instance_id=name, kind=kind, factor=factor) for at_s, name, kind, factor in drawn]
    # Whatever is lost or drained comes back in the end, so that everything can be served.
    faults += [Fault(at_s=8.0 + i, instance_id=name, kind=FaultKind.LOST) for i, name in enumerate("abc")]
    faults += [Fault(at_s=8.5 + i, instance_id=name, kind=FaultKind.BACK) for i, name in enumerate("abc")]
    options = SimulationOptions(faults=tuple(sorted(faults, key=lambda fault: fault.at_s)))
    fleet = [
        instance(one.spec.instance_id, one.spec.gpu, kv_tokens, role) for one, role in zip(FLEET, roles, strict=True)
    ]
    load, given_slos = drawn_workload(runs)
    with pytest.MonkeyPatch.context() as patch:
        checked = Checked(patch)
        result = simulate(load, given_slos, fleet, model=MODEL, policy=policy, options=options)
    assert Counter(record.request_id for record in result.replay.calls) == Counter(checked.begun)
    assert Counter(run.run_id for run in result.replay.runs) == Counter(plan.run_id for plan in load.plans)
    _check_lengths(load, result)
    _check_times(load, result)
    assert checked.calls is not None
    assert not checked.calls.calls
    checked.calls._scheduler.check_integrity()
    for seat in checked.calls.seats.values():
        seat.virtual.engine.check_integrity()
        if seat.is_live and not seat.virtual._deferred:  # else an iteration's end would free it
            assert seat.virtual.engine.pool.used == 0


def test_what_a_lost_instance_had_put_out_is_not_put_out_again() -> None:
    load, slos = drawn_workload([(0.0, 1, None, [(100, 400, "", 0.0)])])
    whole = simulate(load, slos, FLEET, model=MODEL, policy="round_robin")
    (call,), (server,) = whole.replay.calls, (use for use in whole.instances if use.output_tokens)
    assert call.first_token_s is not None
    at_s = 0.5 * (call.first_token_s + call.finished_s)
    lost = SimulationOptions(faults=(Fault(at_s=at_s, instance_id=server.instance_id, kind=FaultKind.LOST),))
    result = simulate(load, slos, FLEET, model=MODEL, policy="round_robin", options=lost)
    put_out = [use.output_tokens for use in result.instances if use.output_tokens]
    assert len(put_out) == 2
    assert sum(put_out) == 400


def _check_lengths(load: Workload, result: SimulationResult) -> None:
    """Calls that ended well put out all their tokens, and runs that succeeded made all their calls."""
    lengths = {f"{plan.run_id}.{step.step_id}": step.output_tokens for plan in load.plans for step in plan.steps}
    ok = {record.request_id for record in result.replay.calls if record.ok}
    for record in result.replay.calls:
        assert record.output_tokens == lengths[record.request_id] if record.ok else record.output_tokens >= 0
    succeeded = {run.run_id for run in result.replay.runs if run.succeeded}
    assert succeeded == {
        plan.run_id for plan in load.plans if all(f"{plan.run_id}.{step.step_id}" in ok for step in plan.steps)
    }


def _check_times(load: Workload, result: SimulationResult) -> None:
    """Nothing is recorded before what it follows, and every list is in order of time."""
    replay = result.replay
    ends = {record.request_id: record.finished_s for record in replay.calls}
    plans = {f"{plan.run_id}.{step.step_id}": (plan, step) for plan in load.plans for step in plan.steps}
    for record in replay.calls:
        assert record.arrived_s <= (record.first_token_s or record.arrived_s) <= record.finished_s
        plan, step = plans[record.request_id]
        ready_s = max((ends[f"{plan.run_id}.{parent}"] for parent in step.parents), default=plan.arrival_s)
        assert record.arrived_s >= ready_s + step.tool_gap_s - 1e-9
    for times in (
        [record.finished_s for record in replay.calls],
        [run.finished_s for run in replay.runs],
        [placement.at_s for placement in replay.placements],
        [sample.at_s for sample in result.samples],
    ):
        assert all(before <= after for before, after in pairwise(times))
