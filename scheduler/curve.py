"""What is the chance of at most so much? A distribution as a broken line, read at many values at once or at one.

Both ways give the same bits: one value is interpolated as `numpy.interp` does it, in a tenth of the time of its call.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_IN_PAIRS = 8
"""So many values are added in pairs, fewer one after the other."""


class Curve:
    """`chances[i]` belongs to `edges[i]`, which grow; below the first edge the chance is 0."""

    __slots__ = ("_chances", "_chances_list", "_edges", "_edges_list")

    def __init__(self, edges: Floats, chances: Floats) -> None:
        self._edges, self._chances = edges, chances
        self._edges_list: list[float] = edges.tolist()
        self._chances_list: list[float] = chances.tolist()

    def all_at(self, values: Floats) -> Floats:
        """The chances of many values."""
        found: Floats = np.interp(values, self._edges, self._chances, left=0.0)
        return found

    def at(self, value: float) -> float:
        """The chance of one value."""
        edges, chances = self._edges_list, self._chances_list
        after = bisect_right(edges, value)
        if after == len(edges):
            return chances[-1]
        if not after:
            return 0.0
        edge, chance = edges[after - 1], chances[after - 1]
        return (chances[after] - chance) / (edges[after] - edge) * (value - edge) + chance


def total(values: Sequence[float]) -> float:
    """The sum of up to eight values in the order in which NumPy adds; `sum` adds otherwise from Python 3.12 on."""
    if len(values) == _IN_PAIRS:
        a, b, c, d, e, f, g, h = values
        return ((a + b) + (c + d)) + ((e + f) + (g + h))
    added = 0.0
    for value in values:
        added += value
    return added
