"""How did a run go, and why was each call served where it was? A waterfall for the terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from agentserve.reasons import blame_words, call_words, deadline_words, seconds, verdict
from agentserve.run_story import Events, run_story
from agentserve.telemetry.story import CallStory, Phase, RunStory, StepStory
from workflows.run import Run

PHASE_STYLE: Final = {
    Phase.QUEUE: ("░", "yellow"),
    Phase.PREFILL: ("▒", "blue"),
    Phase.TRANSFER: ("≈", "magenta"),
    Phase.DECODE: ("█", "green"),
    Phase.MIGRATION: ("⇢", "bold red"),
}
_TOOL: Final = ("─", "cyan")
_STEP: Final = ("·", "dim")
_TARGET: Final = ("▏", "bold yellow")
_LATEST: Final = ("▕", "bold red")
_FAILED: Final = ("✗", "bold red")
_GOING_ON: Final = ("▸", "bold")
_LEGEND: Final = (
    "░ queue  ▒ prefill (with the engine's queue)  ≈ KV transfer  █ decode  ⇢ migrating  ─ tool  ▏target  ▕ latest"
)
_DURATION_WIDTH: Final = 9
_MIN_WIDTH: Final = 60


def render_run(run: Run | Mapping[str, Any], events: Events, *, now_s: float | None = None) -> "Waterfall":
    """The run's header, a bar per step and call on one time axis, and under each why it was served where it was.

    `run` may be plain data as the gateway's REST answers it. `now_s` (Unix) is where bars of what still runs end;
    without it, at the last event. The drawing depends on nothing but these and the console's width.
    """
    return Waterfall(run_story(run, events), now_s)


class Waterfall:
    """A run, drawn to the width of the console it is printed on."""

    def __init__(self, story: RunStory, now_s: float | None = None) -> None:
        self._story = story
        self._end_s = story.finished_s or max(now_s or story.last_s, story.last_s)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, none wider than the console."""
        width = max(_MIN_WIDTH, options.max_width)
        yield from self._header(width)
        if not self._story.steps:
            yield Text("no step has begun", style="dim")
            return
        label_width = min(28, max(10, width // 4, *(len(step.node) + 2 for step in self._story.steps if width > 90)))
        chart = _Chart(self._story.submitted_s, self._horizon_s(), width - label_width - _DURATION_WIDTH)
        yield Text(" " * label_width).append(chart.axis(self._story.deadline_s))
        for step in self._story.steps:
            yield from self._step(step, chart, label_width, width)
        yield from _wrapped(_LEGEND, width, "dim")

    def _horizon_s(self) -> float:
        """Where the axis ends: at the run's end, or at its deadline if that is not far beyond."""
        start_s, end_s, deadline_s = self._story.submitted_s, self._end_s, self._story.deadline_s
        span_s = max(end_s - start_s, 1e-3)
        if deadline_s is not None and end_s < deadline_s <= start_s + 1.5 * span_s:
            return deadline_s
        return start_s + span_s

    def _header(self, width: int) -> Iterator[Text]:
        story = self._story
        mark, style = verdict(story, self._end_s)
        title = Text(f"run {story.run_id}", style="bold", no_wrap=True, overflow="ellipsis")
        title.append(f"  {story.workflow or 'unknown workflow'}  {story.status}", style="not bold")
        yield title
        yield Text(mark, style=style)
        for words in blame_words(story):
            yield from _wrapped(words, width, "red")
        if story.error:
            yield from _wrapped(f"error: {story.error}", width, "red")

    def _step(self, step: StepStory, chart: "_Chart", label_width: int, width: int) -> Iterator[Text]:
        ended_s = step.finished_s or self._end_s
        single = step.calls[0] if len(step.calls) == 1 else None
        cells = chart.cells()
        chart.paint(cells, step.started_s, ended_s, *(_TOOL if step.kind == "tool" else _STEP))
        if single is not None:
            self._phases(single, chart, cells)
        self._marks(step, chart, cells, step.finished_s is None)
        mark = {"failed": "✗ ", "cancelled": "⊘ "}.get(step.outcome or "", "")
        yield _row(mark + step.node, label_width, cells, ended_s - step.started_s)
        for call in step.calls if single is None else ():
            cells = chart.cells()
            self._phases(call, chart, cells)
            yield _row(f"  {call.request_id}", label_width, cells, (call.finished_s or self._end_s) - call.arrived_s)
            yield from _lines(call_words(call, self._story.submitted_s), width)
        yield from _lines(deadline_words(step, self._story), width)
        if single is not None:
            yield from _lines(call_words(single, self._story.submitted_s), width)
        if step.error and not any(call.error == step.error for call in step.calls):
            yield from _lines([f"error: {step.error}"], width)

    def _phases(self, call: CallStory, chart: "_Chart", cells: list[tuple[str, str]]) -> None:
        column = 0
        for phase in call.phases:
            end_s = self._end_s if phase.end_s is None else phase.end_s
            if phase.phase is Phase.QUEUE and end_s - phase.start_s < chart.cell_s / 4:
                continue
            column = chart.paint(cells, phase.start_s, end_s, *PHASE_STYLE[phase.phase], first=column)
        for at_s, _, _ in call.failures:
            chart.mark(cells, at_s, *_FAILED)

    def _marks(self, step: StepStory, chart: "_Chart", cells: list[tuple[str, str]], still_runs: bool) -> None:
        if still_runs and self._story.finished_s is None:
            chart.mark(cells, self._end_s, *_GOING_ON)
        if step.latest_deadline_s is not None:
            chart.mark(cells, step.latest_deadline_s, *_LATEST)
        if step.target_deadline_s is not None:
            chart.mark(cells, step.target_deadline_s, *_TARGET)


class _Chart:
    """Maps times to columns."""

    def __init__(self, start_s: float, end_s: float, width: int) -> None:
        self._start_s, self._span_s, self._width = start_s, max(end_s - start_s, 1e-6), max(10, width)
        self.cell_s = self._span_s / self._width

    def cells(self) -> list[tuple[str, str]]:
        """An empty line: a character and a style per column."""
        return [(" ", "")] * self._width

    def paint(
        self, cells: list[tuple[str, str]], start_s: float, end_s: float, char: str, style: str, first: int = 0
    ) -> int:
        """Fill the columns of a stretch, at least one, none before `first`; returns the column after it."""
        low = min(max(int(self._column(start_s)), first, 0), self._width - 1)
        high = min(max(low + 1, round(self._column(end_s))), self._width)
        cells[low:high] = [(char, style)] * (high - low)
        return high

    def mark(self, cells: list[tuple[str, str]], at_s: float, char: str, style: str) -> None:
        """One column, if the axis reaches that far."""
        column = int(self._column(at_s))
        if column == self._width:
            column -= 1
        if 0 <= column < self._width:
            cells[column] = (char, style)

    def axis(self, deadline_s: float | None) -> Text:
        """Times from the start, at round steps that leave room for their labels, and where the run's SLO ends."""
        step_s = next((s for s in _ROUND_STEPS_S if s / self.cell_s >= 10), self._span_s)
        line = [" "] * self._width
        for index in range(int(self._span_s / step_s) + 1):
            label = f"{index * step_s:g}s"
            column = round(index * step_s / self.cell_s)
            if column + len(label) <= self._width:
                line[column : column + len(label)] = label
        text = Text("".join(line), style="dim")
        column = -1 if deadline_s is None else min(round(self._column(deadline_s)), self._width)
        if 4 <= column <= self._width and deadline_s is not None and self._reaches(deadline_s):
            return text[: column - 4].append("SLO▕", _LATEST[1]).append(text[column:])
        return text

    def _reaches(self, at_s: float) -> bool:
        return at_s <= self._start_s + self._span_s + self.cell_s

    def _column(self, at_s: float) -> float:
        return (at_s - self._start_s) / self.cell_s


_ROUND_STEPS_S: Final = tuple(base * 10**power for power in range(-3, 6) for base in (1, 2, 5))


def _row(label: str, label_width: int, cells: list[tuple[str, str]], duration_s: float) -> Text:
    line = Text(no_wrap=True)
    room = label_width - 1
    line.append((label if len(label) <= room else label[: room - 1] + "…").ljust(label_width))
    for style, same in groupby(cells, key=lambda cell: cell[1]):
        line.append("".join(char for char, _ in same), style or None)
    line.append(f"{seconds(duration_s):>{_DURATION_WIDTH}}")
    return line


def _lines(sentences: Sequence[str], width: int) -> Iterator[Text]:
    for sentence in sentences:
        yield from _wrapped(sentence, width, "dim", "    ")


def _wrapped(sentence: str, width: int, style: str, indent: str = "") -> Iterator[Text]:
    for line in textwrap.wrap(
        sentence, width, initial_indent=indent, subsequent_indent=indent + "  " if indent else ""
    ):
        yield Text(line, style=style, no_wrap=True)
