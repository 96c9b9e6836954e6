"""What do the plots of a comparison show beside those of a replay? Figures along a sweep, load over time, moves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agentserve.lab.aggregates import Aggregate
from agentserve.lab.plots import SERIES, SLO_COLOUR, drawing, legend, line_style
from agentserve.lab.results import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Simulations = Mapping[str, SimulationResult]

_WIDE: Final = 10.6
_PANEL: Final = 2.3
_DOTS: Final = 500
"""Dispatches drawn per policy at most, evenly picked; every move is drawn, up to this number too."""
_ROWS: Final = 24
"""Instances drawn at most in a timeline."""


def along_axis(
    aggregates: Sequence[Aggregate], axis: str, own_value: Any, figure: str, labels: tuple[str, str]
) -> str | None:
    """A figure with its 95 % intervals against the values of one axis, a line per policy; None below two values.

    Of points where other axes differ, those at the first of their settings are drawn. `own_value`: where the scenario
    itself stands on the axis, for points that leave it as it is. `labels`: of the axis and of the figure.
    """
    lines = {name: _line_of(aggregates, axis, own_value, figure, name) for name in _policies(aggregates)}
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None

    def draw(axes: "Axes") -> None:
        for index, (name, points) in enumerate(lines.items()):
            xs = [x for x, _, _ in points]
            means = [mean for _, mean, _ in points]
            halves = [half for _, _, half in points]
            style = line_style(index)
            axes.errorbar(xs, means, yerr=halves, label=name, marker="o", markersize=3.5, capsize=2.5, **style)
        axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
        legend(axes)

    return drawing(f"along-{axis}-{figure}".replace(".", "-"), draw)


def busy_bars(aggregates: Sequence[Aggregate]) -> str:
    """Busy share of each GPU type, per policy."""
    gpus = sorted({gpu for one in aggregates for gpu in one.gpu_utilisation})
    height = 0.8 / max(1, len(aggregates))

    def draw(axes: "Axes") -> None:
        for index, one in enumerate(aggregates):
            at = [row + index * height for row in range(len(gpus))]
            shares = [one.gpu_utilisation.get(gpu, 0.0) for gpu in gpus]
            axes.barh(at, shares, height * 0.9, color=SERIES[index % 8], label=one.label)
        axes.set_yticks([row + height * (len(aggregates) - 1) / 2 for row in range(len(gpus))])
        axes.set_yticklabels(gpus)
        axes.invert_yaxis()
        axes.set(xlabel="share of the time in which an iteration ran", xlim=(0, 1.02))
        legend(axes, outside=True)

    return drawing("busy", draw)


def load_over_time(results: Simulations, field: str, label: str) -> str:
    """A sampled load (running, waiting, kv_usage) of each GPU type's instances on average, a panel per policy."""
    types = sorted({use.gpu for result in results.values() for use in result.instances})

    def draw(axes: "Axes", policy: str) -> None:
        result = results[policy]
        gpu_of = {use.instance_id: use.gpu for use in result.instances}
        sums: dict[str, dict[float, list[float]]] = {gpu: {} for gpu in types}
        for sample in result.samples:
            sums[gpu_of[sample.instance_id]].setdefault(sample.at_s, []).append(getattr(sample, field))
        for index, gpu in enumerate(types):
            times = sorted(sums[gpu])
            means = [sum(sums[gpu][at_s]) / len(sums[gpu][at_s]) for at_s in times]
            axes.plot(times, means, label=gpu, **(line_style(index + 2) | {"linewidth": 1.3}))
        axes.set(title=policy, ylabel=label, ylim=(0, None), xlim=(0, None))
        if policy == list(results)[-1]:
            axes.set_xlabel("virtual time (s)")
        legend(axes, outside=True)

    return drawing(f"load-{field}", draw, tuple(results), (_WIDE, _PANEL * max(1, len(results))))


def timeline(results: Simulations) -> str:
    """Where calls were placed (dots) and moved (lines from instance to instance), a panel per policy."""
    names = sorted({use.instance_id for result in results.values() for use in result.instances})[:_ROWS]
    rows = {name: index for index, name in enumerate(names)}

    def draw(axes: "Axes", policy: str) -> None:
        dispatches, moves = _placed_and_moved(results[policy])
        placed = _evenly([one for one in dispatches if one[1] in rows])
        axes.plot([at_s for at_s, _ in placed], [rows[name] for _, name in placed], linestyle="none", marker="|",
                  markersize=7, markeredgewidth=0.6, color=SERIES[0], alpha=0.55, label="placed")  # fmt: skip
        drawn = _evenly([one for one in moves if one[1] in rows and one[2] in rows])
        if drawn:
            times = [at_s for at_s, _, _ in drawn]
            sources, targets = ([rows[one[side]] for one in drawn] for side in (1, 2))
            axes.vlines(times, sources, targets, color=SLO_COLOUR, linewidth=0.8, label="moved")
            axes.plot(times, targets, linestyle="none", marker="o", markersize=3, color=SLO_COLOUR)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels(names)
        axes.set(title=f"{policy} ({len(dispatches):,} placed, {len(moves):,} moved)", ylim=(len(names) - 0.5, -0.5))
        axes.set_xlim(0, None)
        if policy == list(results)[-1]:
            axes.set_xlabel("virtual time (s)")
        legend(axes, outside=True)

    height = (0.9 + 0.2 * len(names)) * max(1, len(results))
    return drawing("timeline", draw, tuple(results), (_WIDE, height))


def _policies(aggregates: Sequence[Aggregate]) -> list[str]:
    return list(dict.fromkeys(one.label for one in aggregates))


def _line_of(
    aggregates: Sequence[Aggregate], axis: str, own_value: Any, figure: str, label: str
) -> list[tuple[float, float, float]]:
    """(value on the axis, mean, half of the interval) in order; each value once."""
    others: dict[str, Any] | None = None
    found: dict[float, tuple[float, float, float]] = {}
    for one in aggregates:
        value, interval = one.axes.get(axis, own_value), one.figures.get(figure)
        rest = {name: setting for name, setting in one.axes.items() if name != axis}
        if one.label != label or interval is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        others = rest if others is None else others
        if rest == others:
            found[float(value)] = (float(value), interval.mean, interval.half or 0.0)
    return [found[value] for value in sorted(found)]


def _placed_and_moved(result: SimulationResult) -> tuple[list[tuple[float, str]], list[tuple[float, str, str]]]:
    at: dict[str, str] = {}
    placed, moved = [], []
    for one in sorted(result.replay.placements, key=lambda one: (one.at_s, one.request_id)):
        before = at.get(one.request_id)
        if one.cause == "dispatch" or before is None:
            placed.append((one.at_s, one.decode_instance))
        else:
            moved.append((one.at_s, before, one.decode_instance))
        at[one.request_id] = one.decode_instance
    return placed, moved


def _evenly(found: Sequence[Any]) -> list[Any]:
    stride = max(1, -(-len(found) // _DOTS))
    return list(found[::stride])
