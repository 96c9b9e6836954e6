"""How does the terminal show a comparison? One table per point: a row per policy, its figures in columns."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from agentserve.lab.aggregates import Aggregate
from agentserve.lab.intervals import Interval
from agentserve.lab.report import number_text
from agentserve.lab.results import InstanceUse

Column = tuple[str, Callable[[Aggregate], str]]


def with_interval(found: Interval | None, digits: int, unit: str = "", factor: float = 1.0) -> str:
    """A figure and half the width of its 95 % interval, where there is one."""
    if found is None:
        return "–"
    half = "" if found.half is None else f" ± {found.half * factor:.{digits}f}"
    return f"{number_text(found.mean, digits, '', factor)}{half}{unit}"


def goodput_text(found: Interval | None) -> str:
    """Goodput with about three digits that mean something."""
    return with_interval(found, 3 if found is None or found.mean < 1 else 2)


def _pair(name: str, digits: int, unit: str, factor: float = 1.0) -> Callable[[Aggregate], str]:
    def read(one: Aggregate) -> str:
        values = (number_text(one.mean(f"{name}_{q}_s"), digits, "", factor) for q in ("p50", "p99"))
        return " / ".join(values) + unit

    return read


COLUMNS: Final[Sequence[Column]] = (
    ("attainment", lambda one: with_interval(one.figures["attainment"], 1, " %", 100)),
    ("goodput/s", lambda one: goodput_text(one.figures["goodput_per_s"])),
    ("of arrivals/s", lambda one: goodput_text(one.figures["arrival_goodput_per_s"])),
    ("run p50 / p99", _pair("run_e2e", 1, " s")),
    ("missed p99", lambda one: number_text(one.mean("missed_slowdown_p99"), 1, " ×")),
    ("TTFT p50 / p99", _pair("ttft", 2, " s")),
    ("TPOT p50 / p99", _pair("tpot", 1, " ms", 1000)),
    ("hits", lambda one: number_text(one.mean("prefix_hit_share"), 0, " %", 100)),
    ("busy", lambda one: number_text(one.mean("utilisation"), 0, " %", 100)),
    ("moves/splits", lambda one: f"{number_text(one.mean('migrations'), 0, '')}/"
     f"{number_text(one.mean('split_calls'), 0, '')}"),
    ("output tokens", lambda one: number_text(one.mean("output_tokens"), 0, "")),
)  # fmt: skip
"""What the tables of the terminal and of the page show. docs/lab.md defines each."""


_NARROW: Final = frozenset({"attainment", "goodput/s", "missed p99", "hits", "moves/splits"})
"""Columns of a terminal that is too narrow for all of them."""
WIDE_CHARS: Final = 165


def point_tables(aggregates: Sequence[Aggregate], width_chars: int = WIDE_CHARS) -> Iterator[Table]:
    """One table per point, in order; the policy with the highest goodput is set in bold.

    Below WIDE_CHARS the latencies are left out; they are in results.json and in the page.
    """
    columns = [column for column in COLUMNS if width_chars >= WIDE_CHARS or column[0] in _NARROW]
    for point in dict.fromkeys(one.point for one in aggregates):
        rows = [one for one in aggregates if one.point == point]
        seeds = len(rows[0].outcomes)
        title = f"{rows[0].scenario}: {point} ({seeds} seed{'s' if seeds > 1 else ''})"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("policy", no_wrap=True)
        for name, _ in columns:
            table.add_column(name, justify="right", no_wrap=True)
        best = best_of(rows)
        for one in rows:
            table.add_row(one.label, *(read(one) for _, read in columns), style="bold" if one is best else None)
        yield table


def best_of(aggregates: Sequence[Aggregate]) -> Aggregate | None:
    """The one with the highest mean goodput; None without any, the first of equals."""
    known = [one for one in aggregates if one.mean("goodput_per_s") is not None]
    return max(known, key=lambda one: one.mean("goodput_per_s") or 0.0, default=None)


def instance_table(uses: Sequence[InstanceUse], span_s: float) -> Table:
    """What each instance of one simulation did in `span_s` virtual seconds."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("instance", no_wrap=True)
    for name in ("GPU", "busy", "calls", "prefilled", "cached", "output", "preempted"):
        table.add_column(name, justify="right", no_wrap=True)
    for use in uses:
        table.add_row(
            use.instance_id,
            use.gpu,
            f"{use.busy_s / span_s:.0%}" if span_s > 0 else "–",
            f"{use.calls:,}",
            f"{use.prefill_tokens:,}",
            f"{use.cached_tokens:,}",
            f"{use.output_tokens:,}",
            f"{use.preemptions:,}",
        )
    return table
