"""What has a run still to do once a call of it has ended? Learned from ended runs in two ways; the better one counts.

By visits: the rest after the n-th call of a node, whatever the SLO. By SLO: the whole served time as a share of the
SLO, for users who give longer runs more time; what the run has had is taken off. For each workflow the way that foresaw
its last runs better is followed.

    P(rest ≤ x) = F(x)                              by visits, F the distribution of rests
    P(rest ≤ x) = (G((e + x)/S) - G(e/S)) / (1 - G(e/S))   by SLO, G that of served time ÷ SLO, e served so far

Served time leaves out what calls waited, at the gateway and in engines, so that a congested hour does not make every
run look hopeless in the next. Of runs that failed nothing is learned.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.config import LengthConfig
from scheduler.length import BUCKETS, PER_DOUBLING, Key, LengthDistribution, QuantityModel
from scheduler.runs import RunFacts

Floats = NDArray[np.float64]
UNIT_S = 0.01
"""Rests are learned in hundredths of a second, up to 2^18 of them: 44 minutes. Below one: the run ended there."""
UNIT_SHARE = 1e-3
"""Served time is learned in thousandths of the SLO."""
PRIOR_MEDIAN_S = 5.0
PRIOR_SIGMA = 1.8
PRIOR_MEDIAN_SHARE = 0.5
PRIOR_SHARE_SIGMA = 0.8
MAX_VISIT = 12
"""From this execution of a node on, its visits are taken together."""
_EDGES = 2.0 ** (np.arange(BUCKETS + 1) / PER_DOUBLING)
_EDGES_S = UNIT_S * (_EDGES - 1.0)
_EDGES_SHARE = UNIT_SHARE * _EDGES
_ALPHA = 0.02
"""EMA weight of one foreseen rest."""
_FORECAST_SIGMA = 1.0
_FORECAST_MEDIAN = float(np.exp(-0.5 * _FORECAST_SIGMA**2))
_LEAST_SEEN = 5
"""Ended runs of a workflow from which on its rests are taken from them."""
_BAND = 1.3
"""A rest counts as foreseen by the probability given to within this factor of it."""


class Rest(Protocol):
    """The distribution of what a run has to do after a call."""

    def chances(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long), for many times at once."""
        ...


@dataclass(frozen=True, slots=True)
class RestByVisit:
    """Whatever the SLO says."""

    cdf: Floats

    def chances(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long)."""
        chances: Floats = np.interp(left_s, _EDGES_S, self.cdf, left=0.0)
        return chances


@dataclass(frozen=True, slots=True)
class RestBySlo:
    """A share of the SLO, of which some has been served."""

    cdf: Floats
    slo_s: float
    served_s: float
    """With what the call at hand takes itself."""

    def chances(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long | it has not ended yet)."""
        known = float(np.interp(self.served_s / self.slo_s, _EDGES_SHARE, self.cdf))
        if known > 0.999:
            return np.where(left_s >= 0.0, 0.5, 0.0)
        below = np.interp((self.served_s + left_s) / self.slo_s, _EDGES_SHARE, self.cdf)
        chances: Floats = np.where(left_s >= 0.0, (below - known) / (1.0 - known), 0.0)
        return chances


@dataclass(frozen=True, slots=True)
class RestByForecast:
    """What the run's forecast expects, before a run of the workflow has ended here: log-normal with that mean."""

    mean_s: float

    def chances(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long); the normal distribution is taken as the logistic."""
        if self.mean_s <= 0.0:
            return np.where(left_s >= 0.0, 1.0, 0.0)
        ratio = _FORECAST_MEDIAN * self.mean_s / np.maximum(left_s, 1e-9)
        chances: Floats = np.where(left_s > 0.0, 1.0 / (1.0 + np.minimum(ratio, 1e9) ** (1.702 / _FORECAST_SIGMA)), 0.0)
        return chances


class RestModel:
    """Learns rests of ended runs."""

    def __init__(self, config: LengthConfig) -> None:
        self._visits = QuantityModel(config, PRIOR_MEDIAN_S / UNIT_S, PRIOR_SIGMA)
        self._shares = QuantityModel(config, PRIOR_MEDIAN_SHARE / UNIT_SHARE, PRIOR_SHARE_SIGMA)
        self._arrays: dict[int, tuple[LengthDistribution, Floats]] = {}
        self._foreseen: dict[str, tuple[float, float]] = {}
        """By workflow: how well rests were foreseen by visits, and by SLO."""
        self._runs: dict[str, int] = {}
        self._most_workflows = config.max_keys

    def rest(
        self, workflow: str, node: str, visit: int, slo_s: float | None, served_s: float, forecast_s: float
    ) -> Rest:
        """What is known of the rest after the `visit`-th call of a node, in a run served `served_s` by then.

        `forecast_s`: what the run's own forecast expects, for workflows of which few runs have ended.
        """
        if self._runs.get(workflow, 0) < _LEAST_SEEN:
            return RestByForecast(forecast_s)
        by_visit, by_slo = self._foreseen.get(workflow, (0.0, 0.0))
        if slo_s is not None and by_slo > by_visit:
            return self._by_slo(workflow, slo_s, served_s)
        return self._by_visit(workflow, node, visit)

    def learn(self, facts: RunFacts, ended_s: float) -> None:
        """A run succeeded at `ended_s`: learn what was left after each of its calls, and who foresaw it."""
        served_s = ended_s - facts.first_seen_s - facts.waited_s
        self._count(facts.workflow)
        for mark in facts.marks:
            rest_s = max(ended_s - mark.ended_s - (facts.waited_s - mark.waited_s), 0.0)
            if facts.slo_s is not None:
                self._score(facts, mark.node, mark.visit, rest_s, served_s - rest_s)
            self._visits.observe(_keys(facts.workflow, mark.node, mark.visit), rest_s / UNIT_S + 1.0)
        if facts.slo_s is not None:
            self._shares.observe((("workflow", facts.workflow),), served_s / facts.slo_s / UNIT_SHARE)

    def _count(self, workflow: str) -> None:
        if workflow not in self._runs and len(self._runs) >= self._most_workflows:
            oldest = next(iter(self._runs))
            del self._runs[oldest]
            self._foreseen.pop(oldest, None)
        self._runs[workflow] = self._runs.get(workflow, 0) + 1

    def _score(self, facts: RunFacts, node: str, visit: int, rest_s: float, served_s: float) -> None:
        assert facts.slo_s is not None  # noqa: S101  # asked by the caller
        band = np.array([rest_s / _BAND - 2.0 * UNIT_S, rest_s * _BAND + 2.0 * UNIT_S])
        ways = self._by_visit(facts.workflow, node, visit), self._by_slo(facts.workflow, facts.slo_s, served_s)
        low_high = [way.chances(band) for way in ways]
        before = self._foreseen.get(facts.workflow, (0.0, 0.0))
        by_visit, by_slo = (
            old + _ALPHA * (float(chances[1] - chances[0]) - old) for old, chances in zip(before, low_high, strict=True)
        )
        self._foreseen[facts.workflow] = by_visit, by_slo

    def _by_visit(self, workflow: str, node: str, visit: int) -> RestByVisit:
        return RestByVisit(self._array(self._visits.distribution(_keys(workflow, node, visit)), at_once=True))

    def _by_slo(self, workflow: str, slo_s: float, served_s: float) -> RestBySlo:
        known = self._array(self._shares.distribution((("workflow", workflow),)), at_once=False)
        return RestBySlo(known, slo_s, served_s)

    def _array(self, lengths: LengthDistribution, *, at_once: bool) -> Floats:
        """The distribution as an array; `at_once`: its first bucket is a step at 0, runs that end there."""
        kept = self._arrays.get(id(lengths))
        if kept is not None and kept[0] is lengths:
            return kept[1]
        if len(self._arrays) >= 4096:
            self._arrays.clear()
        cdf = np.array(lengths.cdf)
        if at_once:
            cdf[0] = cdf[1]
        self._arrays[id(lengths)] = lengths, cdf
        return cdf


def _keys(workflow: str, node: str, visit: int) -> tuple[Key, ...]:
    return ("workflow", workflow), ("node", workflow, node), ("visit", workflow, node, str(min(visit, MAX_VISIT)))
