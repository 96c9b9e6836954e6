"""When do runs come, and whose are they? Times of a trace or of a drawn process, and tenants with their weights."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import accumulate, islice
from pathlib import Path
from typing import Final

import numpy as np

from agentserve.errors import BadInput
from agentserve.lab.plans import RunPlan
from agentserve.lab.trace_files import TraceFormat, open_trace
from agentserve.lab.trace_rows import client_rates, read_rows

MAX_CV: Final = 100.0


class Process(StrEnum):
    """How the gaps between arrivals are distributed, apart from their mean."""

    POISSON = "poisson"
    GAMMA = "gamma"
    """Gamma gaps, as ServeGen fits them: many short ones and few long ones for a CV above 1."""
    HYPEREXPONENTIAL = "hyperexponential"
    """Short gaps or long ones, by a coin, with balanced means; a CV of at least 1."""


def drawn_times(process: Process, count: int, rate_per_s: float, cv: float, seed: int) -> list[float]:
    """`count` arrival times from 0 on with this mean rate; `cv` is the gaps' coefficient of variation (Poisson: 1).

    Raises BadInput for a CV that the process cannot have.
    """
    if process is Process.POISSON:
        return _poisson(count, rate_per_s, seed)
    low = 1.0 if process is Process.HYPEREXPONENTIAL else 0.0
    if not low <= cv <= MAX_CV or cv == 0:
        raise BadInput(f"cv is {cv:g}; a {process} process can have {low or 'more than 0'} to {MAX_CV:g}")
    draw = np.random.default_rng([seed, 0xA221])
    if process is Process.GAMMA:
        gaps = draw.gamma(1 / cv**2, cv**2 / rate_per_s, count)
    else:
        short_share = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
        is_short = draw.random(count) < short_share
        means = np.where(is_short, 1 / (2 * short_share * rate_per_s), 1 / (2 * (1 - short_share) * rate_per_s))
        gaps = draw.exponential(1.0, count) * means
    return [0.0, *(float(time_s) for time_s in np.cumsum(gaps)[:-1])]


def read_arrivals(path: Path, limit: int, seed: int = 0) -> list[float]:
    """The first `limit` arrival times of a trace, from 0 on, in order; BadInput for a trace without times."""
    found, lines = open_trace(path)
    if found is TraceFormat.SESSIONS:
        raise BadInput(
            f"{path}: coding-agent sessions hold no arrival times; give an Azure, Mooncake or ServeGen trace"
        )
    times = sorted(plan.arrival_s for plan in islice(read_rows(path, found, lines, seed, limit), limit))
    return [time_s - times[0] for time_s in times]


def zipf_weights(count: int, skew: float) -> dict[str, float]:
    """Tenants t1, t2, … of which the k-th has weight 1 / k^skew; skew 0: all alike."""
    return {f"t{rank}": rank**-skew for rank in range(1, count + 1)}


def servegen_weights(path: Path) -> dict[str, float]:
    """The clients of a ServeGen trace, each with its mean rate. Raises BadInput for a trace in another format."""
    found, lines = open_trace(path)
    if found is not TraceFormat.SERVEGEN:
        raise BadInput(f"{path}: tenants' weights are read from ServeGen client windows, this is: {found}")
    return {f"client{name}": rate for name, rate in client_rates(path, lines).items()}


def with_tenants(
    plans: Sequence[RunPlan], weights: dict[str, float], seed: int, *, own_prompts: bool = False
) -> list[RunPlan]:
    """Give each session to a tenant by weight; `own_prompts`: what runs share, they share only within a tenant."""
    names, totals = list(weights), list(accumulate(weights.values()))

    def tenant_of(session_id: str) -> str:
        return random.Random(f"tenant/{seed}/{session_id}").choices(names, cum_weights=totals)[0]  # noqa: S311 - no secret

    given = []
    for plan in plans:
        tenant = tenant_of(plan.session_id)
        steps = plan.steps
        if own_prompts:
            steps = tuple(replace(step, block_space=f"{step.block_space}@{tenant}") for step in steps)
        given.append(replace(plan, tenant=tenant, steps=steps))
    return given


def _poisson(count: int, rate_per_s: float, seed: int) -> list[float]:
    draw = random.Random(seed)  # noqa: S311 - a seeded process, no secret
    at_s, times = 0.0, []
    for _ in range(count):
        times.append(at_s)
        at_s += draw.expovariate(rate_per_s)
    return times
