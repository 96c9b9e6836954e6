"""How does a trace file become a workload? Read, select, scale, give arrivals; what was done is said in words."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput
from agentserve.lab.arrivals import Process, drawn_times, read_arrivals
from agentserve.lab.plans import RunPlan, StepPlan, Workload
from agentserve.lab.trace_files import Line, TraceFormat, open_trace
from agentserve.lab.trace_rows import RECORDED, SINGLE, read_rows
from agentserve.lab.trace_sessions import WORKFLOW, coding_agent, read_sessions
from workflows.graph import END, START, Workflow, declare, single_step

__all__ = [
    "BUNDLED", "BUNDLED_ARRIVALS", "BUNDLED_SESSIONS", "Runs", "WorkloadOptions", "load_workload", "read_arrivals",
    "read_runs", "trace_path", "with_arrivals",
]  # fmt: skip

_DATA: Final = Path(__file__).parent / "data"
BUNDLED: Final[Mapping[str, Path]] = {
    "coding-agent": _DATA / "coding_agent_sessions.jsonl.gz",
    "coding-agent-2": _DATA / "coding_agent_sessions_2.jsonl.gz",
    "mooncake-conversation": _DATA / "mooncake_conversation.jsonl.gz",
    "azure-code": _DATA / "azure_code_arrivals.csv.gz",
    "azure-conv": _DATA / "azure_conv_arrivals.csv.gz",
    "servegen": _DATA / "servegen_windows.csv.gz",
}
"""The slices of real traces that are shipped, by the names under which a scenario may ask for them; see NOTICE."""
BUNDLED_SESSIONS: Final = BUNDLED["coding-agent"]
BUNDLED_ARRIVALS: Final = BUNDLED["azure-conv"]
ACTIVE_SESSIONS: Final = 16
"""Sessions whose turns are interleaved at any time, so that later turns find their prefix cached as in life."""
DEFAULT_RATE_PER_S: Final = 0.2
_MAX_RUNS: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What to do with a trace. Scales multiply token counts; `limit` is a number of runs.

    `arrivals` is another trace whose times are taken, `process` a kind of times to draw (`cv`: of its gaps) in place of
    the trace's own; `rate_per_s` stretches time so that runs come at this mean rate (without any times: a Poisson
    process). `max_tool_gap_s` cuts long tool times. A run with a call longer than `max_prompt_tokens` (after scaling)
    or with more than `max_steps` calls is left out. Of the file's sessions or rows the first `skip` are left out and
    then at most `take` are used, so that tuning and evaluation can have disjoint parts. `repeats`: the trace again so
    many times, as other sessions with text of their own. `drawn_start`: of rows with times, the `limit` ones from a
    row on that the seed draws, so that seeds give different loads.
    """

    prompt_scale: float = 1.0
    output_scale: float = 1.0
    tool_time_scale: float = 1.0
    max_prompt_tokens: int | None = None
    max_steps: int | None = None
    max_tool_gap_s: float | None = None
    arrivals: Path | None = None
    process: Process | None = None
    cv: float = 1.0
    rate_per_s: float | None = None
    limit: int | None = None
    skip: int = 0
    take: int | None = None
    repeats: int = 1
    drawn_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise BadInput(f"{name.replace('_', '-')} is {value}; expected a positive number")
        for name in ("max_tool_gap_s", "skip", "tool_time_scale"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise BadInput(f"{name.replace('_', '-')} is {value}; expected 0 or more")
        if self.arrivals is not None and self.process is not None:
            raise BadInput(f"arrivals come from {self.arrivals.name} or from a {self.process} process, not from both")


_POSITIVE: Final = (
    "prompt_scale", "output_scale", "max_prompt_tokens", "max_steps", "cv", "rate_per_s", "limit", "take", "repeats",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one source in order, before their arrivals are settled."""

    plans: list[RunPlan]
    has_times: bool
    """Whether `arrival_s` is from the source; otherwise only the order means anything."""
    workflows: Mapping[str, Workflow]
    notes: list[str]


def trace_path(name: str, folder: Path | None = None) -> Path:
    """The file of a bundled trace's name, or the path itself, relative to `folder`. Raises BadInput: there is none."""
    if name in BUNDLED:
        return BUNDLED[name]
    path = Path(name).expanduser()
    path = path if folder is None else folder / path
    if not path.is_file():
        raise BadInput(f"no trace {name!r}: neither a file ({path}) nor one of {', '.join(BUNDLED)}")
    return path


def load_workload(path: Path, options: WorkloadOptions | None = None) -> Workload:
    """The runs of a trace file in any known format.

    Raises BadInput (unreadable, unknown format, a bad line, nothing left after filters) or TooLarge, naming the file.
    """
    chosen = options or WorkloadOptions()
    runs = read_runs(path, chosen)
    plans = with_arrivals(runs, chosen)
    return Workload(source=str(path), plans=tuple(plans), workflows=runs.workflows, notes=tuple(runs.notes))


def read_runs(path: Path, options: WorkloadOptions) -> Runs:
    """The runs of a trace file, selected and scaled; see `load_workload` for what it raises."""
    found, lines = open_trace(path)
    notes = [f"{path.name}: {str(found).split(' (')[0]}"]
    plans, has_times = _read(path, found, lines, options)
    if options.skip or options.take:
        what = "sessions" if found is TraceFormat.SESSIONS else "rows"
        notes.append(f"{what} {options.skip + 1} to {options.skip + options.take if options.take else 'the last'}")
    plans = shaped(plans, options, notes, str(path))
    if options.drawn_start and has_times and options.limit is not None and options.limit < len(plans):
        first = random.Random(options.seed).randint(0, len(plans) - options.limit)  # noqa: S311 - a seeded choice
        plans = plans[first : first + options.limit]
        notes.append(f"runs {first + 1} to {first + options.limit}, drawn by the seed")
    plans = _repeated(plans, options, notes)
    used = {plan.workflow for plan in plans}
    workflows = {name: workflow for name, workflow in _workflows().items() if name in used}
    return Runs(plans, has_times and options.repeats == 1, workflows, notes)


def _read(
    path: Path, found: TraceFormat, lines: Iterator[Line], options: WorkloadOptions
) -> tuple[list[RunPlan], bool]:
    end = None if options.take is None else options.skip + options.take
    if found is TraceFormat.SESSIONS:
        sessions = [turns for turns in islice(read_sessions(path, lines), options.skip, end) if turns]
        random.Random(options.seed).shuffle(sessions)  # noqa: S311 - a seeded choice, no secret
        return list(_interleaved(sessions)), False
    rows = read_rows(path, found, lines, options.seed, _own_limit(options))
    plans = list(islice(islice(rows, options.skip, end), _MAX_RUNS))
    plans.sort(key=lambda plan: plan.arrival_s)
    return plans, bool(plans) and plans[-1].arrival_s > plans[0].arrival_s


def _own_limit(options: WorkloadOptions) -> int:
    """How many rows are enough: filters may drop some, so they ask for more."""
    filtered = options.max_prompt_tokens is not None or options.max_steps is not None or options.drawn_start
    return _MAX_RUNS if options.limit is None or filtered else options.skip + options.limit


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


def shaped(plans: list[RunPlan], options: WorkloadOptions, notes: list[str], source: str) -> list[RunPlan]:
    """The runs with the options' scales and limits applied, and what was done added to the notes.

    Raises BadInput naming `source` if no run is left.
    """
    return _filtered(_scaled(plans, options, notes), options, notes, source)


def _scaled(plans: list[RunPlan], options: WorkloadOptions, notes: list[str]) -> list[RunPlan]:
    if options.prompt_scale != 1:
        notes.append(f"prompt tokens x {options.prompt_scale:g}")
    if options.output_scale != 1:
        notes.append(f"output tokens x {options.output_scale:g}")
    if options.tool_time_scale != 1:
        notes.append(f"tool times x {options.tool_time_scale:g}")
    if options.max_tool_gap_s is not None:
        scale = options.tool_time_scale
        cut = sum(step.tool_gap_s * scale > options.max_tool_gap_s for plan in plans for step in plan.steps)
        notes.append(f"tool times cut to at most {options.max_tool_gap_s:g} s ({cut} calls)")
    if options.prompt_scale == options.output_scale == options.tool_time_scale == 1 and options.max_tool_gap_s is None:
        return plans
    return [replace(plan, steps=tuple(_scaled_step(step, options) for step in plan.steps)) for plan in plans]


def _scaled_step(step: StepPlan, options: WorkloadOptions) -> StepPlan:
    gap_s, scale = step.tool_gap_s * options.tool_time_scale, options.prompt_scale
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


def _filtered(plans: list[RunPlan], options: WorkloadOptions, notes: list[str], source: str) -> list[RunPlan]:
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
        raise BadInput(f"{source}: no run is left; {notes[-1] if plans else 'the trace holds none'}")
    return kept


def _repeated(plans: list[RunPlan], options: WorkloadOptions, notes: list[str]) -> list[RunPlan]:
    if options.repeats > 1:
        notes.append(f"the trace {options.repeats} times, each time as other sessions with text of their own")
    return [*plans, *(_again(plan, turn) for turn in range(2, options.repeats + 1) for plan in plans)]


def _again(plan: RunPlan, turn: int) -> RunPlan:
    steps = tuple(replace(step, block_space=f"{step.block_space}~{turn}") for step in plan.steps)
    return replace(plan, run_id=f"{plan.run_id}~{turn}", session_id=f"{plan.session_id}~{turn}", steps=steps)


def with_arrivals(runs: Runs, options: WorkloadOptions) -> list[RunPlan]:
    """The first `limit` runs at their times, as the options ask for; adds to the notes what was done."""
    limit = min(options.limit or len(runs.plans), len(runs.plans))
    rate, plans, notes = options.rate_per_s, runs.plans, runs.notes
    own_times = runs.has_times and options.process is None
    if options.arrivals is not None:
        times = read_arrivals(options.arrivals, limit, options.seed)
        notes.append(f"arrival times from {options.arrivals.name}")
        if len(times) < limit:
            notes.append(f"only {len(times)} of {limit} runs: the arrivals end there")
    elif own_times:
        times = [plan.arrival_s - plans[0].arrival_s for plan in plans[:limit]]
    else:
        process, mean_rate = options.process or Process.POISSON, rate or DEFAULT_RATE_PER_S
        spread = "" if process is Process.POISSON else f" (CV {options.cv:g})"
        notes.append(f"{process.capitalize()} arrivals{spread}, {mean_rate:g} runs/s")
        times = drawn_times(process, limit, mean_rate, options.cv, options.seed)
    if rate is not None and len(times) > 1 and times[-1] > 0:
        factor = (len(times) - 1) / times[-1] / rate
        times = [time_s * factor for time_s in times]
        if options.arrivals is not None or own_times:
            notes.append(f"times stretched x {factor:.3g} to {rate:g} runs/s")
    return [replace(plan, arrival_s=time_s) for plan, time_s in zip(plans, times, strict=False)]


def _workflows() -> dict[str, Workflow]:
    recorded = declare(RECORDED, [(START, "call")], choices={"call": ["call", END]})
    return {WORKFLOW: coding_agent(), SINGLE: single_step(SINGLE), RECORDED: recorded}
