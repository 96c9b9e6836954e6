"""What do the report's plots show? Each function draws one as an SVG that takes its colours from the page.

matplotlib writes marked colours, which are then replaced by CSS variables, so that one file serves light and dark.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agentserve.errors import BadInput
from agentserve.lab.results import ReplayResult
from agentserve.records import attainment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, ReplayResult]

INK: Final = "#010101"
GRID: Final = "#020202"
SLO_COLOUR: Final = "#030303"
SERIES: Final = tuple(f"#04040{index}" for index in range(8))
_DASHES: Final = ("-", "--", ":", "-.")
_CSS: Final = {INK: "currentColor", GRID: "var(--grid)", SLO_COLOUR: "var(--slo)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
_OWN_IDS: Final = "figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend|LineCollection"
"""How matplotlib begins the ids that it gives in every drawing anew."""
_BINS: Final = 24
_GOODPUT_BINS: Final = 12
_FIRST_INSTANCE_COLOUR: Final = 2  # the first ones mean policies
SMALL: Final = (5.2, 3.1)


def run_time_cdf(results: Results) -> str:
    """Share of runs that ended within a multiple of their SLO; a run that failed never does."""

    def draw(axes: "Axes") -> None:
        for index, (policy, result) in enumerate(results.items()):
            bounded = [run for run in result.runs if run.slo_s]
            ratios = sorted(run.e2e_s / run.slo_s for run in bounded if run.succeeded and run.slo_s)
            _cdf(axes, ratios, len(bounded), policy, index)
        axes.axvline(1.0, color=SLO_COLOUR, linewidth=1.5)
        axes.annotate("SLO", (1.0, 1.0), xytext=(3, -9), textcoords="offset points", color=SLO_COLOUR)
        axes.set(xlabel="run E2E / its SLO", ylabel="share of runs", ylim=(0, 1.02), xlim=(0, None))
        legend(axes)

    return drawing("run-cdf", draw)


def run_seconds_cdf(results: Results) -> str:
    """Share of runs that ended within so many seconds."""

    def draw(axes: "Axes") -> None:
        for index, (policy, result) in enumerate(results.items()):
            _cdf(axes, sorted(run.e2e_s for run in result.runs if run.succeeded), len(result.runs), policy, index)
        axes.set(xlabel="run E2E (s, log scale)", ylabel="share of runs", ylim=(0, 1.02))
        _log_x(axes)
        legend(axes)

    return drawing("run-seconds", draw)


def attainment_bars(results: Results) -> str:
    """Share of runs that attained their SLO, per policy."""

    def draw(axes: "Axes") -> None:
        shares = {policy: attainment(result.runs) for policy, result in results.items()}
        for index, (policy, share) in enumerate(shares.items()):
            axes.barh(policy, share or 0.0, color=SERIES[index % 8], height=0.6)
            shown = "no SLO" if share is None else f"{share:.1%}"
            axes.annotate(shown, (share or 0.0, index), xytext=(4, 0), textcoords="offset points", va="center")
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.15), xlabel="share of runs that attained their SLO")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])

    return drawing("attainment", draw)


def goodput_over_time(results: Results) -> str:
    """Attained runs per second, by the time of their end."""

    def draw(axes: "Axes") -> None:
        for index, (policy, result) in enumerate(results.items()):
            ends = [run.finished_s - result.started_s for run in result.runs if run.attained]
            span_s = max([run.finished_s - result.started_s for run in result.runs], default=1.0) or 1.0
            width_s = span_s / _GOODPUT_BINS
            counts = _counts(ends, width_s, _GOODPUT_BINS)
            edges = [width_s * i for i in range(_GOODPUT_BINS + 1)]
            axes.stairs([count / width_s for count in counts], edges, label=policy, **line_style(index))
        axes.set(xlabel="time since the first run (s)", ylabel="attained runs / s", ylim=(0, None), xlim=(0, None))
        legend(axes)

    return drawing("goodput", draw)


def ttft_cdf(results: Results) -> str:
    """Time to first token of the calls that ended well."""
    return _call_cdf(results, "ttft", "TTFT (s, log scale)", lambda call: call.ttft_s)


def call_cdf(results: Results) -> str:
    """Arrival to last token of the calls that ended well."""
    return _call_cdf(results, "call", "call E2E (s, log scale)", lambda call: call.e2e_s)


def tpot_cdf(results: Results) -> str:
    """Time per output token of the calls that ended well."""
    return _call_cdf(
        results, "tpot", "TPOT (ms, log scale)", lambda call: None if call.tpot_s is None else call.tpot_s * 1000
    )


def placements_over_time(results: Results) -> str:
    """Calls given to each instance for decoding, per stretch of time, one row of axes per policy."""
    totals: dict[str, int] = {}
    for result in results.values():
        for placement in result.placements:
            totals[placement.decode_instance] = totals.get(placement.decode_instance, 0) + 1
    instances = sorted(sorted(totals, key=lambda name: -totals[name])[:8])
    ends = [p.at_s - result.started_s for result in results.values() for p in result.placements]
    width_s = (max(ends, default=1.0) or 1.0) / _BINS

    def draw(axes: "Axes", policy: str) -> None:
        result = results[policy]
        below = [0] * _BINS
        for index, instance in enumerate(instances):
            times = [p.at_s - result.started_s for p in result.placements if p.decode_instance == instance]
            counts = _counts(times, width_s)
            axes.bar(
                [width_s * (i + 0.5) for i in range(_BINS)], counts, width_s * 0.9, bottom=below,
                color=SERIES[(index + _FIRST_INSTANCE_COLOUR) % 8], label=f"{instance} ({len(times)})", linewidth=0,
            )  # fmt: skip
            below = [low + count for low, count in zip(below, counts, strict=True)]
        axes.set(title=policy, ylabel="calls placed", xlim=(0, None))
        if policy == list(results)[-1]:
            axes.set_xlabel("time since the first run (s)")
        legend(axes, outside=True)

    return drawing("placements", draw, tuple(results), (10.6, 2.5 * max(1, len(results))))


def moves(results: Results) -> str:
    """Migrations by cause, and calls whose prefill and decode ran on different instances."""

    def draw(axes: "Axes") -> None:
        kinds = ("split", "late", "drain", "lost", "balance")
        height = 0.8 / max(1, len(results))
        for index, (policy, result) in enumerate(results.items()):
            causes = [placement.cause for placement in result.placements]
            counts = [sum(call.split for call in result.calls), *(causes.count(kind) for kind in kinds[1:])]
            at = [row + index * height for row in range(len(kinds))]
            axes.barh(at, counts, height * 0.9, color=SERIES[index % 8], label=policy)
            for y, count in zip(at, counts, strict=True):
                axes.annotate(f"{count:,}", (count, y), xytext=(4, 0), textcoords="offset points", va="center")
        middle = height * (len(results) - 1) / 2
        axes.set_yticks([row + middle for row in range(len(kinds))])
        axes.set_yticklabels(["split placements", "moved: late", "moved: drained", "moved: lost", "moved: balance"])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="calls", xlim=(0, None))
        legend(axes)

    return drawing("moves", draw)


def _call_cdf(results: Results, name: str, label: str, value: Callable[[Any], float | None]) -> str:
    def draw(axes: "Axes") -> None:
        for index, (policy, result) in enumerate(results.items()):
            known = sorted(v for call in result.calls if call.ok and (v := value(call)) is not None)
            _cdf(axes, known, len(known), policy, index)
        axes.set(xlabel=label, ylabel="share of calls", ylim=(0, 1.02))
        _log_x(axes)
        legend(axes)

    return drawing(name, draw)


def _cdf(axes: "Axes", ordered: Sequence[float], total: int, policy: str, index: int) -> None:
    """A step curve of at most some hundred points; it ends below 1 where `total` counts more than `ordered`."""
    stride = max(1, len(ordered) // 300)
    picked = [*range(0, len(ordered), stride), *([len(ordered) - 1] if ordered else [])]
    shares = [(rank + 1) / total for rank in picked]
    axes.step([ordered[rank] for rank in picked], shares, where="post", label=policy, **line_style(index))


def line_style(index: int) -> dict[str, Any]:
    """How the line of the policy at this place looks, in every plot of a page."""
    return {"color": SERIES[index % 8], "linestyle": _DASHES[(index + index // 8) % 4], "linewidth": 2.0}


def _counts(times_s: Sequence[float], width_s: float, bins: int = _BINS) -> list[int]:
    counts = [0] * bins
    for time_s in times_s:
        counts[min(bins - 1, max(0, int(time_s / width_s)))] += 1
    return counts


def _log_x(axes: "Axes") -> None:
    if any(len(line.get_xdata()) for line in axes.get_lines()):  # type: ignore[arg-type]  # matplotlib's ArrayLike
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def legend(axes: "Axes", *, outside: bool = False) -> None:
    """Name what is drawn, inside the axes or to their right; nothing if there is nothing to name."""
    if axes.get_legend_handles_labels()[0]:
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}
        axes.legend(frameon=False, **place)


def drawing(
    name: str,
    draw: Callable[..., None],
    panels: Sequence[str] = (),
    size: tuple[float, float] = SMALL,
) -> str:
    """One drawing, or one panel below the other, as an inline SVG without a background.

    `draw` is given the axes and, with panels, the panel's name. Raises BadInput without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("the report's plots need matplotlib: pip install 'agentserve[local]'") from None
    style: Any = _STYLE | {"svg.hashsalt": name}  # its keys are literals to matplotlib's types
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        rows = figure.subplots(max(1, len(panels)), 1, squeeze=False, sharex=True, sharey=True)
        for index, axes in enumerate(rows[:, 0]):
            axes.grid(color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes, panels[index]) if panels else draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]+" height="[^"]+"', r"\1", svg, count=1)
    svg = re.sub(rf"(?<=[\"#])((?:{_OWN_IDS})[._\w]*)(?=[\")])", rf"{name}-\1", svg)
    return re.sub("|".join(_CSS), lambda match: _CSS[match[0]], svg)


_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
