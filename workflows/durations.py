"""How long does a step take? Distributions of durations over fixed logarithmic buckets, so that counts add up.

Bucket 0 is [0, 1 ms]; each further one is 12 % wide, up to a day. Within a bucket durations are taken as uniform.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from workflows.run import StepKind

Vector = NDArray[np.float64]

FIRST_UPPER_S = 1e-3
GROWTH = 1.12
BUCKETS = 2 + math.ceil(math.log(86_400 / FIRST_UPPER_S) / math.log(GROWTH))
UPPER_S: Vector = FIRST_UPPER_S * GROWTH ** np.arange(BUCKETS, dtype=np.float64)
LOWER_S: Vector = np.concatenate([[0.0], UPPER_S[:-1]])
MIDDLE_S: Vector = (LOWER_S + UPPER_S) / 2
_UPPER_LIST: list[float] = UPPER_S.tolist()

PRIOR_MEAN_S = {StepKind.LLM: 5.0, StepKind.TOOL: 0.5}
"""Cold start: a reply of some 400 tokens on one GPU; a tool that looks something up."""
PRIOR_SIGMA = 0.8
"""Spread of the cold-start distributions, log-normal: p90 is about four times p10's distance from the median."""
STRAGGLING = 0.1
"""A step is never expected to end sooner than after this share of the time it has already run: less than a bucket."""


Buckets = Mapping[int, int]
"""Counts by bucket."""


def vector(counts: Iterable[Buckets]) -> Vector:
    """The sum of counts, as one number per bucket."""
    total = [0] * BUCKETS
    for buckets in counts:
        for bucket, count in buckets.items():
            total[bucket] += count
    return np.array(total, dtype=np.float64)


def bucket_of(duration_s: float) -> int:
    """The bucket of a duration in seconds; negative ones count as 0, those over a day (or not a number) as a day."""
    if math.isnan(duration_s):
        return BUCKETS - 1
    return min(bisect_left(_UPPER_LIST, duration_s), BUCKETS - 1)


@dataclass(frozen=True, eq=False)
class Durations:
    """A distribution: `weights` per bucket, summing to 1, from so many `observations`."""

    weights: Vector
    observations: int

    @classmethod
    def learned(cls, counts: Vector, prior: Self) -> Self:
        """What was observed, mixed with a prior that weighs one observation at first and 1 / (1 + n) of one after n."""
        observed = float(counts.sum())
        prior_weight = 1.0 / (1.0 + observed)
        weights = (counts + prior_weight * prior.weights) / (observed + prior_weight)
        return cls(weights, int(observed))

    @cached_property
    def mean_s(self) -> float:
        """The expected duration."""
        return float(self.weights @ MIDDLE_S)

    def quantile_s(self, q: float) -> float:
        """The duration that a share `q` (0 to 1) of the steps does not exceed."""
        index = min(int(np.searchsorted(self._cumulated, q)), BUCKETS - 1)
        below = float(self._cumulated[index - 1]) if index else 0.0
        weight = float(self.weights[index])
        inside = min(1.0, max(0.0, (q - below) / weight)) if weight > 0 else 1.0
        return float(LOWER_S[index]) + inside * float(UPPER_S[index] - LOWER_S[index])

    def longest_of_s(self, width: int) -> float:
        """The expected longest of `width` independent steps: the mean under the distribution function to that power."""
        if width <= 1:
            return self.mean_s
        powered = self._cumulated**width
        return float(np.diff(powered, prepend=0.0) @ MIDDLE_S)

    def remaining_s(self, elapsed_s: float) -> float:
        """The expected rest of a step that has run for `elapsed_s` and not ended: E[X - a | X > a].

        Elapsed plus rest never falls while time passes, as for any distribution.
        """
        elapsed_s = max(0.0, elapsed_s)
        index = min(bisect_left(_UPPER_LIST, elapsed_s), BUCKETS - 1)
        lower, upper = float(LOWER_S[index]), float(UPPER_S[index])
        share = min(1.0, max(0.0, (upper - elapsed_s) / (upper - lower)))
        here = share * float(self.weights[index])
        mass = here + float(self._mass_above[index])
        floor_s = STRAGGLING * elapsed_s
        if mass <= 1e-12:
            return floor_s
        total = here * (max(elapsed_s, lower) + upper) / 2 + float(self._moment_above[index])
        return max(floor_s, total / mass - elapsed_s)

    @cached_property
    def _cumulated(self) -> Vector:
        return np.cumsum(self.weights)

    @cached_property
    def _mass_above(self) -> Vector:
        return _above(self.weights)

    @cached_property
    def _moment_above(self) -> Vector:
        return _above(self.weights * MIDDLE_S)


def _above(values: Vector) -> Vector:
    """For each bucket the sum over those after it."""
    sums: Vector = np.cumsum(values[::-1])[::-1]
    return np.concatenate([sums[1:], [0.0]])


@lru_cache(maxsize=8)
def prior(kind: StepKind) -> Durations:
    """What to expect of a kind of step of which nothing is known: log-normal with mean PRIOR_MEAN_S."""
    centre = math.log(PRIOR_MEAN_S[kind]) - PRIOR_SIGMA**2 / 2
    below = [0.5 * (1 + math.erf((math.log(upper) - centre) / (PRIOR_SIGMA * math.sqrt(2)))) for upper in _UPPER_LIST]
    weights = np.diff(np.array(below), prepend=0.0)
    return Durations(weights / weights.sum(), 0)


def no_time() -> Durations:
    """What to expect of the gap between two steps before one was seen: none."""
    weights = np.zeros(BUCKETS)
    weights[0] = 1.0
    return Durations(weights, 0)
