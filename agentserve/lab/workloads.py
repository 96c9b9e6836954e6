"""How does a trace file become a workload? Read, select, scale, give arrivals; what was done is said in words."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput
from agentserve.lab.plans import RunPlan, StepPlan, Workload
from agentserve.lab.trace_files import Line, TraceFormat, open_trace
from agentserve.lab.trace_rows import RECORDED, SINGLE, read_azure, read_mooncake, read_servegen, read_texts
from agentserve.lab.trace_sessions import WORKFLOW, coding_agent, read_sessions
from workflows.graph import END, START, Workflow, declare, single_step

BUNDLED_SESSIONS: Final = Path(__file__).parent / "data" / "coding_agent_sessions.jsonl.gz"
BUNDLED_ARRIVALS: Final = Path(__file__).parent / "data" / "azure_conv_arrivals.csv.gz"
ACTIVE_SESSIONS: Final = 16
"""Sessions whose turns are interleaved at any time, so that later turns find their prefix cached as in life."""
DEFAULT_RATE_PER_S: Final = 0.2
_MAX_RUNS: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What to do with a trace. Scales multiply token counts; `limit` is a number of runs.

    `arrivals` is another trace whose times are taken; `rate_per_s` stretches time so that runs come at this mean rate
    (without any times: a Poisson process). `max_tool_gap_s` cuts long tool times. A run with a call longer than
    `max_prompt_tokens` (after scaling) or with more than `max_steps` calls is left out.
    """

    prompt_scale: float = 1.0
    output_scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_steps: int | None = None
    max_tool_gap_s: float | None = None
    arrivals: Path | None = None
    rate_per_s: float | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_scale", "output_scale", "max_prompt_tokens", "max_steps", "rate_per_s", "limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise BadInput(f"{name.replace('_', '-')} is {value}; expected a positive number")
        if self.max_tool_gap_s is not None and not self.max_tool_gap_s >= 0:
            raise BadInput(f"max-tool-gap-s is {self.max_tool_gap_s}; expected 0 or more")


def load_workload(path: Path, options: WorkloadOptions | None = None) -> Workload:
    """The runs of a trace file in any known format.

    Raises BadInput (unreadable, unknown format, a bad line, nothing left after filters) or TooLarge, naming the file.
    """
    chosen = options or WorkloadOptions()
    found, lines = open_trace(path)
    notes = [f"{path.name}: {str(found).split(' (')[0]}"]
    plans, has_times = _read(path, found, lines, chosen)
    plans = _scaled(plans, chosen, notes)
    plans = _filtered(plans, chosen, notes, path)
    plans = _with_arrivals(plans, has_times, chosen, notes)
    used = {plan.workflow for plan in plans}
    workflows = {name: workflow for name, workflow in _workflows().items() if name in used}
    return Workload(source=str(path), plans=tuple(plans), workflows=workflows, notes=tuple(notes))


def read_arrivals(path: Path, limit: int, seed: int = 0) -> list[float]:
    """The first `limit` arrival times of a trace, from 0 on, in order; BadInput for a trace without times."""
    found, lines = open_trace(path)
    if found is TraceFormat.SESSIONS:
        raise BadInput(
            f"{path}: coding-agent sessions hold no arrival times; give an Azure, Mooncake or ServeGen trace"
        )
    times = sorted(plan.arrival_s for plan in islice(_rows(path, found, lines, seed, limit), limit))
    return [time_s - times[0] for time_s in times]


def _read(
    path: Path, found: TraceFormat, lines: Iterator[Line], options: WorkloadOptions
) -> tuple[list[RunPlan], bool]:
    if found is TraceFormat.SESSIONS:
        sessions = [turns for turns in read_sessions(path, lines) if turns]
        random.Random(options.seed).shuffle(sessions)  # noqa: S311 - a seeded choice, no secret
        return list(_interleaved(sessions)), False
    rows = list(islice(_rows(path, found, lines, options.seed, _own_limit(options)), _MAX_RUNS))
    rows.sort(key=lambda plan: plan.arrival_s)
    return rows, bool(rows) and rows[-1].arrival_s > rows[0].arrival_s


def _own_limit(options: WorkloadOptions) -> int:
    """How many rows are enough: filters may drop some, so they ask for more."""
    filtered = options.max_prompt_tokens is not None or options.max_steps is not None
    return _MAX_RUNS if options.limit is None or filtered else options.limit


def _rows(path: Path, found: TraceFormat, lines: Iterable[Line], seed: int, limit: int) -> Iterator[RunPlan]:
    if found is TraceFormat.MOONCAKE:
        return read_mooncake(path, lines)
    if found is TraceFormat.AZURE:
        return read_azure(path, lines)
    if found is TraceFormat.SERVEGEN:
        return read_servegen(path, lines, seed, limit)
    return read_texts(path, lines)


def _interleaved(sessions: Sequence[Sequence[RunPlan]]) -> Iterator[RunPlan]:
    """The turns of up to ACTIVE_SESSIONS sessions in turn; a session that has ended makes room for the next."""
    waiting = [iter(turns) for turns in sessions]
    active, waiting = waiting[:ACTIVE_SESSIONS], waiting[ACTIVE_SESSIONS:]
    while active:
        for slot, turns in enumerate(list(active)):
            plan = next(turns, None)
            while plan is None and waiting:
                active[slot] = waiting.pop(0)
                plan = next(active[slot], None)
            if plan is not None:
                yield plan
            else:
                active[slot] = iter(())
        if not waiting:
            active, waiting = _still_going(active)


def _still_going(active: list[Iterator[RunPlan]]) -> tuple[list[Iterator[RunPlan]], list[Iterator[RunPlan]]]:
    rests = [list(turns) for turns in active]
    return [iter(rest) for rest in rests if rest], []


def _scaled(plans: list[RunPlan], options: WorkloadOptions, notes: list[str]) -> list[RunPlan]:
    if options.prompt_scale != 1:
        notes.append(f"prompt tokens x {options.prompt_scale:g}")
    if options.output_scale != 1:
        notes.append(f"output tokens x {options.output_scale:g}")
    if options.max_tool_gap_s is not None:
        cut = sum(step.tool_gap_s > options.max_tool_gap_s for plan in plans for step in plan.steps)
        notes.append(f"tool times cut to at most {options.max_tool_gap_s:g} s ({cut} calls)")
    return [replace(plan, steps=tuple(_scaled_step(step, options) for step in plan.steps)) for plan in plans]


def _scaled_step(step: StepPlan, options: WorkloadOptions) -> StepPlan:
    gap_s, scale = step.tool_gap_s, options.prompt_scale
    text = step.prompt_text
    return replace(
        step,
        prompt_tokens=max(1, round(step.prompt_tokens * scale)),
        output_tokens=max(1, round(step.output_tokens * options.output_scale)),
        shared_prefix_tokens=int(step.shared_prefix_tokens * scale),
        block_tokens=step.block_tokens * scale,
        tool_gap_s=gap_s if options.max_tool_gap_s is None else min(gap_s, options.max_tool_gap_s),
        prompt_text=text[: max(1, int(len(text) * scale))] if text is not None and scale < 1 else text,
    )


def _filtered(plans: list[RunPlan], options: WorkloadOptions, notes: list[str], path: Path) -> list[RunPlan]:
    most_tokens, most_steps = options.max_prompt_tokens, options.max_steps
    kept = [
        plan
        for plan in plans
        if (most_tokens is None or all(step.prompt_tokens <= most_tokens for step in plan.steps))
        and (most_steps is None or len(plan.steps) <= most_steps)
    ]
    if len(kept) < len(plans):
        limits = [f"a prompt over {most_tokens} tokens"] if most_tokens is not None else []
        limits += [f"more than {most_steps} calls"] if most_steps is not None else []
        notes.append(f"left out {len(plans) - len(kept)} of {len(plans)} runs: {' or '.join(limits)}")
    if not kept:
        raise BadInput(f"{path}: no run is left; {notes[-1] if plans else 'the trace holds none'}")
    return kept


def _with_arrivals(plans: list[RunPlan], has_times: bool, options: WorkloadOptions, notes: list[str]) -> list[RunPlan]:
    limit = min(options.limit or len(plans), len(plans))
    if options.arrivals is not None:
        times = read_arrivals(options.arrivals, limit, options.seed)
        notes.append(f"arrival times from {options.arrivals.name}")
        if len(times) < limit:
            notes.append(f"only {len(times)} of {limit} runs: the arrivals end there")
    elif has_times:
        times = [plan.arrival_s - plans[0].arrival_s for plan in plans[:limit]]
    else:
        rate = options.rate_per_s or DEFAULT_RATE_PER_S
        notes.append(f"Poisson arrivals, {rate:g} runs/s")
        times = _poisson(limit, rate, options.seed)
    if options.rate_per_s is not None and len(times) > 1 and times[-1] > 0:
        factor = (len(times) - 1) / times[-1] / options.rate_per_s
        times = [time_s * factor for time_s in times]
        if options.arrivals is not None or has_times:
            notes.append(f"times stretched x {factor:.3g} to {options.rate_per_s:g} runs/s")
    return [replace(plan, arrival_s=time_s) for plan, time_s in zip(plans, times, strict=False)]


def _poisson(count: int, rate_per_s: float, seed: int) -> list[float]:
    draw = random.Random(seed)  # noqa: S311 - a seeded process, no secret
    at_s, times = 0.0, []
    for _ in range(count):
        times.append(at_s)
        at_s += draw.expovariate(rate_per_s)
    return times


def _workflows() -> dict[str, Workflow]:
    recorded = declare(RECORDED, [(START, "call")], choices={"call": ["call", END]})
    return {WORKFLOW: coding_agent(), SINGLE: single_step(SINGLE), RECORDED: recorded}
