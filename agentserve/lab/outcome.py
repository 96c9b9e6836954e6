"""What is kept of one simulation? Its figures, small enough for a line of JSON, each defined here or in records.py."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from agentserve.lab.intervals import attained_share
from agentserve.lab.plans import Workload
from agentserve.lab.results import InstanceUse, SimulationResult, summarise
from agentserve.records import CallRecord, RunRecord, quantile

_TENANT_RUNS: Final = 10
_SHOWN_TENANTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of one simulation; `figures` by name, None where one cannot be formed. Times are virtual seconds."""

    key: str
    policy: str
    params: Mapping[str, Any]
    seed: int
    model: str
    source: str
    slo: str
    figures: Mapping[str, float | None]
    utilisation: Mapping[str, float]
    """Busy share of each instance, from the first submission to the last end."""
    gpu_utilisation: Mapping[str, float]
    """Its mean over the instances of each GPU type."""
    attainment_interval: tuple[float, float] | None
    """95 %, by a bootstrap over this simulation's runs."""
    classes: Mapping[str, float]
    """Attained share by workflow."""
    notes: tuple[str, ...]
    errors: Mapping[str, int]
    events: int
    wall_s: float
    code: str

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON data; `from_plain` reads it back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Outcome":
        """The outcome that `to_plain` gave; KeyError or TypeError for anything else."""
        given = {field.name: data[field.name] for field in fields(cls)}
        interval = given["attainment_interval"]
        given["attainment_interval"] = None if interval is None else (float(interval[0]), float(interval[1]))
        given["notes"] = tuple(given["notes"])
        return cls(**given)


def outcome_of(
    result: SimulationResult, *, key: str, params: Mapping[str, Any], code: str, workload: Workload
) -> Outcome:
    """What is kept of a result of this workload."""
    replay = result.replay
    span_s = _span_s(replay.runs)
    busy = {use.instance_id: use.busy_s / span_s if span_s > 0 else 0.0 for use in result.instances}
    return Outcome(
        key=key,
        policy=replay.policy,
        params=dict(params),
        seed=replay.seed,
        model=replay.model,
        source=replay.source,
        slo=replay.slo,
        figures=_figures(result, workload, busy),
        utilisation=busy,
        gpu_utilisation=utilisation_by_gpu(result.instances, busy),
        attainment_interval=attained_share(replay.runs, replay.seed),
        classes=_classes(replay.runs),
        notes=replay.notes,
        errors=dict(replay.errors),
        events=result.events,
        wall_s=result.wall_s,
        code=code,
    )


def _figures(result: SimulationResult, workload: Workload, busy: Mapping[str, float]) -> dict[str, float | None]:
    replay = result.replay
    figures: dict[str, float | None] = asdict(summarise(replay))
    figures["arrival_goodput_per_s"] = arrival_goodput_per_s(replay.runs)
    figures["failed_runs"] = sum(not run.succeeded for run in replay.runs)
    figures["missed_slowdown_p50"], figures["missed_slowdown_p99"] = (
        quantile(_missed_slowdowns(replay.runs), q) for q in (0.5, 0.99)
    )
    figures["prefix_hit_share"] = prefix_hit_share(replay.calls, result.instances)
    figures["utilisation"] = sum(busy.values()) / len(busy) if busy else None
    figures["output_tokens"] = sum(call.output_tokens for call in replay.calls)
    figures["preemptions"] = sum(use.preemptions for use in result.instances)
    tenants = _by_tenant(replay.runs, workload)
    figures["tenant_attainment_min"] = _worst_tenant(tenants)
    figures["tenant_jain"] = tenant_jain({name: (sum(runs), len(runs)) for name, runs in tenants.items()})
    if len(tenants) <= _SHOWN_TENANTS:
        figures |= {f"attainment_of_{name}": sum(runs) / len(runs) for name, runs in tenants.items()}
    return figures


def arrival_goodput_per_s(runs: Sequence[RunRecord]) -> float | None:
    """Attained runs per second from the first submission to the last one; None for fewer than two moments.

    Beside records.goodput_per_s, whose span lasts to the last end: there one run that is much too late lowers the
    figure of all, the more the shorter the simulation.
    """
    times_s = [run.submitted_s for run in runs]
    span_s = max(times_s) - min(times_s) if times_s else 0.0
    return sum(run.attained is True for run in runs) / span_s if span_s > 0 else None


def prefix_hit_share(calls: Sequence[CallRecord], uses: Sequence[InstanceUse]) -> float | None:
    """1 − computed prefill tokens / prompt tokens of all calls: what no instance had to compute.

    Tokens that were computed again, after a preemption or a move, count against it; so it is 0 at the least.
    """
    prompts = sum(call.prompt_tokens for call in calls)
    return max(0.0, 1 - sum(use.prefill_tokens for use in uses) / prompts) if prompts else None


def utilisation_by_gpu(uses: Sequence[InstanceUse], busy: Mapping[str, float]) -> dict[str, float]:
    """Mean busy share of the instances of each GPU type, the types in order of their names."""
    found: dict[str, list[float]] = {}
    for use in uses:
        found.setdefault(use.gpu, []).append(busy[use.instance_id])
    return {gpu: sum(shares) / len(shares) for gpu, shares in sorted(found.items())}


def _missed_slowdowns(runs: Sequence[RunRecord]) -> list[float]:
    """E2E / SLO of the runs that succeeded too late; one that failed has no end to speak of."""
    return [run.e2e_s / run.slo_s for run in runs if run.slo_s and run.succeeded and run.attained is False]


def _classes(runs: Sequence[RunRecord]) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for run in runs:
        if run.attained is not None:
            found.setdefault(run.workflow, []).append(run.attained)
    return {name: sum(outcomes) / len(outcomes) for name, outcomes in sorted(found.items())}


def _by_tenant(runs: Sequence[RunRecord], workload: Workload) -> dict[str, list[bool]]:
    """Whether each run with an SLO attained it, by tenant; empty without tenants."""
    tenants = {plan.run_id: plan.tenant for plan in workload.plans if plan.tenant}
    found: dict[str, list[bool]] = {}
    for run in runs:
        if run.attained is not None and run.run_id in tenants:
            found.setdefault(tenants[run.run_id], []).append(run.attained)
    return found


def _worst_tenant(tenants: Mapping[str, Sequence[bool]]) -> float | None:
    """The least attained share among tenants with at least ten runs; None without such."""
    return min((sum(o) / len(o) for o in tenants.values() if len(o) >= _TENANT_RUNS), default=None)


def tenant_jain(tenants: Mapping[str, tuple[int, int]]) -> float | None:
    """Jain's index (Σx)² / (n Σx²) over tenants; x: runs in time / the tenant's fair part of all runs in time.

    `tenants`: runs in time and runs sent. Fair parts are max-min: nobody has more than it sent, and of what is left all
    have the same. 1: everybody has its fair part; 1/n: one has everything. None below two tenants, or without a run in
    time.
    """
    left, fair = float(sum(attained for attained, _ in tenants.values())), dict[str, float]()
    if len(tenants) < 2 or not left:
        return None
    by_size = sorted(tenants, key=lambda name: (tenants[name][1], name))
    for position, name in enumerate(by_size):
        fair[name] = min(float(tenants[name][1]), left / (len(by_size) - position))
        left -= fair[name]
    ratios = [tenants[name][0] / fair[name] for name in by_size]
    return sum(ratios) ** 2 / (len(ratios) * sum(ratio**2 for ratio in ratios))


def _span_s(runs: Sequence[RunRecord]) -> float:
    if not runs:
        return 0.0
    return max(run.finished_s for run in runs) - min(run.submitted_s for run in runs)
