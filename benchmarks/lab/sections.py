"""Which tables does the study tell? Each as a heading, column names, rows of text, and a note."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from agentserve.lab.intervals import over_seeds
from benchmarks.lab.gains import best_capacity, by_workload, gain, goals, mean_gain, of_bound, percent
from benchmarks.lab.plan import AS_PUBLISHED, OURS, RULES

Tables = Mapping[str, Sequence[Mapping[str, Any]]]


class Section(NamedTuple):
    """One table as it is told."""

    title: str
    header: Sequence[str]
    rows: list[list[str]]
    note: str = ""


def sections(tables: Tables) -> list[Section]:
    """Every table that there are figures for, the most telling first."""
    return [make(tables) for name, make in _MAKERS if name in tables]


def _goals(tables: Tables) -> Section:
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [[one.what, one.wanted, one.measured, words[one.met]] for one in goals(tables)]
    return Section("The goals", ["figure", "wanted", "measured", "met"], rows)


def _main(tables: Tables) -> Section:
    rows = []
    for row in tables["main"]:
        bound = of_bound(row)
        missed = " / ".join(_times(row["missed_p99"].get(name)) for name in (row["best"], OURS))
        point = [row["workload"], f"{row['level']} %", f"{row['rate']:.3g}"]
        rows.append([*point, _best(row), share(row["attainment"][OURS]), percent(gain(row)),
                     "" if bound is None else f"{bound.mean:.0%}", missed])  # fmt: skip
    means = ", ".join(
        f"{percent(found)} at the {level} % load"
        for level in ("95", "80", "50")
        if (found := mean_gain(row for row in tables["main"] if row["level"] == level)) is not None
    )
    note = (
        "SLO: the scenario's own, 2 × solo time on an H100 (Mooncake 3 ×; tenants with a log-normal spread). A "
        "load is named after what the best published policy attained there in calibration, with another seed; "
        "where some runs cannot end in time even alone, 95 % stands for that share of the most (`loads.json`). "
        f"Mean gain over workloads, with its interval over them: {means}."
    )
    header = [
        "workload",
        "load",
        "runs/s",
        "best published",
        OURS,
        "gain",
        "of the bound",
        "p99 slowdown of the missed",
    ]
    return Section("Against the best published policy", header, rows, note)


def _goodserve_gain(tables: Tables) -> Section:
    rows = []
    for row in tables["main"]:
        cells = [row["workload"], f"{row['level']} %"]
        for name in (AS_PUBLISHED, "goodserve"):
            known = name in row["attainment"]
            cells += [share(row["attainment"][name]), percent(gain(row, name), 0)] if known else ["", ""]
        rows.append(cells)
    header = ["workload", "load", "as published", f"{OURS} over it", "as tuned", f"{OURS} over it"]
    return Section("Against GoodServe", header, rows)


def _each(tables: Tables) -> Section:
    rows = []
    for row in tables["main"]:
        means = {name: fmean(values) for name, values in row["attainment"].items()}
        told = ", ".join(f"{name} {means[name]:.3f}" for name in sorted(means, key=lambda one: -means[one]))
        rows.append([row["workload"], f"{row['level']} %", told])
    return Section("Everybody in the main comparison", ["workload", "load", "attainment"], rows)


def _rules(tables: Tables) -> Section:
    rows = [
        [
            row["workload"],
            f"{row['level']} %",
            row["rule"],
            _best(row),
            share(row["attainment"][OURS]),
            percent(gain(row)),
        ]
        for row in tables["rules"]
    ]
    means = []
    for rule in RULES:
        found = mean_gain(row for row in tables["rules"] if row["rule"] == rule)
        means += [] if found is None else [f"{rule}: {percent(found)}"]
    note = (
        "One seed each. `solo_scale_lognormal`: the scale varies from run to run (σ 0.5). `fixed`: the same "
        "seconds for every run of a class, from the median solo time of the class in other runs; they tell "
        "nothing of a run's own length. The rates are those of the main table, so under another rule a policy "
        "attains more or less than the load's name says. Mean gain over workloads, with its interval over them. "
        f"{'; '.join(means)}."
    )
    return Section("Under each SLO rule", ["workload", "load", "rule", "best published", OURS, "gain"], rows, note)


def _every(tables: Tables) -> Section:
    found: dict[str, dict[str, float]] = {}
    for row in tables["every"]:
        found.setdefault(row["policy"], {})[row["workload"]] = row["attainment"]
    workloads = list(dict.fromkeys(row["workload"] for row in tables["every"]))
    ordered = sorted(found, key=lambda name: -fmean(found[name].values()))
    rows = [[name, *(f"{found[name][one]:.3f}" for one in workloads), f"{fmean(found[name].values()):.3f}"]
            for name in ordered]  # fmt: skip
    return Section("All policies at the 80 % load, one seed", ["policy", *workloads, "mean"], rows)


def _ablations(tables: Tables) -> Section:
    rows = [[row["workload"], row["part"], share(row["attainment"]), _times(row["missed_p99"])]
            for row in tables["ablations"]]  # fmt: skip
    header = ["workload", f"{OURS} with", "attainment", "p99 slowdown of the missed"]
    return Section("What each part of the policy gives (50 % load)", header, rows)


def _goodserve(tables: Tables) -> Section:
    found: dict[str, dict[float, list[float]]] = {}
    for row in tables["goodserve"]:
        found.setdefault(row["policy"], {})[row["scale"]] = row["attainment"]
    scales = sorted({row["scale"] for row in tables["goodserve"]})
    rows = [[name, *(share(values[scale]) for scale in scales)] for name, values in found.items()]
    note = (
        "Attainment by SLO scale on `goodserve-four`; at equal arrivals its ratio is that of goodput. Differences "
        "to the paper: an H100 for the H800 and slowed A100s for A40 and V100s, Llama-3.1-8B only, coding turns "
        "and generated SQL and programming runs for its SWE-bench, BIRD and LiveCodeBench prompts, an SLO per run "
        "instead of per call, and answers' lengths from what each step's were before instead of from its prompts; "
        "`no predictor` takes the mean of all answers. The paper tells of −32.8 % without its predictor and −18.0 "
        "% without migration, at scale 3."
    )
    return Section("GoodServe's table", ["policy", *(f"{scale:g}" for scale in scales)], rows, note)


def _hexagent(tables: Tables) -> Section:
    rows = []
    for row in tables["hexagent"]:
        each = [_scale(row[name], row.get(f"{name}_by_seed")) for name in ("req95", "req99")]
        rows.append([row["workload"], row["policy"], *each])
    note = (
        "Req95 and Req99: the smallest SLO scale with 95 and 99 % of the runs in time, by bisection over the "
        "scale with common seeds, and that of each seed (2 × 300 graphs at 40 runs/s, 2 × 120 coding turns at 4). "
        "Differences to the paper: our catalog's agents and recorded coding turns instead of ShareGPT, BFCL and "
        "LATS workflows; Llama-3.1-70B and no Qwen3-235B; solo time on an H100 with prefixes cached instead of that "
        "on the whole cluster, revealed as the run goes on."
    )
    return Section(
        "HexAGenT's table", ["pool and runs", "policy", "Req95 (each seed)", "Req99 (each seed)"], rows, note
    )


def _capacity(tables: Tables) -> Section:
    rows = []
    for workload, own in by_workload(tables["capacity"]).items():
        theirs, mine = best_capacity(own)
        for row in sorted(own, key=lambda one: -(one["rate"] or 0.0)):
            more = " or more" if row["or_more"] else ""
            rate = "none" if row["rate"] is None else f"{row['rate']:.3g}{more}"
            told = _ratio(row, theirs) if row is mine and theirs is not None else ""
            rows.append([workload, row["policy"], rate, told])
    note = (
        "By bisection on the rate with common seeds; the gain is over the best published, and in brackets each seed's."
    )
    return Section("Capacity: runs/s with 95 % in time", ["workload", "policy", "runs/s", "gain"], rows, note)


def _fewer(tables: Tables) -> Section:
    fleets = list(dict.fromkeys(row["fleet"] for row in tables["fewer"]))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in tables["fewer"]:
        found.setdefault((row["workload"], row["policy"]), {})[row["fleet"]] = row["attainment"]
    rows = [[*key, *(f"{fmean(values[fleet]):.3f}" for fleet in fleets)] for key, values in found.items()]
    return Section("With fewer GPUs (80 % load)", ["workload", "policy", *fleets], rows)


_MAKERS: Sequence[tuple[str, Callable[[Tables], Section]]] = (
    ("main", _goals), ("main", _main), ("main", _goodserve_gain), ("rules", _rules), ("capacity", _capacity),
    ("fewer", _fewer), ("goodserve", _goodserve), ("hexagent", _hexagent), ("main", _each), ("every", _every),
    ("ablations", _ablations),
)  # fmt: skip
"""What each is made from."""


def share(values: Iterable[float]) -> str:
    """A share with half of its interval."""
    found = over_seeds(list(values))
    return f"{found.mean:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def _best(row: Mapping[str, Any]) -> str:
    return f"{row['best']} {share(row['attainment'][row['best']])}"


def _times(slowdown: float | None) -> str:
    return "–" if slowdown is None else f"{slowdown:.1f}"


def _scale(scale: float | None, each: Sequence[float | None] | None) -> str:
    told = ["beyond 9" if one is None else "≤ 1" if one <= 1 else f"{one:.2f}" for one in (scale, *(each or ()))]
    return told[0] + (f" ({', '.join(told[1:])})" if each else "")


def _ratio(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    each = [
        f"{own / other - 1:+.0%}" if own and other else "–"
        for own, other in zip(mine["by_seed"], theirs["by_seed"], strict=True)
    ]
    return f"{mine['rate'] / theirs['rate'] - 1:+.0%} ({', '.join(each)})"
