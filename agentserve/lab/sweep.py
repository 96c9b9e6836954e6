"""How are a scenario's simulations run? In parallel processes; each result is kept at once, and none is made twice."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson

from agentserve.errors import AgentServeError, BadInput
from agentserve.lab.fleets import fleet_of, profiles_of
from agentserve.lab.loads import check_fits, slo_rule, workload_of
from agentserve.lab.outcome import Outcome, outcome_of
from agentserve.lab.plans import Workload
from agentserve.lab.points import Case, base_point, cases_of, points_of
from agentserve.lab.record_files import need_pyarrow, write_records
from agentserve.lab.results import SimulationResult
from agentserve.lab.scenario import Load, ScenarioFile

ROWS_FILE: Final = "rows.jsonl"
RECORDS_FOLDER: Final = "records"


Simulate = Callable[..., SimulationResult]
"""Has the arguments of `agentserve.lab.simulation.simulate`; importable by its name, so that processes can call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One simulation as its scenario asked for it. Points that come to the same have the same outcome."""

    scenario: str
    point: str
    axes: Mapping[str, Any]
    label: str
    """The policy's name, or its variant's."""
    seed: int
    outcome: Outcome


OnRow = Callable[[int, int, Row], None]
"""Told after each simulation: how many are done, of how many, and the last one."""


def run_points(
    file: ScenarioFile,
    policies: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path | None = None,
    jobs: int | None = None,
    *,
    swept: bool = True,
    simulate: Simulate | None = None,
    on_row: OnRow | None = None,
) -> list[Row]:
    """Simulate every point of the scenario under every policy with every seed, and return the rows in that order.

    `policies` and `seeds` default to the scenario's own, `jobs` to the number of cores; `swept` False: only the
    scenario as it stands. With `out`, each outcome is appended to rows.jsonl there as soon as it is known and the
    records are written beside it; what is there already is not simulated again, so that an interrupted call can be
    repeated. Raises BadInput for what is wrong with the scenario, before anything runs where it can be told by then.
    """
    points = points_of(file) if swept else [base_point(file)]
    return run_cases(cases_of(file, points, policies, seeds), out, jobs, simulate=simulate, on_row=on_row)


def run_cases(
    cases: Sequence[Case],
    out: Path | None = None,
    jobs: int | None = None,
    *,
    simulate: Simulate | None = None,
    on_row: OnRow | None = None,
) -> list[Row]:
    """The same for cases of any scenarios, put together by the caller: one row for each, in their order."""
    kept = _Kept.open(out)
    waiting = {case.key: case for case in cases if case.key not in kept.outcomes}
    asked: dict[str, list[Case]] = {}
    for case in cases:
        asked.setdefault(case.key, []).append(case)
    done = len(asked) - len(waiting)
    for outcome in _outcomes(list(waiting.values()), out, min(jobs or _cores(), len(waiting)), simulate):
        kept.add(outcome)
        done += 1
        if on_row is not None:
            on_row(done, len(asked), row_of(asked[outcome.key][0], outcome))
    return [row_of(case, kept.outcomes[case.key]) for case in cases]


def run_case(case: Case, out: Path | None = None, simulate: Simulate | None = None, **more: Any) -> Outcome:
    """Simulate one case in this process; with `out`, its records are written there."""
    result, workload = simulated(case, simulate, **more)
    outcome = outcome_of(result, key=case.key, params=case.variant.params, code=case.code, workload=workload)
    if out is not None:
        write_records(records_of(out, case.key), result)
    return outcome


def simulated(case: Case, simulate: Simulate | None = None, **more: Any) -> tuple[SimulationResult, Workload]:
    """The whole result of one case, and the workload it is of. Raises BadInput naming the scenario's file."""
    scenario, file = case.point.scenario, case.file
    try:
        profiles = profiles_of(scenario, file.folder)
        instances = fleet_of(scenario, profiles)
        workload = _workload(scenario.workload.model_dump_json(exclude_unset=True), str(file.folder), case.seed)
        check_fits(workload, instances)
        rule = slo_rule(scenario.slo, scenario.model, instances, profiles, case.seed)
        result = (simulate or _simulate())(
            workload,
            {plan.run_id: rule.slo_s(plan) for plan in workload.plans},
            instances,
            model=scenario.model,
            policy=case.variant.policy,
            params=dict(case.variant.params),
            config=scenario.scheduler,
            profiles=profiles,
            seed=case.seed,
            options=scenario.simulation,
            slo_rule=rule.describe(),
            **more,
        )
    except BadInput as error:
        told = str(error)
        raise BadInput(told if told.startswith(file.source) else f"{file.source}: {told}") from None
    return result, workload


def records_of(out: Path, key: str) -> Path:
    """The folder of one simulation's records."""
    return out / RECORDS_FOLDER / key


@dataclass(slots=True)
class _Kept:
    """The outcomes that are known, and the file to which further ones are appended."""

    path: Path | None
    outcomes: dict[str, Outcome]

    @classmethod
    def open(cls, out: Path | None) -> "_Kept":
        if out is None:
            return cls(None, {})
        need_pyarrow()
        path = out / ROWS_FILE
        try:
            out.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
        whole, newline, rest = raw.rpartition(b"\n")
        if rest:  # a line that was cut off in the middle: what follows must begin a line of its own
            path.write_bytes(whole + newline)
        return cls(path, {outcome.key: outcome for outcome in _parsed(path, whole)})

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.key] = outcome
        if self.path is not None:
            with self.path.open("ab") as stream:
                stream.write(orjson.dumps(outcome.to_plain()) + b"\n")


def _parsed(path: Path, text: bytes) -> Iterator[Outcome]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield Outcome.from_plain(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"{path}: line {number}: not an outcome of the lab ({type(error).__name__})") from None


def _outcomes(cases: Sequence[Case], out: Path | None, jobs: int, simulate: Simulate | None) -> Iterator[Outcome]:
    if jobs <= 1:
        for case in cases:
            yield run_case(case, out, simulate)
        return
    with _processes(jobs) as pool:
        running: set[Future[Outcome]] = {pool.submit(run_case, case, out, simulate) for case in cases}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise AgentServeError(
                        "a simulating process died, most likely for lack of memory; run fewer at once with --jobs"
                    ) from None


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end at once, with what they do, when the caller stops before all is done."""
    before = {child.pid for child in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()
        raise
    pool.shutdown()


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; only the first one acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=4)
def _workload(load: str, folder: str, seed: int) -> Workload:
    """Points and policies share workloads; the same process makes each once."""
    return workload_of(Load.model_validate_json(load), Path(folder), seed)


def _simulate() -> Simulate:
    from agentserve.lab.simulation import simulate

    return simulate


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def row_of(case: Case, outcome: Outcome) -> Row:
    """The row of a case that came to this outcome."""
    return Row(
        scenario=case.file.name,
        point=case.point.label,
        axes=dict(case.point.axes),
        label=case.variant.label,
        seed=case.seed,
        outcome=outcome,
    )
