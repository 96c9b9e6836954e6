"""Which of the weighed placements is taken? Just-enough, cheapest, and how ties and losers are told."""

from collections.abc import Callable

import numpy as np

from scheduler.estimate import Bools, Floats

Verdict = Callable[[int], str]


def argmin(values: Floats, mask: Bools) -> int | None:
    """Row of the smallest value among `mask`; the first (smallest instance id) of equals; None if none is allowed."""
    if not mask.any():
        return None
    return int(np.where(mask, values, np.inf).argmin())


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


def best_rows(values: Floats, mask: Bools, count: int) -> list[int]:
    """Up to `count` allowed rows with the smallest values, best first; ties by row."""
    ranked = np.where(mask, values, np.inf)
    allowed = int(np.count_nonzero(mask))
    if count >= len(ranked):
        rows = np.argsort(ranked, kind="stable")
    else:
        # One value is the bound: every row up to it, so that equal values are cut by row and not by the partition.
        bound = np.partition(ranked, count)[count]
        rows = np.flatnonzero(ranked <= bound)
        rows = rows[np.argsort(ranked[rows], kind="stable")]
    picked: list[int] = rows[: min(count, allowed)].tolist()
    return picked
