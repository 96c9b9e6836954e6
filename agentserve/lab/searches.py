"""Up to which rate, or down to which SLO scale, is a share of the runs in time? Found with few simulations.

A search is a generator: it yields the next value to simulate at and is sent the share that was in time there, so that
many searches can go on side by side, with all simulations of one step in parallel (`side_by_side`). Shares scatter and
need not fall evenly: what is found is the largest value among those probed that holds the level, interpolated towards
the next one above it that does not.
"""

from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Final, TypeVar

MAX_PROBES: Final = 12
_WIDER: Final = 2.0

Curve = Mapping[float, float]
"""Share of runs in time by rate, or by any other value that makes them rarer."""
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a level is passed. `at` is None if even the least value probed does not hold it."""

    at: float | None
    open_end: bool
    """Even the largest value probed holds the level: `at` is that value, and the true one lies above."""


def holds_up_to(curve: Curve, level: float) -> Found:
    """The largest value that holds the level, interpolated linearly between the values of the curve."""
    values = sorted(curve)
    held = [index for index, value in enumerate(values) if curve[value] >= level]
    if not held:
        return Found(None, open_end=False)
    last = held[-1]
    if last + 1 == len(values):
        return Found(values[last], open_end=True)
    low, high = values[last], values[last + 1]
    part = (curve[low] - level) / (curve[low] - curve[high])
    return Found(low + (high - low) * part, open_end=False)


def search(
    level: float, start: float, least: float, most: float, *, within: float = 1.1, known: Curve | None = None
) -> Generator[float, float, dict[float, float]]:
    """Probe until two neighbours at most a factor `within` apart lie on either side of the level; returns the curve.

    It begins at `start` or with what is `known`, doubles or halves within [least, most] until the level is passed, and
    halves the (logarithmic) gap then.
    """
    curve = dict(known or {})
    for _ in range(MAX_PROBES):
        value = _next(curve, level, start, least, most, within)
        if value is None:
            break
        curve[value] = yield value
    return curve


def _next(curve: Curve, level: float, start: float, least: float, most: float, within: float) -> float | None:
    """Where to look next; None once the level is enclosed, or the end of the range is reached."""
    if not curve:
        return start
    values = sorted(curve)
    held = [index for index, value in enumerate(values) if curve[value] >= level]
    if not held:
        return max(least, values[0] / _WIDER) if values[0] > least else None
    low = values[held[-1]]
    if held[-1] + 1 == len(values):
        return min(most, low * _WIDER) if low < most else None
    high = values[held[-1] + 1]
    return sqrt(low * high) if high > low * within else None


def side_by_side(
    searches: Mapping[K, Generator[float, float, dict[float, float]]],
    probe: Callable[[Mapping[K, float]], Mapping[K, float]],
) -> dict[K, dict[float, float]]:
    """Drive searches together: `probe` is told the next value of each that still goes on, and returns their shares."""
    found: dict[K, dict[float, float]] = {}
    asked: dict[K, float] = {}
    for name, one in searches.items():
        _advance(name, one, None, asked, found)
    while asked:
        shares, now = probe(dict(asked)), list(asked)
        asked.clear()
        for name in now:
            _advance(name, searches[name], shares[name], asked, found)
    return {name: found[name] for name in searches}


def _advance(
    name: K,
    one: Generator[float, float, dict[float, float]],
    share: float | None,
    asked: dict[K, float],
    found: dict[K, dict[float, float]],
) -> None:
    try:
        asked[name] = next(one) if share is None else one.send(share)
    except StopIteration as ended:
        found[name] = ended.value
