"""What does the fit look like? Measured points and the profile's lines, as one SVG file."""

import io
from typing import TYPE_CHECKING, Any, Final

from agentserve.errors import BadInput
from agentserve.profiler.points import Points
from scheduler.profiles import GpuProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = ("#2a6f97", "#c8553d", "#588157", "#7b5ea7")
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "profile",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
}


def plot(points: Points, profile: GpuProfile) -> bytes:
    """Prefill time against new tokens and decode step against batch. Raises BadInput without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("a plot needs matplotlib: pip install 'agentserve[local]'") from None
    style: Any = _STYLE  # its keys are literals to matplotlib's types
    with mpl.rc_context(style):
        figure = Figure(figsize=(10.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _prefill(left, points, profile)
        _decode(right, points, profile)
        for axes in (left, right):
            axes.grid(color="#dddddd", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.legend(frameon=False)
        figure.suptitle(f"{profile.gpu} · {profile.model}: measured (points) and fitted (lines)", x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _prefill(axes: "Axes", points: Points, profile: GpuProfile) -> None:
    prefixes = sorted({point.cached_tokens for point in points.prefill})
    shown = [prefixes[round(i * (len(prefixes) - 1) / 3)] for i in range(4)] if len(prefixes) > 4 else prefixes
    for colour, cached in zip(_COLOURS, dict.fromkeys(shown), strict=False):
        chosen = [point for point in points.prefill if point.cached_tokens == cached]
        tokens = [point.new_tokens for point in chosen]
        label = f"after {cached:,} cached" if cached else "no prefix"
        axes.plot(tokens, [1e3 * (p.ttft_s - points.overhead_s) for p in chosen], "o", color=colour, label=label)
        lengths = _between(min(tokens) / 2, max(tokens) * 1.2)
        axes.plot(lengths, [1e3 * profile.prefill_s(n, cached) for n in lengths], "-", color=colour, linewidth=1.2)
    axes.set(title="prefill", xlabel="new tokens", ylabel="ms")


def _decode(axes: "Axes", points: Points, profile: GpuProfile) -> None:
    contexts: dict[int, list[tuple[int, float, float]]] = {}
    for point in points.decode:
        each = point.context_tokens / point.batch
        near = min(contexts, key=lambda known: abs(known - each), default=None)
        key = near if near is not None and abs(near - each) < 0.3 * each else round(each)
        contexts.setdefault(key, []).append((point.batch, point.step_s, each))
    for colour, (context, rows) in zip(_COLOURS, sorted(contexts.items()), strict=False):
        axes.plot(
            [b for b, _, _ in rows], [1e3 * s for _, s, _ in rows], "o", color=colour, label=f"{context:,} tokens"
        )
        batches = _between(1, max(b for b, _, _ in rows) * 1.2)
        axes.plot(batches, [1e3 * profile.decode_step_s(b, b * context) for b in batches], "-", color=colour, lw=1.2)
    axes.set(title="decode step", xlabel="sequences in the batch", ylabel="ms")


def _between(low: float, high: float) -> list[float]:
    return [low * (high / low) ** (i / 40) for i in range(41)]
