"""How many runs of a workload can end within their SLOs at all, whatever policy places their calls?

A relaxation: what it allows includes everything that a policy can do, so none attains more. Sketch of the proof, for
the engine model of agentserve/emulator/engine.py:

1. A run whose critical path takes longer than its SLO alone, on the fastest instances of each phase and with every
   prefix cached that anybody else could have computed, cannot attain (`alone_s`).
2. Take any policy and the runs that attain under it. All work that these runs need is done inside their windows
   [arrival, arrival + SLO]. `bound_blocks.fresh_tokens` charges each with prompt tokens that were computed inside its
   window and that no other is charged with; `bound_work` says what share of iterations its tokens have at least. Shares
   of an iteration sum to at most its duration, and an iteration that advances an attaining run lies in its window.
3. Hence for all a < b and any prices of machine time and memory, the costs of attaining runs whose windows lie within
   [a, b] sum to at most what the fleet has of both in b − a seconds at these prices. The largest number of runs,
   fractions allowed, under such constraints is a linear program; its value bounds the number that attains. To leave
   constraints out only makes it larger.

Free in the model: relay, queues, reports, roles of instances, KV links, cache between runs. Assumed: a call is moved or
preempted at most once per 32 output tokens, and no instance gets faster than announced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from agentserve.errors import BadInput
from agentserve.lab.bound_blocks import Floats, fresh_tokens
from agentserve.lab.bound_work import Fleet, Kind, alone_s, calls_of, paced_costs, shared_costs
from agentserve.lab.plans import Workload
from scheduler.events import InstanceSpec
from scheduler.profiles import GpuProfile, load_profile

_GRID: Final = 1000
"""Arrivals and deadlines at most that intervals begin and end with."""
_ROUNDS: Final = 60
_ROWS_PER_ROUND: Final = 12
"""Of each family of costs, the most violated intervals that a round adds."""
_MEMORY_PRICES: Final = (0.0, 0.5, 2.0)
"""What all KV memory of an instance costs, as a multiple of its machine time."""
_TOLERANCE: Final = 1e-6


class _Instance(Protocol):
    """What is read of a simulated instance."""

    @property
    def spec(self) -> InstanceSpec:
        """As announced."""
        ...

    @property
    def slowdown(self) -> float:
        """Its iterations take so much longer than announced."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """At most `at_most` of `runs` attain their SLO; runs without an SLO do not count."""

    runs: int
    impossible: tuple[str, ...]
    """Runs that could not attain even alone."""
    relaxed: float
    """The optimum with fractions of runs, from which `at_most` is rounded down."""
    at_most: int
    share: float | None
    per_s: float | None
    """Goodput at most, in runs/s, from the first to the last arrival; None where these coincide."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Costs of every run at one set of prices under one rule, and what the fleet has per second at these prices."""

    costs: Floats
    capacity_per_s: float


def upper_bound(
    workload: Workload,
    slos: Mapping[str, float],
    instances: Sequence[_Instance],
    profiles: Callable[[str, str], GpuProfile] = load_profile,
) -> Bound:
    """What no policy can exceed on this workload, with SLOs in seconds by run id, on these instances.

    Raises BadInput without instances, UnknownProfile for one without a profile. About a second for 1,000 runs.
    """
    fleet = _fleet(instances, profiles)
    plans = sorted(workload.plans, key=lambda plan: plan.arrival_s)
    counted = [index for index, plan in enumerate(plans) if plan.run_id in slos]
    if not counted:
        return Bound(runs=0, impossible=(), relaxed=0.0, at_most=0, share=None, per_s=None)
    arrivals_s = np.array([plan.arrival_s for plan in plans])
    # A run without SLO has no end: it may share whatever it holds with all that come later.
    slos_s = np.array([slos.get(plan.run_id, np.inf) for plan in plans])
    calls = calls_of(plans, fresh_tokens(plans, arrivals_s + slos_s))
    possible = alone_s(plans, calls, fleet) <= slos_s * (1 + _TOLERANCE)
    chosen = np.array([index for index in counted if possible[index]], dtype=np.int64)
    families = []
    for prices in fleet.prices(float(calls.prompt.mean())):
        per_s = float(prices @ fleet.of("count"))
        families += [_Family(costs[chosen], per_s) for costs in shared_costs(calls, fleet, prices, len(plans))]
        for memory in _MEMORY_PRICES:
            costs = paced_costs(calls, fleet, prices, memory, np.where(np.isfinite(slos_s), slos_s, 1e9))
            families.append(_Family(costs[chosen], (1 + memory) * per_s))
    relaxed = _most_runs(arrivals_s[chosen], (arrivals_s + slos_s)[chosen], families)
    at_most = min(len(chosen), int(relaxed + 1e-4))
    span_s = float(arrivals_s[-1] - arrivals_s[0])
    return Bound(
        runs=len(counted),
        impossible=tuple(plans[index].run_id for index in counted if not possible[index]),
        relaxed=relaxed,
        at_most=at_most,
        share=at_most / len(counted),
        per_s=at_most / span_s if span_s > 0 else None,
    )


def _fleet(instances: Sequence[_Instance], profiles: Callable[[str, str], GpuProfile]) -> Fleet:
    alike: dict[tuple[str, str, float, int, int], int] = {}
    for instance in instances:
        spec = instance.spec
        pace = instance.slowdown / spec.speed
        key = (spec.gpu, spec.model, pace, spec.max_num_seqs, spec.kv_capacity_tokens)
        alike[key] = alike.get(key, 0) + 1
    if not alike:
        raise BadInput("an upper bound needs at least one instance")
    return Fleet.with_kinds(
        [
            Kind.of(profiles(gpu, model), count=count, pace=pace, max_num_seqs=seqs, kv_tokens=kv_tokens)
            for (gpu, model, pace, seqs, kv_tokens), count in alike.items()
        ]
    )


def _most_runs(arrivals_s: Floats, ends_s: Floats, families: Sequence[_Family]) -> float:
    """The linear program over intervals, by cutting planes: solve, add the intervals that are overfull, repeat."""
    try:
        from scipy.optimize import linprog  # type: ignore[import-untyped]
    except ImportError:
        raise BadInput("an upper bound needs scipy: pip install 'agentserve[lab]'") from None
    runs = len(arrivals_s)
    if not runs:
        return 0.0
    begins_s, finishes_s = _grid(arrivals_s), _grid(ends_s)
    first = np.searchsorted(begins_s, arrivals_s, side="right") - 1
    last = np.searchsorted(finishes_s, ends_s, side="left")
    rows: list[Floats] = []
    taken = np.ones(runs)
    for _ in range(_ROUNDS):
        added = [row for family in families for row in _overfull(taken, family, first, last, begins_s, finishes_s)]
        if not added:
            break
        rows += added
        solved = linprog(-np.ones(runs), A_ub=np.array(rows), b_ub=np.ones(len(rows)), bounds=(0, 1), method="highs")
        if not solved.success:
            raise AssertionError(f"the bound's linear program was not solved: {solved.message}")
        taken = solved.x
    return float(taken.sum())


def _grid(times_s: Floats) -> Floats:
    """Distinct times, thinned to evenly spaced ranks where there are too many; the first and the last are kept."""
    distinct = np.unique(times_s)
    if len(distinct) <= _GRID:
        return distinct
    return distinct[np.unique(np.linspace(0, len(distinct) - 1, _GRID).round().astype(np.int64))]


def _overfull(
    taken: Floats,
    family: _Family,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    begins_s: Floats,
    finishes_s: Floats,
) -> Iterator[Floats]:
    """Constraints, as coefficients of Σ ≤ 1, of the intervals that hold most above what the fleet has in them."""
    used = np.zeros((len(begins_s), len(finishes_s)))
    np.add.at(used, (first, last), taken * family.costs)
    used = np.cumsum(np.cumsum(used[::-1], axis=0)[::-1], axis=1)
    room = family.capacity_per_s * (finishes_s[None, :] - begins_s[:, None])
    filled = np.where(room > 0, used / np.maximum(room, 1e-300), 0.0)
    worst = np.argpartition(filled, -min(_ROWS_PER_ROUND, filled.size), axis=None)[-_ROWS_PER_ROUND:]
    for begin, finish in zip(*np.unravel_index(worst, filled.shape), strict=True):
        if filled[begin, finish] > 1 + _TOLERANCE:
            inside = (first >= begin) & (last <= finish)
            yield np.where(inside, family.costs / room[begin, finish], 0.0)
