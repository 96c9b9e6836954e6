"""How sure is a figure? 95 % intervals: Student's t over seeds, a bootstrap over runs where there is one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

import numpy as np

from agentserve.records import RunRecord

_T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 0.975 quantile of Student's t for 1, 2, … degrees of freedom."""
_RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; the ends are None where nothing tells how far the figure scatters."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one figure over seeds; with two or more values mean ± t·s/√n. Needs one value at least."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean)
    half = t95(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def t95(degrees: int) -> float:
    """The 0.975 quantile of Student's t; beyond 30 degrees of freedom by the leading term of its expansion."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.95996 + 2.3722 / degrees


def attained_share(runs: Sequence[RunRecord], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the attained share of one simulation's runs; None for fewer than two with an SLO.

    A moving-block bootstrap (Künsch 1989) over the runs in order of submission, blocks of n^(1/3) runs: neighbours
    meet the same load, so that resampling them one by one would feign a narrower interval.
    """
    ordered = sorted(runs, key=lambda run: (run.submitted_s, run.run_id))
    outcomes = np.array([run.attained for run in ordered if run.attained is not None], dtype=np.float64)
    count = len(outcomes)
    if count < 2:
        return None
    length = max(1, round(count ** (1 / 3)))
    sums = np.convolve(outcomes, np.ones(length), mode="valid")
    blocks = math.ceil(count / length)
    drawn = np.random.default_rng([seed, count]).integers(0, len(sums), size=(_RESAMPLES, blocks))
    shares = sums[drawn].sum(axis=1) / (blocks * length)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)
