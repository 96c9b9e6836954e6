"""How does a workload go under a policy, on given instances? The live scheduler and tracker code in virtual time.

Every run is a deterministic function of the arguments: the same give the same records, bit for bit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agentserve.errors import BadInput
from agentserve.lab.kernel import Kernel
from agentserve.lab.options import Fault, FaultKind, SimulatedInstance, SimulationOptions
from agentserve.lab.plans import Workload
from agentserve.lab.results import InstanceSample, InstanceUse, ReplayResult, SimulationResult
from agentserve.lab.virtual_calls import LiveCall, VirtualCalls
from agentserve.lab.virtual_fleet import Seat
from agentserve.lab.virtual_runs import VirtualRuns
from agentserve.records import CallRecord, RunRecord
from scheduler.config import SchedulerConfig
from scheduler.core import Scheduler, make_scheduler
from scheduler.errors import SchedulerError
from scheduler.profiles import load_profile
from scheduler.state import Profiles

__all__ = ["Fault", "FaultKind", "SimulatedInstance", "SimulationOptions", "SimulationProgress", "simulate"]

_SAMPLES: Final = 200
_TELL_EVERY: Final = 50


@dataclass(slots=True)
class SimulationProgress:
    """How far a simulation is; the same object is handed over every few runs."""

    runs_total: int
    runs_done: int = 0
    runs_attained: int = 0
    output_tokens: int = 0
    virtual_s: float = 0.0


def simulate(
    workload: Workload,
    slos: Mapping[str, float],
    instances: Sequence[SimulatedInstance],
    *,
    model: str,
    policy: str,
    params: Mapping[str, Any] | None = None,
    config: SchedulerConfig | None = None,
    profiles: Profiles = load_profile,
    seed: int = 0,
    options: SimulationOptions | None = None,
    slo_rule: str = "",
    on_progress: Callable[[SimulationProgress], None] | None = None,
) -> SimulationResult:
    """Play the workload to its end. `slos`: seconds by run id; `params`: the policy's own parameters.

    Raises BadInput for what cannot be simulated (an unknown policy or GPU, no instances, a prompt that fits nowhere).
    """
    options = options or SimulationOptions()
    config = config or SchedulerConfig()
    if options.length_error != 1.0:
        config = replace(config, length=replace(config.length, bias=config.length.bias * options.length_error))
    if not instances:
        raise BadInput("a simulation needs at least one instance")
    began_s = time.perf_counter()
    try:
        scheduler = make_scheduler(policy, config, seed, profiles, params)
        simulation = _Simulation(workload, slos, instances, scheduler, model, profiles, options, on_progress)
    except SchedulerError as error:
        raise BadInput(f"simulation: {error}") from None
    simulation.run()
    scheduler.check_integrity()
    replayed = ReplayResult(
        policy=policy,
        source=workload.source,
        model=model,
        speed=1.0,
        seed=seed,
        slo=slo_rule or ("given per run" if slos else "none"),
        started_s=0.0,
        finished_s=simulation.kernel.now_s,
        calls=tuple(simulation.records),
        runs=tuple(simulation.runs_ended),
        placements=tuple(simulation.calls.placements),
        notes=workload.notes,
        errors=dict(sorted(simulation.calls.errors.items())),
    )
    return SimulationResult(
        replay=replayed,
        instances=tuple(simulation.uses()),
        samples=tuple(simulation.samples),
        events=simulation.kernel.events,
        wall_s=time.perf_counter() - began_s,
    )


class _Simulation:
    """Kernel, runs, calls and the ticks that go on beside them."""

    def __init__(
        self,
        workload: Workload,
        slos: Mapping[str, float],
        instances: Sequence[SimulatedInstance],
        scheduler: Scheduler,
        model: str,
        profiles: Profiles,
        options: SimulationOptions,
        on_progress: Callable[[SimulationProgress], None] | None,
    ) -> None:
        self.kernel = Kernel()
        self.records: list[CallRecord] = []
        self.runs_ended: list[RunRecord] = []
        self.samples: list[InstanceSample] = []
        self._options = options
        self._on_progress = on_progress
        self._progress = SimulationProgress(len(workload.plans))
        self.calls = VirtualCalls(self.kernel, scheduler, instances, profiles, model, options, self._call_ended)
        self.runs = VirtualRuns(
            self.kernel,
            workload,
            slos,
            begin=self.calls.begin,
            move=self.calls.move_deadlines,
            cancel=self.calls.cancel,
            on_run_end=self._run_ended,
        )
        last_s = workload.plans[-1].arrival_s if workload.plans else 0.0
        self._sample_s = max(last_s / _SAMPLES, 1.0)
        self._gone: list[Seat] = []
        for fault in options.faults:
            self.kernel.at(fault.at_s, self._fault, fault)
        for index, seat in enumerate(self.calls.seats.values()):
            self.kernel.at(options.report_period_s * index / len(instances), self._report, seat.given.spec.instance_id)
        self.kernel.at(options.progress_s, self._tell_progress)
        self.kernel.at(0.0, self._sample)

    def run(self) -> None:
        """Play everything to its end."""
        if not self.runs.is_done:
            self.kernel.run(self._options.max_virtual_s)

    def uses(self) -> list[InstanceUse]:
        """What each instance did, in order of their ids; one that died and came back counts once."""
        found: dict[str, InstanceUse] = {}
        gone = [seat for seat in self._gone if self.calls.seats[seat.given.spec.instance_id] is not seat]
        for seat in (*gone, *self.calls.seats.values()):
            counters, spec = seat.virtual.engine.counters, seat.given.spec
            before = found.get(spec.instance_id)
            own = InstanceUse(
                instance_id=spec.instance_id,
                gpu=spec.gpu,
                busy_s=counters.busy_s,
                prefill_tokens=counters.prefill_tokens,
                cached_tokens=counters.prefix_hits,
                output_tokens=counters.generation_tokens,
                preemptions=counters.preemptions,
                calls=counters.requests,
            )
            found[spec.instance_id] = own if before is None else _sum(before, own)
        return [found[name] for name in sorted(found)]

    def _call_ended(self, call: LiveCall, record: CallRecord) -> None:
        self.records.append(record)
        self._progress.output_tokens += record.output_tokens
        self.runs.call_ended(call.begun.run, call.begun.step, ok=record.ok)

    def _run_ended(self, record: RunRecord) -> None:
        self.runs_ended.append(record)
        self.calls.run_ended(record.run_id, succeeded=record.succeeded)
        progress = self._progress
        progress.runs_done += 1
        progress.runs_attained += record.attained is True
        progress.virtual_s = self.kernel.now_s
        if self.runs.is_done:
            self.kernel.stop()
        if self._on_progress is not None and (progress.runs_done % _TELL_EVERY == 0 or self.runs.is_done):
            self._on_progress(progress)

    def _report(self, instance_id: str) -> None:
        self.calls.fleet.report(instance_id)
        self.kernel.after(self._options.report_period_s, self._report, instance_id)

    def _tell_progress(self) -> None:
        self.calls.tell_progress()
        self.kernel.after(self._options.progress_s, self._tell_progress)

    def _sample(self) -> None:
        for name, seat in self.calls.seats.items():
            state = seat.virtual.engine.state
            self.samples.append(
                InstanceSample(
                    at_s=self.kernel.now_s,
                    instance_id=name,
                    running=state.running if seat.is_live else 0,
                    waiting=state.waiting if seat.is_live else 0,
                    kv_usage=state.kv_usage if seat.is_live else 0.0,
                )
            )
        self.kernel.after(self._sample_s, self._sample)

    def _fault(self, fault: Fault) -> None:
        if fault.instance_id not in self.calls.seats:
            raise BadInput(f"simulation: a fault names the unknown instance {fault.instance_id!r}")
        match fault.kind:
            case FaultKind.LOST:
                self._gone.append(self.calls.seats[fault.instance_id])
                self.calls.lose(fault.instance_id)
            case FaultKind.BACK:
                self.calls.fleet.come_back(fault.instance_id)
            case FaultKind.SLOW:
                self.calls.fleet.slow_down(fault.instance_id, fault.factor)
            case FaultKind.DRAIN:
                self.calls.fleet.drain(fault.instance_id)


def _sum(left: InstanceUse, right: InstanceUse) -> InstanceUse:
    names = ("busy_s", "prefill_tokens", "cached_tokens", "output_tokens", "preemptions", "calls")
    return replace(left, **{name: getattr(left, name) + getattr(right, name) for name in names})
