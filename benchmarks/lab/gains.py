"""How far is agentserve ahead, and were the goals met? Ratios paired by seed, with 95 % intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from agentserve.lab.intervals import Interval, over_seeds
from benchmarks.lab.plan import AS_PUBLISHED, BURSTY, OURS, RULES

Table = Sequence[Mapping[str, Any]]
_LEAST: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that was to be reached, what was measured, and whether it is enough."""

    what: str
    wanted: str
    measured: str
    met: bool | None
    """None: nothing was measured."""


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Ratios `mine` / `theirs` − 1, formed for each seed."""
    return over_seeds([own / max(other, _LEAST) - 1.0 for own, other in zip(mine, theirs, strict=True)])


def gain(row: Mapping[str, Any], over: str | None = None) -> Interval:
    """Ours over the row's best published policy, or over another of its policies."""
    return paired(row["attainment"][OURS], row["attainment"][over or row["best"]])


def mean_gain(rows: Iterable[Mapping[str, Any]]) -> Interval | None:
    """The mean of the rows' gains; its interval is over the rows, which are different workloads."""
    gains = [gain(row).mean for row in rows]
    return over_seeds(gains) if gains else None


def of_bound(row: Mapping[str, Any]) -> Interval | None:
    """Ours as a share of what no policy can exceed."""
    if not row.get("bound"):
        return None
    return over_seeds([mine / bound for mine, bound in zip(row["attainment"][OURS], row["bound"], strict=True)])


def best_capacity(rows: Table) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Of one workload's capacities: the published policy with the highest one, and ours; None where none was found."""
    known = [row for row in rows if row["rate"] is not None]
    theirs = max((row for row in known if row["policy"] != OURS), key=lambda row: row["rate"], default=None)
    return theirs, next((row for row in known if row["policy"] == OURS), None)


def goals(tables: Mapping[str, Table]) -> list[Goal]:
    """Every goal of the study in its order."""
    main = tables["main"]
    at = {level: [row for row in main if row["level"] == level] for level in ("95", "80", "50")}
    bursts = [row for row in at["50"] if row["workload"] in BURSTY]
    return [
        _at_least("goodput over the best published, 50 % load, mean over workloads", 0.274, mean_gain(at["50"])),
        _at_least("the same under bursts (CV of 4 or more)", 0.274, mean_gain(bursts)),
        _at_least("goodput over the best published, 80 % load, mean over workloads", 0.15, mean_gain(at["80"])),
        _worst(main),
        _over_goodserve(main),
        *_capacity(tables.get("capacity", ())),
        *_required(tables.get("hexagent", ())),
        *_bound(at["95"]),
        *_rules(tables.get("rules", ())),
    ]


def by_workload(rows: Table) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each workload, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["workload"], []).append(row)
    return found


def percent(found: Interval, digits: int = 1) -> str:
    """A gain with half of its interval."""
    return f"{found.mean:+.{digits}%}" + ("" if found.half is None else f" ± {100 * found.half:.{digits}f}")


def _at_least(what: str, wanted: float, found: Interval | None) -> Goal:
    if found is None:
        return Goal(what, f"≥ {wanted:+.1%}", "", None)
    return Goal(what, f"≥ {wanted:+.1%}", percent(found), found.mean >= wanted)


def _worst(main: Table) -> Goal:
    row = min(main, key=lambda one: gain(one).mean)
    below = sum(gain(one).mean < -0.02 for one in main)
    told = f"{percent(gain(row))} ({row['workload']}, {row['level']} % load); worse than −2 % at {below} of {len(main)}"
    return Goal("goodput over the best published, at its worst", "≥ −2 %", told, below == 0)


def _over_goodserve(main: Table) -> Goal:
    rows = [row for row in main if AS_PUBLISHED in row["attainment"] and fmean(row["attainment"][AS_PUBLISHED]) < 0.98]
    what = "goodput over GoodServe as published, where it attains less than 98 %, at its worst"
    if not rows:
        return Goal(what, "≥ +30 %", "", None)
    row = min(rows, key=lambda one: gain(one, AS_PUBLISHED).mean)
    found = gain(row, AS_PUBLISHED)
    enough = sum(gain(one, AS_PUBLISHED).mean >= 0.3 for one in rows)
    told = f"{percent(found)} ({row['workload']}, {row['level']} % load); met at {enough} of {len(rows)}"
    return Goal(what, "≥ +30 %", told, found.mean >= 0.3)


def _capacity(rows: Table) -> list[Goal]:
    pairs = [best_capacity(own) for own in by_workload(rows).values()]
    ratios = [mine["rate"] / theirs["rate"] - 1 for theirs, mine in pairs if theirs is not None and mine is not None]
    what = "capacity at 95 %, over the best published, mean over workloads"
    return [_at_least(what, 0.2, over_seeds(ratios))] if ratios else []


def _required(rows: Table) -> list[Goal]:
    found = []
    for name, wanted in (("req95", 0.201), ("req99", 0.33)):
        less, lowest = [], True
        for own in by_workload(rows).values():
            scales = {row["policy"]: row[name] for row in own if row[name] is not None}
            mine = scales.pop(OURS, None)
            if mine is None or not scales:
                lowest = False
                continue
            less += [1 - mine / scales[policy] for policy in ("hexagent", "goodserve") if policy in scales]
            lowest = lowest and mine < min(scales.values())
        if less:
            told = f"{fmean(less):.1%}; {'lower' if lowest else 'not lower'} than every published one's in each pool"
            what = f"{name.title()} lower than HexAGenT's and GoodServe's, mean over pools"
            found.append(Goal(what, f"≥ {wanted:.1%}", told, fmean(less) >= wanted and lowest))
    return found


def _bound(rows: Table) -> list[Goal]:
    known = [(row, found) for row in rows if (found := of_bound(row)) is not None]
    if not known:
        return []
    row, found = min(known, key=lambda one: one[1].mean)
    told = f"{found.mean:.1%} ({row['workload']}); mean {fmean(one.mean for _, one in known):.1%}"
    return [Goal("share of the upper bound, 95 % load, at its least", "≥ 85 %", told, found.mean >= 0.85)]


def _rules(rows: Table) -> list[Goal]:
    found = []
    for rule in RULES:
        gains = mean_gain(row for row in rows if row["rule"] == rule and row["level"] == "50")
        if gains is not None:
            found.append(_at_least(f"SLO rule {rule}: goodput over the best published, 50 % load", 0.274, gains))
    return found
