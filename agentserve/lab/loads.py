"""Which runs does a scenario's workload mean, with which SLOs, and can its fleet hold them?"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput
from agentserve.lab.arrivals import Process, drawn_times, servegen_weights, with_tenants, zipf_weights
from agentserve.lab.fleets import middle_gpu
from agentserve.lab.generated import AGENTS, generated_runs
from agentserve.lab.options import SimulatedInstance
from agentserve.lab.plans import ClassSlo, RunPlan, SloRule, SoloScaleSlo, SpreadSlo, Workload
from agentserve.lab.scenario import Flood, Load, Rule, RunSource, Slo
from agentserve.lab.workloads import BUNDLED, Runs, WorkloadOptions, read_runs, shaped, trace_path, with_arrivals
from scheduler.events import Role
from scheduler.profiles import ProfileBook

_FLOOD_SEED: Final = 7919
_PART_RUNS: Final = 1_000_000
"""Generated runs of different parts of a mix have numbers so far apart, and so are different ones."""


def workload_of(load: Load, folder: Path, seed: int) -> Workload:
    """The runs at their times; the same for the same seed. Raises BadInput naming the key or the trace's line."""
    runs = _mixed(load, folder, seed) if load.parts else _runs(load, load.limit, folder, seed)
    plans = with_arrivals(runs, _arrival_options(load, folder, seed))
    if load.tenants is not None:
        plans = _to_tenants(load, plans, folder, seed, runs.notes)
    workflows = dict(runs.workflows)
    if load.flood is not None and load.flood.rate:
        flood = _flood(load, load.flood, plans[-1].arrival_s, folder, seed)
        plans = sorted([*plans, *flood.plans], key=lambda plan: plan.arrival_s)
        workflows |= flood.workflows
        runs.notes.append(
            f"{len(flood.plans)} further runs by tenant {load.flood.tenant}, {load.flood.rate:g} a second"
        )
    return Workload(source=_source(load), plans=tuple(plans), workflows=workflows, notes=tuple(runs.notes))


def slo_rule(slo: Slo, model: str, instances: Sequence[SimulatedInstance], profiles: ProfileBook, seed: int) -> SloRule:
    """The rule that the scenario's table means. Raises BadInput for a reference GPU without a profile."""
    if slo.rule is Rule.FIXED:
        seconds = {name: value * slo.scale for name, value in slo.seconds.items()}
        return ClassSlo(by_workflow=seconds, default_s=None if slo.default_s is None else slo.default_s * slo.scale)
    gpu = slo.gpu or middle_gpu(instances, profiles)
    if not profiles.knows_gpu(gpu):
        raise BadInput(f"slo.gpu: unknown gpu {gpu!r}; known: {', '.join(profiles.gpus())}")
    solo = SoloScaleSlo(slo.scale, gpu=gpu, model=model, profiles=profiles)
    return SpreadSlo(rule=solo, sigma=slo.sigma, seed=seed) if slo.rule is Rule.SOLO_SCALE_LOGNORMAL else solo


def check_fits(workload: Workload, instances: Sequence[SimulatedInstance]) -> None:
    """Raise BadInput for a call that no instance's KV cache could hold: its prompt to prefill, all of it to decode."""
    able = {
        phase: max(
            (one.spec.kv_capacity_tokens for one in instances if one.spec.role in (Role.MIXED, phase)), default=0
        )
        for phase in (Role.PREFILL, Role.DECODE)
    }
    for plan in workload.plans:
        for step in plan.steps:
            for phase, tokens in (
                (Role.PREFILL, step.prompt_tokens),
                (Role.DECODE, step.prompt_tokens + step.output_tokens),
            ):
                if tokens > able[phase]:
                    raise BadInput(
                        f"workload: call {step.step_id} of run {plan.run_id} needs {tokens:,} tokens of KV cache "
                        f"(prompt {step.prompt_tokens:,}, answer {step.output_tokens:,}); the largest {phase} "
                        f"instance holds {able[phase]:,}: set max_prompt_tokens or a smaller prompt_scale"
                    )


def check_workload(load: Load, folder: Path) -> None:
    """Raise BadInput for traces, arrivals and agents that do not exist, without reading them."""
    for where, source in (("workload", load), *((f"workload.parts.{i}", part) for i, part in enumerate(load.parts))):
        _known_trace(f"{where}.trace", source.trace, folder)
        if unknown := sorted(set(source.agents) - set(AGENTS)):
            raise BadInput(f"{where}.agents.{unknown[0]}: no such agent; known are {', '.join(AGENTS)}")
    if load.tenants is not None:
        _known_trace("workload.tenants.trace", load.tenants.trace, folder)
    if load.arrivals != "own" and load.arrivals not in tuple(Process):
        try:
            trace_path(load.arrivals, folder)
        except BadInput:
            allowed = ", ".join(("own", *Process, *BUNDLED))
            raise BadInput(
                f"workload.arrivals: {load.arrivals!r} is no trace; allowed are {allowed} or a file"
            ) from None


def trace_files(load: Load, folder: Path) -> list[Path]:
    """Every file that the workload is made from, each once."""
    names = [source.trace for source in (load, *load.parts)]
    names += [load.tenants.trace] if load.tenants is not None else []
    names += [load.arrivals] if load.arrivals != "own" and load.arrivals not in tuple(Process) else []
    return list(dict.fromkeys(trace_path(name, folder) for name in names if name is not None))


def _known_trace(key: str, name: str | None, folder: Path) -> None:
    if name is not None:
        try:
            trace_path(name, folder)
        except BadInput as error:
            raise BadInput(f"{key}: {error}") from None


def _runs(source: RunSource, count: int | None, folder: Path, seed: int, part: int | None = None) -> Runs:
    options = _source_options(source, count, seed)
    if source.trace is not None:
        return read_runs(trace_path(source.trace, folder), options)
    agents = source.agents or dict.fromkeys(AGENTS, 1.0)
    runs = generated_runs(agents, count or 1, seed, source.skip + (part or 0) * _PART_RUNS)
    where = "workload.generator" if part is None else f"workload.parts.{part}.generator"
    return replace(runs, plans=shaped(runs.plans, options, runs.notes, where))


def _source_options(source: RunSource, limit: int | None, seed: int) -> WorkloadOptions:
    return WorkloadOptions(
        prompt_scale=source.prompt_scale,
        output_scale=source.output_scale,
        tool_time_scale=source.tool_time_scale,
        max_prompt_tokens=source.max_prompt_tokens,
        max_steps=source.max_steps,
        max_tool_gap_s=source.max_tool_gap_s,
        skip=source.skip,
        take=source.take,
        repeats=source.repeats,
        drawn_start=source.drawn_start,
        limit=limit,
        seed=seed,
    )


def _arrival_options(load: Load, folder: Path, seed: int) -> WorkloadOptions:
    process = Process(load.arrivals) if load.arrivals in tuple(Process) else None
    other = trace_path(load.arrivals, folder) if load.arrivals != "own" and process is None else None
    return WorkloadOptions(
        arrivals=other, process=process, cv=load.cv, rate_per_s=load.rate, limit=load.limit, seed=seed
    )


def _mixed(load: Load, folder: Path, seed: int) -> Runs:
    """Runs of the parts, drawn by their shares until one part has none left."""
    parts = [_runs(part, load.limit, folder, seed, index) for index, part in enumerate(load.parts)]
    draw = random.Random(f"mix/{seed}")  # noqa: S311 - a seeded choice, no secret
    left = [iter(part.plans) for part in parts]
    mixed: list[RunPlan] = []
    while load.limit is None or len(mixed) < load.limit:
        number = draw.choices(range(len(parts)), [part.share for part in load.parts])[0]
        plan = next(left[number], None)
        if plan is None:
            break
        mixed.append(replace(plan, run_id=f"p{number}.{plan.run_id}", session_id=f"p{number}.{plan.session_id}"))
    used = Counter(plan.workflow for plan in mixed)
    workflows = {name: graph for part in parts for name, graph in part.workflows.items() if name in used}
    notes = [f"part {index} (share {load.parts[index].share:g}): {note}" for index, part in enumerate(parts)
             for note in part.notes]  # fmt: skip
    notes.append("runs mixed: " + ", ".join(f"{count} {name}" for name, count in sorted(used.items())))
    return Runs(mixed, False, workflows, notes)


def _to_tenants(load: Load, plans: list[RunPlan], folder: Path, seed: int, notes: list[str]) -> list[RunPlan]:
    tenants = load.tenants
    assert tenants is not None  # noqa: S101 - the caller asked
    if tenants.trace is not None:
        weights: Mapping[str, float] = servegen_weights(trace_path(tenants.trace, folder))
    else:
        weights = zipf_weights(tenants.count or 1, tenants.skew)
    given = with_tenants(plans, dict(weights), seed, own_prompts=tenants.own_prompts)
    greatest = Counter(plan.tenant for plan in given).most_common(1)[0]
    notes.append(f"{len(weights)} tenants; the greatest, {greatest[0]}, has {greatest[1] / len(given):.0%} of the runs")
    return given


def _flood(load: Load, flood: Flood, until_s: float, folder: Path, seed: int) -> Runs:
    """Runs of the same sources, other ones where they are generated, that share no prompt with those of the others."""
    count = max(1, round(flood.rate * until_s))
    if load.parts:
        runs = _mixed(load.model_copy(update={"limit": count}), folder, seed + _FLOOD_SEED)
    else:
        runs = _runs(load, count, folder, seed + _FLOOD_SEED, None if load.trace is not None else len(load.parts) + 1)
    times_s = drawn_times(Process.POISSON, len(runs.plans), flood.rate, 1.0, seed + _FLOOD_SEED)
    plans = [
        replace(
            plan,
            run_id=f"flood.{plan.run_id}",
            session_id=f"flood.{plan.session_id}",
            tenant=flood.tenant,
            arrival_s=at_s,
            steps=tuple(
                replace(step, block_space=f"{step.block_space or plan.session_id}@{flood.tenant}")
                for step in plan.steps
            ),
        )
        for plan, at_s in zip(runs.plans, times_s, strict=True)
    ]
    return replace(runs, plans=plans)


def _source(load: Load) -> str:
    if load.parts:
        return " + ".join(str(part.trace or part.generator) for part in load.parts)
    return str(load.trace or load.generator)
