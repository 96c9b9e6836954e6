"""How did the policies do on the same load? A table for the terminal and one self-contained HTML page with plots."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from rich.table import Table

from agentserve.errors import BadInput
from agentserve.lab import plots
from agentserve.lab.results import ReplayResult, Summary, summarise

_TEMPLATES: Final = Path(__file__).parent

Row = tuple[str, Callable[[Summary], str], int]
"""Label, how its figure reads, and whether more (1) or less (-1) is better, or neither (0)."""


def number_text(value: float | None, digits: int, unit: str, factor: float = 1.0) -> str:
    """The figure as tables show it; a dash for an unknown one."""
    return "–" if value is None else f"{value * factor:,.{digits}f}{unit}"


def _quantiles(name: str, unit: str, digits: int, factor: float = 1.0) -> Callable[[Summary], str]:
    def read(summary: Summary) -> str:
        pair = (getattr(summary, f"{name}_p50_s"), getattr(summary, f"{name}_p99_s"))
        return " / ".join(number_text(value, digits, "", factor) for value in pair) + unit

    return read


ROWS: Final[Sequence[Row]] = (
    ("SLO attainment", lambda s: number_text(s.attainment, 1, " %", 100), 1),
    ("runs attained / all", lambda s: f"{s.attained:,} / {s.runs:,}", 0),
    ("goodput", lambda s: number_text(s.goodput_per_s, 3, " runs/s"), 1),
    ("run E2E p50 / p99", _quantiles("run_e2e", " s", 2), -1),
    ("TTFT p50 / p99", _quantiles("ttft", " s", 3), -1),
    ("TPOT p50 / p99", _quantiles("tpot", " ms", 2, 1000), -1),
    ("call E2E p50 / p99", _quantiles("call_e2e", " s", 2), -1),
    ("migrations", lambda s: f"{s.migrations:,}", 0),
    ("split placements", lambda s: f"{s.split_calls:,}", 0),
    ("output tokens/s", lambda s: number_text(s.output_tokens_per_s, 0, ""), 1),
    ("calls / failed", lambda s: f"{s.calls:,} / {s.failed_calls:,}", 0),
)


def comparison_table(results: Mapping[str, ReplayResult]) -> Table:
    """One column per policy, one row per figure; times as measured, on the replay's clock."""
    table = Table(_clock_short(results))
    for policy in results:
        table.add_column(policy, justify="right", no_wrap=True)
    summaries = [summarise(result) for result in results.values()]
    for label, read, better in ROWS:
        style = "bold" if label in ("SLO attainment", "goodput") and better else None
        table.add_row(label, *(read(summary) for summary in summaries), style=style)
    return table


def write_report(
    path: Path,
    results_by_policy: Mapping[str, ReplayResult],
    *,
    title: str,
    notes: Sequence[str] = (),
    waterfall_html: str | None = None,
) -> None:
    """Write the page: figures, plots and (if given, as HTML from a rich console) one run's waterfall.

    It needs no network and follows the reader's light or dark scheme. Raises BadInput for no results, without
    matplotlib, or if the file cannot be written.
    """
    if not results_by_policy:
        raise BadInput("a report needs the result of at least one policy")
    write_page(path, render_report(results_by_policy, title=title, notes=notes, waterfall_html=waterfall_html))


def write_page(path: Path, page: str) -> None:
    """Write a page, with the folders on the way; BadInput if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from None


def render_report(
    results: Mapping[str, ReplayResult],
    *,
    title: str,
    notes: Sequence[str] = (),
    waterfall_html: str | None = None,
) -> str:
    """The page as text; the same for the same results."""
    summaries = {policy: summarise(result) for policy, result in results.items()}
    return template("report.html.j2").render(
        title=title,
        clock=_clock(results),
        policies=tuple(results),
        results=results,
        summaries=summaries,
        rows=[(label, [read(summary) for summary in summaries.values()]) for label, read, _ in ROWS],
        notes=_unique([*notes, *(note for result in results.values() for note in result.notes)]),
        errors={policy: result.errors for policy, result in results.items() if result.errors},
        figures=[(heading, text, Markup(draw(results))) for heading, text, draw in FIGURES],  # noqa: S704
        placements=Markup(plots.placements_over_time(results))  # noqa: S704 - an SVG that matplotlib has escaped
        if any(result.placements for result in results.values())
        else None,
        waterfall=Markup(themed(waterfall_html)) if waterfall_html else None,  # noqa: S704 - rich has escaped it
    )


Figure = tuple[str, str, Callable[[Mapping[str, ReplayResult]], str]]
FIGURES: Final[Sequence[Figure]] = (
    ("SLO attainment", "Share of runs that succeeded within their SLO.", plots.attainment_bars),
    ("Run time against its SLO", "Left of the line is in time; failed runs never arrive.", plots.run_time_cdf),
    ("Goodput over time", "Attained runs per second, by when they ended.", plots.goodput_over_time),
    ("Run time", "Submission to end, of all runs.", plots.run_seconds_cdf),
    ("Time to first token", "Per call: first token − arrival.", plots.ttft_cdf),
    ("Time per output token", "Per call: (E2E − TTFT) / (tokens − 1).", plots.tpot_cdf),
    ("Call time", "Per call: arrival to last token.", plots.call_cdf),
    ("Splits and migrations", "Calls served by more than one instance.", plots.moves),
)

_ANSI: Final = {
    "#000000": "var(--ink)",
    "#800000": "var(--ansi-red)",
    "#008000": "var(--ansi-green)",
    "#808000": "var(--ansi-yellow)",
    "#000080": "var(--ansi-blue)",
    "#800080": "var(--ansi-magenta)",
    "#008080": "var(--ansi-cyan)",
    "#7f7f7f": "var(--muted)",
}


def themed(html: str) -> str:
    """What a rich console exported, with its default theme's colours replaced by the page's."""
    return re.sub("|".join(_ANSI), lambda match: _ANSI[match[0].lower()], html, flags=re.IGNORECASE)


@cache
def template(name: str) -> Template:
    """A page's template; what comes from outside is escaped in it."""
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _clock(results: Mapping[str, ReplayResult]) -> str:
    speeds = sorted({result.speed for result in results.values()})
    rules = _unique([result.slo for result in results.values()])
    slo = f"SLO: {'; '.join(rules)}"
    if speeds == [1.0]:
        return f"{slo}; times as measured"
    shown = ", ".join(f"{speed:g}" for speed in speeds)
    return f"{slo}; times as measured on a clock compressed x {shown}"


def _clock_short(results: Mapping[str, ReplayResult]) -> str:
    speeds = sorted({result.speed for result in results.values()})
    return "as measured" if speeds == [1.0] else "clock x " + ", ".join(f"{speed:g}" for speed in speeds)


def _unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))
