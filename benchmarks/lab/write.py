"""How are the study's tables told? As tables in the terminal, and as docs/lab-results.md with its pictures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from agentserve.lab.intervals import over_seeds

OURS = "agentserve"
DOCS = Path(__file__).parents[2] / "docs"
_INTRO = """# What the lab found

Written by `{command}` from {commit} ({machine}, {date}); the figures are in `benchmarks/results/study.json`.
Attainment is the share of runs that end within their SLO, so with equal arrivals its ratio is that of goodput. 'Best
published' is, at each point, the policy with the highest mean among `polyserve`, `hexagent`, `goodserve`,
`prefix_affinity` and `session_affinity`, which tuning found strongest, each with its best parameters
(`agentserve/lab/tuned.toml`); further down all are compared. Intervals are 95 %.

![Share of runs in time by load, on six workloads](images/lab-results.svg)
"""


def write_pages(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any], console: Console, *, whole: bool
) -> None:
    """Print every table; with the whole study write the page and its pictures too."""
    parts = [part for part in (section(tables) for section in SECTIONS) if part is not None]
    for title, header, rows, _ in parts:
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if not whole:
        return
    text = _INTRO.format(**facts)
    for title, header, rows, note in parts:
        text += f"\n## {title}\n\n{note}\n\n" if note else f"\n## {title}\n\n"
        text += _markdown(header, rows)
    _picture(tables)
    (DOCS / "lab-results.md").write_text(text, "utf-8")


Section = tuple[str, Sequence[str], list[list[str]], str]


def _main(tables: Mapping[str, Any]) -> Section | None:
    rows, gains = [], {level: [] for level in ("95", "80", "50")}
    for row in tables["main"]:
        gain = _gain(row)
        gains[row["level"]].append(gain[0])
        mine, bound = row["attainment"][OURS], row.get("bound")
        of_bound = "" if bound is None else f"{fmean(mine) / bound:.0%}"
        missed = " / ".join(f"{row['missed_p99'][name]:.0f}" for name in (row["best"], OURS))
        point = [row["workload"], f"{row['level']} %", f"{row['rate']:.3g}"]
        rows.append([*point, _best(row), _share(mine), gain[1], of_bound, missed])
    means = ", ".join(f"{fmean(found):+.1%} at the {level} % load" for level, found in gains.items() if found)
    note = f"SLO: 2 × solo time on an H100 (Mooncake 3 ×; tenants with a spread). Mean gain over workloads: {means}."
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
    return "Against the best published policy", header, rows, note


def _goodserve_gain(tables: Mapping[str, Any]) -> Section | None:
    rows = []
    for row in tables["main"]:
        theirs, mine = fmean(row["attainment"]["goodserve"]), fmean(row["attainment"][OURS])
        rows.append([row["workload"], f"{row['level']} %", f"{theirs:.3f}", f"{mine:.3f}", f"{mine / theirs - 1:+.0%}"])
    header = ["workload", "load", "goodserve", OURS, "gain"]
    return "Against GoodServe with its best parameters", header, rows, ""


def _rules(tables: Mapping[str, Any]) -> Section | None:
    rows = [
        [row["workload"], f"{row['level']} %", row["rule"], _best(row), _share(row["attainment"][OURS]), _gain(row)[1]]
        for row in tables.get("rules", ())
    ]
    note = (
        "`solo_scale_lognormal`: α varies from run to run (σ 0.5). `fixed`: the same seconds for every run of a class, "
        "which tell nothing of its length."
    )
    return "Under SLO rules that tell less", ["workload", "load", "rule", "best published", OURS, "gain"], rows, note


def _every(tables: Mapping[str, Any]) -> Section | None:
    found: dict[str, dict[str, float]] = {}
    for row in tables["every"]:
        found.setdefault(row["policy"], {})[row["workload"]] = row["attainment"]
    workloads = list(dict.fromkeys(row["workload"] for row in tables["every"]))
    ordered = sorted(found, key=lambda name: -fmean(found[name].values()))
    rows = [
        [name, *(f"{found[name][w]:.3f}" for w in workloads), f"{fmean(found[name].values()):.3f}"] for name in ordered
    ]
    return "All policies at the 80 % load, one seed", ["policy", *workloads, "mean"], rows, ""


def _ablations(tables: Mapping[str, Any]) -> Section | None:
    rows = [
        [row["workload"], row["part"], _share(row["attainment"]), f"{row['missed_p99']:.0f}"]
        for row in tables.get("ablations", ())
    ]
    return "What each part of the policy gives (50 % load)", ["workload", "agentserve with", "attainment",
                                                              "p99 slowdown of the missed"], rows, ""  # fmt: skip


def _goodserve(tables: Mapping[str, Any]) -> Section | None:
    if "goodserve" not in tables:
        return None
    found: dict[str, dict[float, float]] = {}
    for row in tables["goodserve"]:
        found.setdefault(row["policy"], {})[row["scale"]] = row["attainment"]
    scales = sorted({row["scale"] for row in tables["goodserve"]})
    rows = [[name, *(f"{shares[scale]:.3f}" for scale in scales)] for name, shares in found.items()]
    note = (
        "Attainment by SLO scale on `goodserve-four`. Unlike the paper: an H100 for the H800, slowed A100s for A40 and "
        "V100s, an 8B model, coding turns and generated SQL and programming runs, SLO per run instead of per call."
    )
    return "GoodServe's table", ["policy", *(f"{scale:g}" for scale in scales)], rows, note


def _hexagent(tables: Mapping[str, Any]) -> Section | None:
    if "hexagent" not in tables:
        return None
    rows = [
        [row["workload"], row["policy"], _or_more(row["req95"]), _or_more(row["req99"])] for row in tables["hexagent"]
    ]
    note = (
        "Req95 and Req99: the smallest SLO scale with 95 and 99 % of the runs in time (400 runs, one seed). Unlike the "
        "paper: runs of our catalog's agents instead of ShareGPT, BFCL and LATS, Llama-3.1-70B with TP 4."
    )
    return "HexAGenT's table", ["pool", "policy", "Req95", "Req99"], rows, note


def _capacity(tables: Mapping[str, Any]) -> Section | None:
    if "capacity" not in tables:
        return None
    rows = []
    for row in tables["capacity"]:
        known = {name: rate for name, rate in row["at95"].items() if rate is not None}
        best = max((name for name in known if name != OURS), key=lambda name: known[name], default=None)
        ratio = "" if best is None or OURS not in known else f"{known[OURS] / known[best] - 1:+.0%}"
        if OURS in known and known[OURS] == row["ladder"][-1]:
            ratio += " or more" if ratio else ""
        rows.append([row["workload"], "" if best is None else f"{best} {known[best]:.3g}",
                     f"{known[OURS]:.3g}" if OURS in known else f"below {row['ladder'][0]:.3g}", ratio])  # fmt: skip
    return "Capacity: runs/s with 95 % in time", ["workload", "best published", OURS, "gain"], rows, ""


def _fewer(tables: Mapping[str, Any]) -> Section | None:
    if "fewer" not in tables:
        return None
    rows = [[row["workload"], row["policy"], f"{row['whole']:.3f}", f"{row['less']:.3f}"] for row in tables["fewer"]]
    return (
        "With one A100 less (80 % load)",
        ["workload", "policy", "2 A100, H100, H200", "1 A100, H100, H200"],
        rows,
        "",
    )


SECTIONS = (_main, _goodserve_gain, _rules, _every, _ablations, _goodserve, _hexagent, _capacity, _fewer)


def _best(row: Mapping[str, Any]) -> str:
    return f"{row['best']} {_share(row['attainment'][row['best']])}"


def _gain(row: Mapping[str, Any]) -> tuple[float, str]:
    """Ours over the best published, paired by seed: the mean, and in words with its interval."""
    pairs = zip(row["attainment"][OURS], row["attainment"][row["best"]], strict=True)
    found = over_seeds([mine / max(theirs, 1e-9) - 1.0 for mine, theirs in pairs])
    return found.mean, f"{found.mean:+.1%}" + ("" if found.half is None else f" ± {100 * found.half:.1f}")


def _share(values: Iterable[float]) -> str:
    found = over_seeds(list(values))
    return f"{found.mean:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def _or_more(scale: float | None) -> str:
    return "beyond 4.5" if scale is None else f"{scale:.2f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _picture(tables: Mapping[str, Any]) -> None:
    """Attainment by workload and load: the best published, ours, and the bound."""
    from matplotlib.figure import Figure

    rows = tables["main"]
    names = list(dict.fromkeys(row["workload"] for row in rows))
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3, sharey=True).flat, names, strict=False):
        own = [row for row in rows if row["workload"] == name]
        rates = [row["rate"] for row in own]
        axes.plot(rates, [row.get("bound") for row in own], ":", color="0.6", label="no policy above")
        axes.plot(rates, [fmean(row["attainment"][row["best"]]) for row in own], "s--", color="tab:orange",
                  label="best published")  # fmt: skip
        axes.plot(rates, [fmean(row["attainment"][OURS]) for row in own], "o-", color="tab:blue", label=OURS)
        axes.set(title=name, xlabel="runs/s", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of runs in time")
    figure.axes[3].set_ylabel("share of runs in time")
    figure.axes[0].legend(loc="lower left", frameon=False)
    folder = DOCS / "images"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "lab-results.svg", metadata={"Date": None})
