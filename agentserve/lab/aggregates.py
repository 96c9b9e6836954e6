"""What do the seeds of one point and policy say together? Means and 95 % intervals of every figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentserve.lab.intervals import Interval, over_seeds
from agentserve.lab.outcome import Outcome
from agentserve.lab.sweep import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One policy at one point, over its seeds."""

    scenario: str
    point: str
    axes: Mapping[str, Any]
    label: str
    figures: Mapping[str, Interval | None]
    """By name as in Outcome.figures; None where a figure could be formed for no seed."""
    outcomes: tuple[Outcome, ...]

    def mean(self, figure: str) -> float | None:
        """A figure's mean over the seeds that have it."""
        found = self.figures.get(figure)
        return None if found is None else found.mean

    @property
    def gpu_utilisation(self) -> dict[str, float]:
        """Mean busy share by GPU type."""
        names = sorted({name for outcome in self.outcomes for name in outcome.gpu_utilisation})
        return {name: over_seeds([o.gpu_utilisation.get(name, 0.0) for o in self.outcomes]).mean for name in names}

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON data."""
        figures = {
            name: None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}
            for name, found in self.figures.items()
        }
        first = self.outcomes[0]
        return {
            "scenario": self.scenario,
            "point": self.point,
            "axes": dict(self.axes),
            "label": self.label,
            "policy": first.policy,
            "params": dict(first.params),
            "seeds": [outcome.seed for outcome in self.outcomes],
            "keys": [outcome.key for outcome in self.outcomes],
            "figures": figures,
            "utilisation": self.gpu_utilisation,
        }


def aggregated(rows: Sequence[Row]) -> list[Aggregate]:
    """The rows of each point and policy as one, in the rows' order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.scenario, row.point, row.label), []).append(row)
    return [_together(group) for group in groups.values()]


_FROM_RUNS = frozenset({"attainment", "goodput_per_s", "arrival_goodput_per_s"})
"""Figures in proportion to the attained share, whose interval is known for one seed too."""


def _together(rows: Sequence[Row]) -> Aggregate:
    outcomes = tuple(row.outcome for row in rows)
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.figures)
    figures = {name: _interval(name, outcomes) for name in names}
    first = rows[0]
    return Aggregate(
        scenario=first.scenario,
        point=first.point,
        axes=first.axes,
        label=first.label,
        figures=figures,
        outcomes=outcomes,
    )


def _interval(name: str, outcomes: Sequence[Outcome]) -> Interval | None:
    values = [value for outcome in outcomes if (value := outcome.figures.get(name)) is not None]
    if not values:
        return None
    share = outcomes[0].attainment_interval
    if len(values) == 1 and share is not None and name in _FROM_RUNS:
        attained = outcomes[0].figures["attainment"]
        # Goodput is the attained share times what would be the goodput if all attained.
        factor = 1.0 if name == "attainment" else (values[0] / attained if attained else 0.0)
        return Interval(values[0], share[0] * factor, share[1] * factor) if factor else Interval(values[0])
    return over_seeds(values)
