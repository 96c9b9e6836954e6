"""How long from a node to the end? A Markov chain over a workflow's nodes, learned from what followed what.

Each node has outcomes: sets of nodes that may follow it together, each with a probability. The expected time from the
end of a node to the run's end, R, solves

    R(n) = sum over outcomes o of P(o | n) * max over c in o of ( G(c) + X(n, c) + R(c) ),    R(END) = 0

with G(c) the gap before c and X(n, c) the expected duration of c, of the longest if n starts it several times. The
maximum is the join: it waits for the slowest branch. Solved by policy iteration: fix for every outcome the branch that
is slowest, solve the linear system of the absorbing chain, choose again, until no choice changes.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workflows.counts import MAX_VISIT
from workflows.durations import Vector
from workflows.graph import END, START
from workflows.shape import able_to_end, back_edges, loops, post_dominators

Outcome = tuple[str, ...]

PRIOR_OBSERVATIONS = 1.0
"""Weight of the graph's shape against observed transitions of a node."""
VISIT_PRIOR_OBSERVATIONS = 2.0
"""Weight of all visits of a node against those with one visit number."""
LOOP_PRIOR_VISITS = 2.0
"""How often a loop is expected to be gone through before any run was seen."""
PLAUSIBLE = 0.05
"""Outcomes less probable than this (and not their node's most probable one) shape neither joins nor the fast path."""
MAX_ROUNDS = 64
MAX_REMAINING_S = 1e7

Cost = Callable[[str, str], float]


@dataclass(frozen=True)
class Chain:
    """Outcomes of START and every node with their probabilities; every node can end."""

    outcomes: Mapping[str, Mapping[Outcome, float]]
    closing: Mapping[str, frozenset[Outcome]]
    """Of nodes that may close a loop: the outcomes by which they do."""
    repeats: Mapping[str, Sequence[float]]
    """Of those with a choice and observations, by visit from the first: the probability of closing the loop then."""

    @classmethod
    def learned(
        cls, shape: Mapping[str, Sequence[Outcome]], seen: Mapping[str, Mapping[int, Mapping[Outcome, int]]]
    ) -> "Chain":
        """From the graph's outcomes and the observed ones: node → visit → outcome → count."""
        possible = _possible(shape, seen)
        closing = _closing(possible)
        again = _prior_repeat(possible, closing)
        outcomes, repeats = {}, {}
        for node, found in possible.items():
            expected = _expected(
                shape.get(node) or ((END,),), found, closing.get(node, frozenset()), again.get(node, 1.0)
            )
            visits = seen.get(node, {})
            outcomes[node] = _posterior(expected, _totals(visits), PRIOR_OBSERVATIONS)
            if node in again and visits:
                repeats[node] = _repeats_by_visit(outcomes[node], visits, closing[node], again[node])
        return cls(outcomes, closing, repeats)

    @cached_property
    def plausible(self) -> Mapping[str, Mapping[Outcome, float]]:
        """The outcomes that are not rare; a node that could not end by these keeps all of its own."""
        kept = {node: _not_rare(found) for node, found in self.outcomes.items()}
        ending = able_to_end(END, {node: list(found) for node, found in kept.items()})
        return kept | {node: dict(found) for node, found in self.outcomes.items() if node not in ending}

    @cached_property
    def joins(self) -> Mapping[str, str]:
        """For each node the nearest other one that all that may plausibly follow leads through; END at the latest."""
        successors = {node: sorted({t for o in found for t in o}) for node, found in self.plausible.items()}
        return post_dominators(END, successors)

    def probabilities(self, visits: Mapping[str, int]) -> Mapping[str, Mapping[Outcome, float]]:
        """The outcomes in a run whose next visit of each node has the number given (1 unless told).

        A loop's probability of going on is set so that as many further visits are expected as runs made from there on.
        """
        changed = dict(self.outcomes)
        for node, by_visit in self.repeats.items():
            wanted = _steady_repeat(by_visit, visits.get(node, 1))
            changed[node] = _with_repeat(self.outcomes[node], self.closing[node], wanted)
        return changed

    def remaining_s(self, cost: Cost, visits: Mapping[str, int]) -> dict[str, float]:
        """R of START and every node, in seconds; `cost(source, target)` is the time from source's end to target's."""
        outcomes = self.probabilities(visits)
        index = {node: position for position, node in enumerate(outcomes)}
        branches = _branches(outcomes, index, cost)
        remaining = np.zeros(len(index) + 1)
        chosen: list[int] = []
        for _ in range(MAX_ROUNDS):
            choice = [_slowest(ways, remaining) for _, _, ways in branches]
            if choice == chosen:
                break
            chosen = choice
            remaining = _solve(branches, chosen, len(index))
        return {node: min(max(0.0, float(remaining[at])), MAX_REMAINING_S) for node, at in index.items()}

    def fastest_s(self, cost: Cost) -> dict[str, float]:
        """The time from a node's end to the run's end on the shortest plausible path, of forks the slowest branch."""
        fastest = dict.fromkeys(self.outcomes, math.inf) | {END: 0.0}
        ways = {
            node: [[(cost(node, target), target) for target in outcome] for outcome in found]
            for node, found in self.plausible.items()
        }
        order = list(ways)[::-1]
        changed = True
        while changed:
            changed = False
            for node in order:
                best = min(max(spent + fastest[target] for spent, target in way) for way in ways[node])
                if best < fastest[node]:
                    fastest[node], changed = best, True
        return fastest


_Branch = tuple[int, float, list[tuple[float, int]]]


def _branches(outcomes: Mapping[str, Mapping[Outcome, float]], index: Mapping[str, int], cost: Cost) -> list[_Branch]:
    """Every outcome as (node, probability, [(time to the target's end, target)]); END is the last position."""
    end = len(index)
    return [
        (index[node], chance, [(cost(node, target), index.get(target, end)) for target in outcome])
        for node, found in outcomes.items()
        for outcome, chance in found.items()
    ]


def _slowest(ways: Sequence[tuple[float, int]], remaining: Vector) -> int:
    if len(ways) == 1:
        return 0
    ends = [time_s + float(remaining[target]) for time_s, target in ways]
    return ends.index(max(ends))


def _solve(branches: Sequence[_Branch], chosen: Sequence[int], size: int) -> Vector:
    system = np.eye(size + 1)
    spent = np.zeros(size + 1)
    for (node, chance, ways), way in zip(branches, chosen, strict=True):
        time_s, target = ways[way]
        spent[node] += chance * time_s
        system[node, target] -= chance
    return np.asarray(np.linalg.solve(system, spent), dtype=np.float64)


def _possible(
    shape: Mapping[str, Sequence[Outcome]], seen: Mapping[str, Mapping[int, Mapping[Outcome, int]]]
) -> dict[str, list[Outcome]]:
    """The outcomes of every node that is known or was seen; END after those that could not end otherwise."""
    found: dict[str, dict[Outcome, None]] = {START: {}}
    for node, told in shape.items():
        found.setdefault(node, {}).update(dict.fromkeys(told))
    for node, visits in seen.items():
        for counted in visits.values():
            found.setdefault(node, {}).update(dict.fromkeys(sorted(counted)))
    targets = [target for outcomes in found.values() for outcome in outcomes for target in outcome]
    for target in dict.fromkeys(targets):
        if target != END:
            found.setdefault(target, {})
    for node, outcomes in found.items():
        if not shape.get(node):
            outcomes[(END,)] = None
    ending = able_to_end(END, {node: list(outcomes) for node, outcomes in found.items()})
    for node, outcomes in found.items():
        if node not in ending:
            outcomes[(END,)] = None
    return {node: list(outcomes) for node, outcomes in found.items()}


def _closing(possible: Mapping[str, Sequence[Outcome]]) -> dict[str, frozenset[Outcome]]:
    """The outcomes that close a loop: by them a node surely comes again, or a search from START is led back."""
    successors = {node: list(dict.fromkeys(t for o in found for t in o)) for node, found in possible.items()}
    back = back_edges(START, successors)
    nearest = post_dominators(END, successors)
    found: dict[str, frozenset[Outcome]] = {}
    for node, outcomes in possible.items():
        leading = {target for target in successors[node] if (node, target) in back or _surely(target, node, nearest)}
        if closed := frozenset(outcome for outcome in outcomes if leading.intersection(outcome)):
            found[node] = closed
    return found


def _surely(source: str, node: str, nearest: Mapping[str, str]) -> bool:
    """Whether all that follows `source` leads through `node`."""
    while source in nearest:
        source = nearest[source]
        if source == node:
            return True
    return False


def _prior_repeat(
    possible: Mapping[str, Sequence[Outcome]], closing: Mapping[str, frozenset[Outcome]]
) -> dict[str, float]:
    """For nodes that may close a loop or not: the probability that they do, for LOOP_PRIOR_VISITS in all."""
    choosers = [node for node, closed in closing.items() if len(closed) < len(possible[node])]
    successors = {node: list(dict.fromkeys(t for o in found for t in o)) for node, found in possible.items()}
    group = loops(START, successors)
    sharing = Counter(group.get(node, node) for node in choosers)
    return {node: 1.0 - (1.0 / LOOP_PRIOR_VISITS) ** (1.0 / sharing[group.get(node, node)]) for node in choosers}


def _expected(
    shape: Sequence[Outcome], possible: Sequence[Outcome], closing: frozenset[Outcome], again: float
) -> dict[Outcome, float]:
    """The probabilities from the shape alone: uniform, but all that close a loop have the chance `again`."""
    known = [outcome for outcome in possible if outcome in shape or outcome == (END,)]
    closed = [outcome for outcome in known if outcome in closing]
    onward = [outcome for outcome in known if outcome not in closing]
    share = again if closed and onward else float(bool(closed))
    expected = dict.fromkeys(possible, 0.0)
    expected.update({outcome: share / len(closed) for outcome in closed})
    expected.update({outcome: (1.0 - share) / len(onward) for outcome in onward})
    return expected


def _totals(visits: Mapping[int, Mapping[Outcome, int]]) -> dict[Outcome, int]:
    totals: dict[Outcome, int] = {}
    for outcomes in visits.values():
        for outcome, count in outcomes.items():
            totals[outcome] = totals.get(outcome, 0) + count
    return totals


def _posterior(expected: Mapping[Outcome, float], seen: Mapping[Outcome, int], weight: float) -> dict[Outcome, float]:
    """Dirichlet: the prior counts as `weight` observations."""
    total = sum(seen.values()) + weight
    return {outcome: (seen.get(outcome, 0) + weight * chance) / total for outcome, chance in expected.items()}


def _not_rare(outcomes: Mapping[Outcome, float]) -> dict[Outcome, float]:
    likeliest = max(outcomes.values())
    return {outcome: chance for outcome, chance in outcomes.items() if chance >= min(PLAUSIBLE, likeliest)}


def _repeats_by_visit(
    overall: Mapping[Outcome, float],
    visits: Mapping[int, Mapping[Outcome, int]],
    closing: frozenset[Outcome],
    again: float,
) -> list[float]:
    """The probability of closing a loop at the first, second, ... visit; the last holds for all later ones."""
    usual = sum(chance for outcome, chance in overall.items() if outcome in closing)
    expected = VISIT_PRIOR_OBSERVATIONS * usual + PRIOR_OBSERVATIONS * again
    weight = VISIT_PRIOR_OBSERVATIONS + PRIOR_OBSERVATIONS
    found = []
    for visit in range(1, min(max(visits) + 1, MAX_VISIT) + 1):
        outcomes = visits.get(visit, {})
        closed = sum(count for outcome, count in outcomes.items() if outcome in closing)
        found.append((closed + expected) / (sum(outcomes.values()) + weight))
    return found


def _steady_repeat(by_visit: Sequence[float], visit: int) -> float:
    """The constant probability of repeating that makes as many further visits expected as those from `visit` on do."""
    expected = 1.0 / (1.0 - by_visit[-1])
    for repeat in reversed(by_visit[visit - 1 : -1]):
        expected = 1.0 + repeat * expected
    return 1.0 - 1.0 / expected


def _with_repeat(outcomes: Mapping[Outcome, float], closing: frozenset[Outcome], wanted: float) -> dict[Outcome, float]:
    usual = sum(chance for outcome, chance in outcomes.items() if outcome in closing)
    return {
        outcome: chance * (wanted / usual if outcome in closing else (1.0 - wanted) / (1.0 - usual))
        for outcome, chance in outcomes.items()
    }
