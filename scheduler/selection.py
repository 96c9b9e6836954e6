"""Which of the weighed placements is taken? Just-enough, cheapest, and how ties and losers are told."""

from math import inf

import numpy as np

from scheduler.estimate import Bools, Floats

_NEVER = np.array(inf)


def argmin(values: Floats, mask: Bools) -> int | None:
    """Row of the smallest value among `mask`; the first (smallest instance id) of equals; None if none is allowed."""
    row = int(values.argmin())
    if not mask.item(row):  # else it is the smallest of all: no masked copy is needed
        row = int(np.where(mask, values, _NEVER).argmin())
        if not mask.item(row):
            return None
    return row if values.item(row) != inf else None


def just_enough(meets: Bools, capability: Floats, finish: Floats) -> int | None:
    """The weakest instance that meets the deadline; among equally weak ones the earliest finish, then the first id."""
    if not meets.any():
        return None
    weakest = capability[meets].min()
    return argmin(finish, meets & (capability == weakest))


def most_capable(allowed: Bools, capability: Floats, finish: Floats) -> int | None:
    """The strongest allowed instance; among equally strong ones the earliest finish, then the first id."""
    if not allowed.any():
        return None
    strongest = capability[allowed].max()
    return argmin(finish, allowed & (capability == strongest))


def best_rows(values: Floats, mask: Bools | None, count: int) -> list[int]:
    """Up to `count` rows allowed by `mask` (None: all) with the smallest values, best first; ties by row."""
    ranked = values.copy() if mask is None else np.where(mask, values, _NEVER)
    smallest, value = ranked.argmin, ranked.item
    picked: list[int] = []
    for _ in range(count):
        row = int(smallest())
        if value(row) == inf:
            break
        picked.append(row)
        ranked[row] = inf
    return picked
