"""What has a run still to do after a call? Learned from ended runs in two ways; the one that foresees better counts.

By visits: the rest after the n-th call of a node, whatever the SLO and the call's own length. By SLO: what a run takes
alone, as a share of its SLO, for users who give longer runs more time; what it has done is taken off, and what is left
is for the call at hand and for the rest. For each workflow the way that foresaw its last runs better is followed.

    P(rest ≤ x) = F(x)                                      by visits, F the distribution of rests
    P(W ≤ x)    = (G((e + x)/S) - G(e/S)) / (1 - G(e/S))    by SLO, W what is left alone, G that of shares of the SLO S,
                                                            e what is done, alone

With W the call's own length is known where it ends its run; where it does not, lengths beyond W are ruled out. What is
learned leaves out what calls waited, at the gateway and in engines, so that a congested hour does not make every run
look hopeless in the next. Of runs that failed nothing is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import frexp
from typing import NamedTuple, Protocol

import numpy as np

from scheduler.config import LengthConfig
from scheduler.curve import Curve, Floats, total
from scheduler.frozen import builder
from scheduler.length import BUCKETS, PER_DOUBLING, Key, QuantityModel
from scheduler.runs import Mark, Progress, RunFacts

UNIT_S = 0.01
"""Rests are learned in hundredths of a second, up to 2^18 of them: 44 minutes. Below one: the run ended there."""
LEAST_SHARE = 0.06
SHARE_POWER = 4
"""Shares of the SLO are learned as (share / LEAST_SHARE)^4: 16 buckets per doubling, up to 1.36 of the SLO."""
PRIOR_MEDIAN_S = 5.0
PRIOR_SIGMA = 1.8
PRIOR_MEDIAN_SHARE = 0.5
PRIOR_SHARE_SIGMA = 0.8
MAX_VISIT = 12
"""From this execution of a node on, its visits are taken together."""
MAX_SCORED = 4
"""Calls of a run from whose rests it is taken which way foresees better."""
_EDGES = 2.0 ** (np.arange(BUCKETS + 1) / PER_DOUBLING)
_EDGES_S = UNIT_S * (_EDGES - 1.0)
_EDGES_SHARE = LEAST_SHARE * _EDGES ** (1.0 / SHARE_POWER)
_ALPHA = 0.02
"""EMA weight of one foreseen rest, and of one run's stretch."""
_MOST_STRETCH = 8.0
_TRUSTED_CALLS = 4.0
"""So many calls with such an SLO count as much as all others of the workflow."""
_ENDS_WITHIN_S = 0.1
"""A rest of less counts as none: the run ended with its call."""
_CERTAIN = 0.999
_LEAST_SLOWER = 1e-3
_MIDDLES = (np.arange(8) + 0.5) / 8
_NEAR = 1.2
_UNFORESEEN = 1e-3
"""Probability of an SLO that no run like this one has had."""
_FORECAST_SIGMA = 1.0
_FORECAST_MEDIAN = float(np.exp(-0.5 * _FORECAST_SIGMA**2))
_LEAST_SEEN = 5
"""Ended runs of a workflow from which on its rests are taken from them."""
_BAND = 1.3
"""What is left counts as foreseen by the probability given to within this factor of it."""


class Rest(Protocol):
    """The distribution of what a run has to do after a call."""

    def within(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long), for many times at once."""
        ...

    def chances(self, left_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
        """P(call and rest end in time), for each placement that leaves `left_s` from its first token on.

        `lengths`: equally likely counts of the call's tokens, of which one takes `step_s` there.
        """
        ...

    def chances_here(self, left_s: Sequence[float], step_s: float, lengths: Sequence[float]) -> list[float]:
        """The same, bit for bit, at one placement for a few times left and at most eight lengths, much faster."""
        ...


@dataclass(frozen=True, slots=True)
class RestByVisit:
    """Whatever the SLO says."""

    curve: Curve

    def within(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long)."""
        return self.curve.all_at(left_s)

    def chances(self, left_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
        """P(call and rest end in time): the two have nothing to do with each other."""
        return _apart(self, left_s, step_s, lengths)

    def chances_here(self, left_s: Sequence[float], step_s: float, lengths: Sequence[float]) -> list[float]:
        """The same at one placement."""
        at = self.curve.at
        return [total([at(left - step_s * length) for length in lengths]) / len(lengths) for left in left_s]


class Ends(NamedTuple):
    """How did runs go on after such calls, whatever their SLOs?"""

    last: float
    """Share of the calls that ended their runs."""
    rests_s: Floats
    """Equally likely rests of the others."""


@dataclass(frozen=True, slots=True)
class RestBySlo:
    """A run takes a share of its SLO when alone, of which some is done: what is left is for the call and the rest."""

    curve: Curve
    slo_s: float
    progress: Progress
    ends: Ends
    stretch: float
    """What later calls and tools take over what they would take alone."""

    def within(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long | the call takes what is expected of it)."""
        done_s = self.progress.done_s + self.progress.expected_tokens * self.progress.step_s
        last, known = self._last(np.array([done_s])), self.curve.at(done_s / self.slo_s)
        if known > _CERTAIN:
            return np.where(left_s >= 0.0, 0.5 * (1.0 + last), 0.0)
        more = (self._below(done_s + left_s / self.stretch) - known) / (1.0 - known)
        chances: Floats = np.where(left_s >= 0.0, last + (1.0 - last) * more, 0.0)
        return chances

    def chances(self, left_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
        """P(call and rest end in time), lengths that the SLO speaks against counting less."""
        done_s, alone_s = self.progress.done_s, self.progress.step_s
        slower = np.maximum(step_s / alone_s, _LEAST_SLOWER)
        known = self.curve.at(done_s / self.slo_s)
        if known > _CERTAIN:
            return _apart(self, left_s, step_s, lengths)
        last = self._last(done_s + lengths * alone_s)
        rows, count = len(left_s), len(lengths) if last <= _CERTAIN else 0
        alone_s_of = np.empty(rows + count + rows * count)  # of all at once: one look-up instead of three
        np.divide(left_s, slower, out=alone_s_of[:rows])
        alone_s_of[:rows] += done_s
        if count:
            own_s = np.multiply(lengths, alone_s, out=alone_s_of[rows : rows + count])
            own_s += done_s
            after_s = np.multiply(step_s[:, None], lengths, out=alone_s_of[rows + count :].reshape(rows, count))
            np.subtract(left_s[:, None], after_s, out=after_s)
            after_s /= self.stretch
            np.maximum(after_s, 0.0, out=after_s)
            after_s += own_s
        alone_s_of /= self.slo_s
        below = self.curve.all_at(alone_s_of)
        ends = below[:rows]
        ends -= known
        np.maximum(ends, 0.0, out=ends)
        ends /= 1.0 - known
        known_by_length = below[rows : rows + count]
        likely = float(count - np.add.reduce(known_by_length))
        if likely < 1.0 - _CERTAIN:
            return ends
        later = below[rows + count :].reshape(rows, count)
        later -= known_by_length
        goes_on: Floats = np.add.reduce(later, axis=1)
        goes_on /= likely
        goes_on *= 1.0 - last
        goes_on += last * ends
        return goes_on

    def chances_here(self, left_s: Sequence[float], step_s: float, lengths: Sequence[float]) -> list[float]:
        """The same at one placement."""
        done_s, alone_s, slo_s = self.progress.done_s, self.progress.step_s, self.slo_s
        below = self.curve.at
        known = below(done_s / slo_s)
        if known > _CERTAIN:
            return _apart_here(self, left_s, step_s, lengths)
        slower = max(step_s / alone_s, _LEAST_SLOWER)
        ends = [max(below((done_s + left / slower) / slo_s) - known, 0.0) / (1.0 - known) for left in left_s]
        own_s = [done_s + length * alone_s for length in lengths]
        last = self._last(np.array(own_s))
        if last > _CERTAIN:
            return ends
        known_by_length = [below(own / slo_s) for own in own_s]
        likely = len(lengths) - total(known_by_length)
        if likely < 1.0 - _CERTAIN:
            return ends
        found = []
        for left, end in zip(left_s, ends, strict=True):
            later = []
            for length, own, before in zip(lengths, own_s, known_by_length, strict=True):
                after_s = max((left - step_s * length) / self.stretch, 0.0)
                later.append(below((own + after_s) / slo_s) - before)
            found.append(total(later) / likely * (1.0 - last) + last * end)
        return found

    def _last(self, own_s: Floats) -> float:
        """P(the call ends the run | the SLO), for equally likely times alone until the call's end."""
        last, rests_s = self.ends
        if not 0.0 < last < 1.0:
            return last
        # How probable would such a run be given about this SLO? Of all times that it may take alone at one stroke.
        count = len(own_s)
        low, high = shares = np.empty((2, count + count * len(rests_s)))
        low[:count] = own_s
        np.add(own_s[:, None], rests_s, out=low[count:].reshape(count, len(rests_s)))
        low /= self.slo_s
        np.multiply(low, _NEAR, out=high)
        low /= _NEAR
        below, near = self.curve.all_at(shares)
        near -= below
        ends = last * (float(np.add.reduce(near[:count])) / count + _UNFORESEEN)
        goes_on = float(np.add.reduce(near[count:])) / (len(near) - count) + _UNFORESEEN
        return ends / (ends + (1.0 - last) * goes_on)

    def _below(self, alone_s: Floats) -> Floats:
        return self.curve.all_at(alone_s / self.slo_s)


@dataclass(frozen=True, slots=True)
class RestByForecast:
    """What the run's forecast expects, before a run of the workflow has ended here: log-normal with that mean."""

    mean_s: float

    def within(self, left_s: Floats) -> Floats:
        """P(the rest takes at most so long); the normal distribution is taken as the logistic."""
        if self.mean_s <= 0.0:
            return (left_s >= 0.0).astype(np.float64)
        ratio = _FORECAST_MEDIAN * self.mean_s / np.maximum(left_s, 1e-9)
        chances: Floats = np.where(left_s > 0.0, 1.0 / (1.0 + np.minimum(ratio, 1e9) ** (1.702 / _FORECAST_SIGMA)), 0.0)
        return chances

    def chances(self, left_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
        """P(call and rest end in time): the two have nothing to do with each other."""
        return _apart(self, left_s, step_s, lengths)

    def chances_here(self, left_s: Sequence[float], step_s: float, lengths: Sequence[float]) -> list[float]:
        """The same at one placement."""
        if self.mean_s <= 0.0:
            count = len(lengths)
            return [sum(left - step_s * length >= 0.0 for length in lengths) / count for left in left_s]
        return _apart_here(self, left_s, step_s, lengths)


_new_by_slo = builder(RestBySlo)


def _apart(rest: Rest, left_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
    """P(call and rest end in time) where the call's length says nothing of the rest."""
    times_s = step_s[:, None] * lengths
    np.subtract(left_s[:, None], times_s, out=times_s)
    chances: Floats = np.add.reduce(rest.within(times_s), axis=1)
    chances /= len(lengths)
    return chances


def _apart_here(rest: Rest, left_s: Sequence[float], step_s: float, lengths: Sequence[float]) -> list[float]:
    """The same at one placement, as one array: NumPy's powers differ from Python's in the last bit."""
    times_s = [left - step_s * length for left in left_s for length in lengths]
    chances, count = rest.within(np.array(times_s)).tolist(), len(lengths)
    return [total(chances[start : start + count]) / count for start in range(0, len(chances), count)]


class RestModel:
    """Learns rests of ended runs."""

    def __init__(self, config: LengthConfig) -> None:
        self._visits = QuantityModel(config, PRIOR_MEDIAN_S / UNIT_S, PRIOR_SIGMA)
        prior_share = (PRIOR_MEDIAN_SHARE / LEAST_SHARE) ** SHARE_POWER
        self._shares = QuantityModel(config, prior_share, PRIOR_SHARE_SIGMA * SHARE_POWER)
        self._kept: dict[tuple[str, str, int], tuple[RestByVisit, Ends]] = {}
        """What was last given out, until something is learned."""
        self._kept_at = 0
        self._shares_of: dict[tuple[str, int], Curve] = {}
        self._workflows: dict[str, _Workflow] = {}
        self._most_keys = config.max_keys

    def rest(
        self, workflow: str, node: str, visit: int, slo_s: float | None, progress: Progress, forecast_s: float
    ) -> Rest:
        """What is known of the rest after the `visit`-th call of a node.

        `forecast_s`: what the run's own forecast expects, for workflows of which few runs have ended.
        """
        known = self._workflows.get(workflow)
        if known is None or known.runs < _LEAST_SEEN:
            return RestByForecast(forecast_s)
        by_visit, ends = self._by_visit(workflow, node, visit)
        if slo_s is not None and known.by_slo > known.by_visit:
            return self._by_slo(workflow, slo_s, progress, ends, known.stretch(slo_s))
        return by_visit

    def paced(self, workflow: str, slo_s: float | None, took_s: float, needed_s: float) -> None:
        """A call ended that took so long, waits left out, and would have taken `needed_s` alone, tools included."""
        self._known(workflow).paced(slo_s, took_s, needed_s)

    def learn(self, facts: RunFacts, ended_s: float) -> None:
        """A run succeeded at `ended_s`: learn what was left after each of its calls, and who foresaw it."""
        known = self._known(facts.workflow)
        known.runs += 1
        for mark in _some(facts.marks) if facts.slo_s is not None else ():
            self._score(known, facts, mark, _rest_s(facts, mark, ended_s))
        for mark in facts.marks:
            rest_s = _rest_s(facts, mark, ended_s)
            self._visits.observe(_keys(facts.workflow, mark.node, mark.visit), rest_s / UNIT_S + 1.0)
        if facts.slo_s is not None:
            share = facts.needed_until_s(ended_s) / facts.slo_s
            self._shares.observe(_slo_keys(facts.workflow, facts.slo_s), (share / LEAST_SHARE) ** SHARE_POWER)

    def _known(self, workflow: str) -> "_Workflow":
        known = self._workflows.get(workflow)
        if known is None:
            if len(self._workflows) >= self._most_keys:
                del self._workflows[next(iter(self._workflows))]
            known = self._workflows[workflow] = _Workflow()
        return known

    def _score(self, known: "_Workflow", facts: RunFacts, mark: Mark, rest_s: float) -> None:
        """How probable was what was left from the call's first token on, by either way, when the call came?"""
        if facts.slo_s is None or mark.progress is None or mark.lengths is None:
            return
        left_s = mark.decode_s + rest_s
        band = left_s / _BAND - 2.0 * UNIT_S, left_s * _BAND + 2.0 * UNIT_S
        step_s, lengths = mark.decode_s / mark.tokens, mark.lengths.tolist()
        by_visit, ends = self._by_visit(facts.workflow, mark.node, mark.visit)
        by_slo = self._by_slo(facts.workflow, facts.slo_s, mark.progress, ends, known.stretch(facts.slo_s))
        for name, way in (("by_visit", by_visit), ("by_slo", by_slo)):
            low, high = way.chances_here(band, step_s, lengths)
            before = getattr(known, name)
            setattr(known, name, before + _ALPHA * (high - low - before))

    def _by_visit(self, workflow: str, node: str, visit: int) -> tuple[RestByVisit, Ends]:
        """Rests after the visit, and how runs went on there."""
        self._forget_outdated()
        key = workflow, node, min(visit, MAX_VISIT)
        kept = self._kept.get(key)
        if kept is None:
            cdf = np.array(self._visits.distribution(_keys(workflow, node, visit)).cdf)
            cdf[0] = cdf[1]  # the first bucket is a step at 0: runs that end there
            curve = Curve(_EDGES_S, cdf)
            last = curve.at(_ENDS_WITHIN_S)
            rests_s: Floats = np.interp(last + (1.0 - last) * _MIDDLES, cdf, _EDGES_S)
            kept = self._kept[key] = RestByVisit(curve), Ends(last, rests_s)
        return kept

    def _by_slo(self, workflow: str, slo_s: float, progress: Progress, ends: Ends, stretch: float) -> RestBySlo:
        self._forget_outdated()
        key = workflow, _doubling(slo_s)
        curve = self._shares_of.get(key)
        if curve is None:
            shares = self._shares.distribution(_slo_keys(workflow, slo_s))
            curve = self._shares_of[key] = Curve(_EDGES_SHARE, np.array(shares.cdf))
        return _new_by_slo(curve, slo_s, progress, ends, stretch)

    def _forget_outdated(self) -> None:
        changes = self._visits.changes + self._shares.changes
        if changes != self._kept_at or max(len(self._kept), len(self._shares_of)) >= self._most_keys:
            self._kept_at = changes
            self._kept.clear()
            self._shares_of.clear()


@dataclass(slots=True)
class _Workflow:
    """What was learned of a workflow beside distributions."""

    runs: int = 0
    by_visit: float = 0.0
    """How well what was left was foreseen by visits …"""
    by_slo: float = 0.0
    """… and by the SLO (EMA)."""
    pace: "_Pace" = field(default_factory=lambda: _Pace())
    paces: dict[int, "_Pace"] = field(default_factory=dict)
    """The same by SLO, a doubling apart: long runs are served at another pace than short ones."""

    def paced(self, slo_s: float | None, took_s: float, needed_s: float) -> None:
        """A call ended."""
        self.pace.add(took_s, needed_s)
        if slo_s is not None:
            self.paces.setdefault(_doubling(slo_s), _Pace()).add(took_s, needed_s)

    def stretch(self, slo_s: float) -> float:
        """What calls and tools take over what they take alone in runs with such an SLO."""
        own = self.paces.get(_doubling(slo_s))
        if own is None:
            return self.pace.ratio
        return self.pace.ratio + own.calls / (own.calls + _TRUSTED_CALLS) * (own.ratio - self.pace.ratio)


@dataclass(slots=True)
class _Pace:
    """What calls took and would have taken alone, in sums in which old ones fade."""

    calls: int = 0
    took_s: float = 0.0
    needed_s: float = 0.0

    def add(self, took_s: float, needed_s: float) -> None:
        """A call ended."""
        self.calls += 1
        self.took_s += took_s - _ALPHA * self.took_s
        self.needed_s += needed_s - _ALPHA * self.needed_s

    @property
    def ratio(self) -> float:
        """At least 1, and no more than what can be believed."""
        return min(max(self.took_s / max(self.needed_s, 1e-6), 1.0), _MOST_STRETCH)


def _doubling(slo_s: float) -> int:
    return min(max(frexp(slo_s)[1], -6), 24)


def _some(marks: Sequence[Mark]) -> Sequence[Mark]:
    return marks[:: -(-len(marks) // MAX_SCORED)] if marks else marks


def _rest_s(facts: RunFacts, mark: Mark, ended_s: float) -> float:
    return max(ended_s - mark.ended_s - (facts.waited_s - mark.waited_s), 0.0)


def _keys(workflow: str, node: str, visit: int) -> tuple[Key, ...]:
    return ("workflow", workflow), ("node", workflow, node), ("visit", workflow, node, str(min(visit, MAX_VISIT)))


def _slo_keys(workflow: str, slo_s: float) -> tuple[Key, ...]:
    return ("workflow", workflow), ("slo", workflow, str(_doubling(slo_s)))
