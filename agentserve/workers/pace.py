"""How often is an engine's state read? As often as that stays cheap: a busy server answers slowly, and is asked less.

A page of vLLM's metrics costs its API server some 10 ms of CPU; five a second would be 5 % of a core.
"""

from typing import Final

COST_SHARE: Final = 0.02
"""Most of the wall time that an engine may spend on being read."""
LONGEST_S: Final = 2.0
"""Below the 3 s after which the scheduler forgets what an engine reported."""
_WEIGHT: Final = 0.2


class ReadingPace:
    """Says when the next reading is due, from how long the last ones took; time comes in as an argument."""

    def __init__(self, shortest_s: float) -> None:
        self._shortest_s = shortest_s
        self._cost_s: float | None = None
        self._next_s = float("-inf")

    @property
    def interval_s(self) -> float:
        """Time between the beginnings of two readings."""
        return min(max((self._cost_s or 0.0) / COST_SHARE, self._shortest_s), max(LONGEST_S, self._shortest_s))

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a reading."""
        return now_s >= self._next_s

    def took(self, started_s: float, ended_s: float) -> None:
        """A reading was made; the first sets what readings cost, later ones move it slowly."""
        cost_s = max(ended_s - started_s, 0.0)
        self._cost_s = cost_s if self._cost_s is None else self._cost_s + _WEIGHT * (cost_s - self._cost_s)
        self._next_s = started_s + self.interval_s

    def forget(self) -> None:
        """Another process answers now: read it at once."""
        self._cost_s, self._next_s = None, float("-inf")
