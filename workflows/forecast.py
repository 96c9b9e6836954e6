"""How long will what remains of a run take? Learned online from its workflow's counters, from the shape before that.

Counters come from `observe_step`, when a step ends, and `observe_run_end`, when its run does; they add up over runs and
writers. `admit` bounds them. A forecast is made of them at once and never changes; make a new one when they did.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from workflows.chain import Chain, Outcome
from workflows.counts import (
    DurationKey,
    GapKey,
    TransitionKey,
    WidthKey,
    admit,
    leaf_steps,
    observe_gap,
    observe_run_end,
    observe_step,
    observe_transition,
    parsed,
)
from workflows.durations import Buckets, Durations, no_time, prior, vector
from workflows.graph import END, MAX_NODES, START, Workflow
from workflows.run import Run, StepKind, StepStatus

__all__ = [
    "Forecast",
    "NodeForecast",
    "Outlook",
    "admit",
    "observe_gap",
    "observe_run_end",
    "observe_step",
    "observe_transition",
]

FAN_OUT_PRIOR = 3
"""How many times a fan-out is expected to start its target before one was seen; weighs one observation."""
FAST_QUANTILE = 0.1
FAST_MIN_OBSERVATIONS = 5
"""Below this many observations a node may be as fast as it likes: no run is called lost on a guess."""
MAX_OUTLOOKS = 256


@dataclass(frozen=True, slots=True)
class NodeForecast:
    """What is known of a node's duration, in seconds, and of how many observations it is made."""

    kind: StepKind
    mean_s: float
    p10_s: float
    p50_s: float
    p90_s: float
    observations: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """The expected time from the end of each node to the end of the run, for a run that has got so far."""

    _forecast: "Forecast"
    _remaining: Mapping[str, float]

    def remaining_s(self, node: str) -> float:
        """Expected time from the end of a step of `node` to the end of the run, along the critical path."""
        known = self._forecast.nearest_known(node)
        return min((self._remaining[name] for name in known), default=0.0)

    def tail_s(self, node: str) -> float:
        """Expected time from the moment at which `node` could begin to the end of the run; of END, the final gap."""
        return self._forecast.cost_s(None, node) + (0.0 if node == END else self.remaining_s(node))


@dataclass(frozen=True, eq=False)
class Forecast:
    """Expectations about the rest of a run of one workflow; make it with `from_counts`."""

    workflow: Workflow
    _durations: Mapping[str, Mapping[StepKind, Buckets]]
    _gaps: Mapping[str, Buckets]
    _widths: Mapping[tuple[str, str], Mapping[int, int]]
    _seen: Mapping[str, Mapping[int, Mapping[Outcome, int]]]
    _chain: Chain
    _nodes: dict[str, Durations] = field(default_factory=dict)
    _costs: dict[tuple[str | None, str], float] = field(default_factory=dict)
    _outlooks: dict[tuple[tuple[str, int], ...], Outlook] = field(default_factory=dict)

    @classmethod
    def from_counts(cls, workflow: Workflow, counts: Mapping[str, int], before: "Forecast | None" = None) -> "Forecast":
        """The forecast from a workflow's counters; with none of them, from the graph's shape alone.

        Nodes that runs visited without being in the graph are learned, MAX_NODES in all. Foreign keys are passed over.
        With the forecast from `before`, what no run has changed since is taken from it: the same result in less time.
        """
        reader = _Reader(workflow)
        for key in sorted(counts):  # equal counts give equal forecasts, in whatever order a store returns them
            if (count := counts[key]) > 0:
                reader.read(key, count)
        seen = reader.within_limit()
        same = before is not None and before.workflow is workflow and before._seen == seen
        chain = before._chain if before is not None and same else Chain.learned(workflow.outcomes, seen)
        return cls(workflow, reader.durations, reader.gaps, reader.widths, seen, chain)

    def kind(self, node: str) -> StepKind:
        """What the node's steps mostly were; before any was seen, what the graph says, LLM without one."""
        seen = self._durations.get(node)
        if seen:
            return max(sorted(seen), key=lambda kind: sum(seen[kind].values()))
        declared = self.workflow.by_name.get(node)
        return StepKind.LLM if declared is None else declared.kind

    def node(self, node: str) -> NodeForecast:
        """Mean and quantiles of the node's duration."""
        known = self.durations(node)
        p10_s, p50_s, p90_s = (known.quantile_s(q) for q in (0.1, 0.5, 0.9))
        return NodeForecast(self.kind(node), known.mean_s, p10_s, p50_s, p90_s, known.observations)

    def durations(self, node: str) -> Durations:
        """The distribution of the node's duration, over all its kinds; nodes of the same kind stand in at first."""
        if node not in self._nodes:
            seen = self._durations.get(node, {})
            self._nodes[node] = Durations.learned(vector(seen.values()), self._usual[self.kind(node)])
        return self._nodes[node]

    def branches(self, node: str) -> Mapping[str, float]:
        """For each node (or END) that may follow `node` the probability that it does; with forks they add to over 1."""
        found: Counter[str] = Counter()
        for outcome, chance in self._chain.outcomes.get(node, {}).items():
            for target in outcome:
                found[target] += chance  # type: ignore[assignment]  # Counter's stubs know only whole numbers
        return dict(found)

    def remaining_s(self, node: str) -> float:
        """Expected time from the end of `node` (START: from the submission) to the end of a run that begins."""
        return self.outlook({}).remaining_s(node)

    def remaining_fast_s(self, node: str) -> float:
        """The time from the end of `node` to the run's end if all goes well: p10 of each node on the shortest path."""
        known = self.nearest_known(node)
        return min((min(self._fastest[name], self.remaining_s(name)) for name in known), default=0.0)

    def outlook_of(self, run: Run) -> Outlook:
        """The outlook of a run: as `outlook`, for the visits it has made."""
        visits: Counter[str] = Counter()
        running: set[str] = set()
        for step in leaf_steps(tuple(run.steps.values())):
            visits[step.node] += 1
            if step.status is StepStatus.RUNNING:
                running.add(step.node)
        return self.outlook({node: count + (node not in running) for node, count in visits.items()})

    def outlook(self, visits: Mapping[str, int]) -> Outlook:
        """What remains after each node in a run whose next end of it is its so-many-th (the first unless told)."""
        repeats = self._chain.repeats
        key = tuple((node, min(visits.get(node, 1), len(repeats[node]))) for node in repeats)
        if key not in self._outlooks:
            if len(self._outlooks) >= MAX_OUTLOOKS:
                self._outlooks.clear()
            self._outlooks[key] = Outlook(self, self._chain.remaining_s(self.cost_s, dict(key)))
        return self._outlooks[key]

    def join(self, nodes: Iterable[str]) -> str:
        """The nearest node that whatever follows any of `nodes` leads through; END at the latest."""
        common: list[str] | None = None
        for node in nodes:
            path = self.joins_after(node)
            common = path if common is None else [name for name in common if name in path]
        return common[0] if common else END

    def joins_after(self, node: str) -> list[str]:
        """The nodes that whatever follows `node` leads through, nearest first; the last is END."""
        path = [self._chain.joins.get(min(self.nearest_known(node), default=END), END)]
        while path[-1] != END:
            path.append(self._chain.joins[path[-1]])
        return path

    def cost_s(self, source: str | None, target: str) -> float:
        """Expected time from the end of `source` to the end of `target`: gap and duration, the longest of a fan-out.

        Without a source: of a single `target`.
        """
        if (source, target) not in self._costs:
            gaps = self._gaps.get(target)
            gap_s = Durations.learned(vector([gaps]), no_time()).mean_s if gaps else 0.0
            self._costs[source, target] = gap_s + (0.0 if target == END else self._longest_s(source, target))
        return self._costs[source, target]

    def nearest_known(self, node: str) -> tuple[str, ...]:
        """The node itself; failing that the nodes inside of it, or the one it is inside of; or none."""
        known = self._chain.outcomes
        if node in known:
            return (node,)
        if inside := tuple(name for name in known if name.startswith(f"{node}:")):
            return inside
        while ":" in node:
            node = node.rpartition(":")[0]
            if node in known:
                return (node,)
        return ()

    def _longest_s(self, source: str | None, target: str) -> float:
        durations = self.durations(target)
        widths = {} if source is None else self._width_chances(source, target)
        if not widths:
            return durations.mean_s
        return sum(chance * durations.longest_of_s(width) for width, chance in widths.items())

    def _width_chances(self, source: str, target: str) -> Mapping[int, float]:
        """How often `source` starts `target` so many times at once; empty where it only ever does once."""
        seen = self._widths.get((source, target), {})
        expected = (source, target) in self._fan_outs
        if not seen and not expected:
            return {}
        together = sum(seen.values())
        times = max(together, self._times(source, target))
        prior_weight = 1.0 / (1.0 + times) if expected else 0.0
        chances: dict[int, float] = {1: times - together, FAN_OUT_PRIOR: prior_weight}
        for width, count in seen.items():
            chances[width] = chances.get(width, 0.0) + count
        return {width: weight / (times + prior_weight) for width, weight in chances.items()}

    def _times(self, source: str, target: str) -> int:
        visits = self._seen.get(source, {})
        return sum(count for found in visits.values() for outcome, count in found.items() if target in outcome)

    def _fast_s(self, source: str, target: str) -> float:
        counts = vector(self._durations.get(target, {}).values())
        if counts.sum() < FAST_MIN_OBSERVATIONS:
            return 0.0
        return Durations(counts / counts.sum(), int(counts.sum())).quantile_s(FAST_QUANTILE)

    @cached_property
    def _usual(self) -> Mapping[StepKind, Durations]:
        return {
            kind: Durations.learned(
                vector(seen[kind] for seen in self._durations.values() if kind in seen), prior(kind)
            )
            for kind in StepKind
        }

    @cached_property
    def _fan_outs(self) -> frozenset[tuple[str, str]]:
        return frozenset((edge.source, edge.target) for edge in self.workflow.edges if edge.fan_out)

    @cached_property
    def _fastest(self) -> Mapping[str, float]:
        return self._chain.fastest_s(self._fast_s)


class _Reader:
    """Puts counters in their places."""

    def __init__(self, workflow: Workflow) -> None:
        self.durations: dict[str, dict[StepKind, dict[int, int]]] = {}
        self.gaps: dict[str, dict[int, int]] = {}
        self.widths: dict[tuple[str, str], dict[int, int]] = {}
        self._seen: dict[str, dict[int, dict[Outcome, int]]] = {}
        self._known = {START, END, *workflow.by_name}

    def read(self, key: str, count: int) -> None:
        """Take one counter; a key that is not one of ours is passed over."""
        match parsed(key):
            case DurationKey(node, kind, bucket):
                self.durations.setdefault(node, {}).setdefault(kind, {})[bucket] = count
            case GapKey(node, bucket):
                self.gaps.setdefault(node, {})[bucket] = count
            case TransitionKey(node, visit, targets):
                self._seen.setdefault(node, {}).setdefault(visit, {})[targets] = count
            case WidthKey(node, target, width):
                self.widths.setdefault((node, target), {})[width] = count

    def within_limit(self) -> dict[str, dict[int, dict[Outcome, int]]]:
        """What followed what, of the graph's nodes and the most visited others, MAX_NODES in all."""
        often: Counter[str] = Counter()
        for visits in self._seen.values():
            for outcomes in visits.values():
                for outcome, count in outcomes.items():
                    often.update(dict.fromkeys(outcome, count))
        others = sorted((name for name in often if name not in self._known), key=lambda name: (-often[name], name))
        kept = self._known | set(others[: max(0, MAX_NODES + 2 - len(self._known))])
        found: dict[str, dict[int, dict[Outcome, int]]] = {}
        for node, visits in self._seen.items():
            if node not in kept or node == END:
                continue
            for visit, outcomes in visits.items():
                for outcome, count in outcomes.items():
                    if left := tuple(name for name in outcome if name in kept and name != START):
                        by_outcome = found.setdefault(node, {}).setdefault(visit, {})
                        by_outcome[left] = by_outcome.get(left, 0) + count
        return found
