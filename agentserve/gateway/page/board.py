"""Which runs are there, and how far is each? A bounded board of them, kept current by the bare facts of the feed.

Facts may come twice, and those of runs that the board does not know are passed over. Every change gives a row a new
version, so that a reader asks only for what changed since.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentserve.journal import Kind, RunEvent
from agentserve.tenants.tenant import NOBODY, Tenant
from agentserve.tracker.store import RunSummary
from workflows.run import RunStatus

MAX_ROWS: Final = 2000
MAX_BARS: Final = 40
"""Steps drawn of one run, the newest; the run's own page shows all."""
MAX_MOVES: Final = 12
_RUNNING: Final = str(RunStatus.RUNNING)
_SUCCEEDED: Final = str(RunStatus.SUCCEEDED)


@dataclass(slots=True)
class Bar:
    """One step of a run, as it is drawn."""

    node: str
    kind: str
    started_s: float
    finished_s: float | None = None
    outcome: str | None = None
    instance: str | None = None
    phase: str | None = None

    def to_plain(self) -> list[Any]:
        """A list, since there are many."""
        return [self.node, self.kind, self.started_s, self.finished_s, self.outcome, self.instance, self.phase]


@dataclass(slots=True)
class Row:
    """One run. `slack_s`: of the run, as expected when its deadlines were last derived."""

    run_id: str
    workflow: str
    submitted_s: float
    slo_s: float | None = None
    deadline_s: float | None = None
    status: str = _RUNNING
    finished_s: float | None = None
    attained: bool | None = None
    slack_s: float | None = None
    bars: dict[str, Bar] = field(default_factory=dict)
    steps: int = 0
    counted_until_s: float = 0.0
    """Steps that began before are in `steps` already."""
    moves: list[list[Any]] = field(default_factory=list)
    moved: int = 0
    failures: int = 0
    failed_at_s: float = 0.0
    version: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it still runs."""
        return self.status == _RUNNING

    def is_late(self, now_s: float) -> bool:
        """Whether it missed its SLO, or is expected to."""
        if not self.is_live:
            return self.attained is False
        past = self.deadline_s is not None and now_s > self.deadline_s
        return past or (self.slack_s is not None and self.slack_s < 0)

    def to_plain(self) -> dict[str, Any]:
        """The row as the page gets it."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "submitted_s": self.submitted_s,
            "slo_s": self.slo_s,
            "deadline_s": self.deadline_s,
            "status": self.status,
            "finished_s": self.finished_s,
            "attained": self.attained,
            "slack_s": self.slack_s,
            "bars": [bar.to_plain() for bar in self.bars.values()],
            "steps": self.steps,
            "moves": self.moves,
            "moved": self.moved,
            "failures": self.failures,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one reader wants to see: rows from a place on, of a kind, whose run id or workflow holds a text.

    Whoever `tenant` is sees its own rows only, unless it is an admin.
    """

    first: int = 0
    rows: int = 25
    show: str = "all"
    text: str = ""
    tenant: Tenant = NOBODY


SHOWN: Final[Mapping[str, Callable[[Row, float], bool]]] = {
    "all": lambda row, now_s: True,
    "live": lambda row, now_s: row.is_live,
    "late": lambda row, now_s: row.is_late(now_s),
    "moved": lambda row, now_s: row.moved > 0,
    "ended": lambda row, now_s: not row.is_live,
}
"""Kinds of runs that a view may ask for."""


class Board:
    """The newest runs, at most `max_rows`; ended ones go before live ones."""

    def __init__(self, max_rows: int = MAX_ROWS, version: int = 0) -> None:
        self._max_rows = max_rows
        self._rows: dict[str, Row] = {}
        self._order: list[str] | None = None
        self.version = version

    def get(self, run_id: str) -> Row | None:
        """The run of that id."""
        return self._rows.get(run_id)

    def take(self, summaries: Iterable[RunSummary], now_s: float) -> None:
        """Take runs as the store lists them now; what is known already stays, but for its end."""
        for one in summaries:
            row = self._rows.get(one.run_id)
            if row is None:
                deadline_s = None if one.slo_s is None else one.submitted_s + one.slo_s
                row = self._add(Row(one.run_id, one.workflow, one.submitted_s, one.slo_s, deadline_s))
                row.steps, row.counted_until_s = one.steps, now_s
            if row.is_live and one.status is not RunStatus.RUNNING:
                row.status, row.finished_s = str(one.status), one.finished_s
                if one.slo_s is not None and one.finished_s is not None:
                    in_time = one.finished_s - one.submitted_s <= one.slo_s
                    row.attained = in_time and one.status is RunStatus.SUCCEEDED
                self._touch(row)

    def apply(self, events: Iterable[RunEvent]) -> None:
        """Take facts, in order."""
        for event in events:
            if event.kind is Kind.RUN_SUBMITTED and event.run_id not in self._rows:
                data = event.data
                workflow = str(data.get("workflow") or "")
                self._add(Row(event.run_id, workflow, event.at_s, data.get("slo_s"), data.get("deadline_s")))
                continue
            row, read = self._rows.get(event.run_id), _READERS.get(event.kind)
            if row is not None and read is not None:
                read(row, event)
                self._touch(row)

    def window(self, view: View, now_s: float) -> tuple[Sequence[str], int]:
        """The run ids that a view shows, newest first, and how many match it in all."""
        order, scope = self._newest_first(), view.tenant.scope
        if scope:
            order = [name for name in order if name.startswith(scope)]
        if view.show == "all" and not view.text:
            return order[view.first : view.first + view.rows], len(order)
        fits, text = SHOWN[view.show], view.text.lower()
        found = [
            name
            for name in order
            if fits(row := self._rows[name], now_s)
            and (text in name[len(scope) :].lower() or text in row.workflow[len(scope) :].lower())
        ]
        return found[view.first : view.first + view.rows], len(found)

    def totals(self, now_s: float, tenant: Tenant = NOBODY) -> dict[str, int]:
        """How many runs the tenant sees, how many of them are live, and how many of those are late."""
        seen = [row for row in self._rows.values() if row.run_id.startswith(tenant.scope)]
        live = [row for row in seen if row.is_live]
        return {"live": len(live), "late": sum(row.is_late(now_s) for row in live), "known": len(seen)}

    def _add(self, row: Row) -> Row:
        if len(self._rows) >= self._max_rows:
            oldest = self._newest_first()[::-1]
            spare = next((name for name in oldest if not self._rows[name].is_live), oldest[0])
            del self._rows[spare]
            if self._order is not None:
                self._order.remove(spare)
        self._rows[row.run_id] = row
        newest = self._order[0] if self._order else None
        if newest is not None and self._order is not None and self._rows[newest].submitted_s <= row.submitted_s:
            self._order.insert(0, row.run_id)
        else:
            self._order = None
        self._touch(row)
        return row

    def _touch(self, row: Row) -> None:
        self.version += 1
        row.version = self.version

    def _newest_first(self) -> list[str]:
        if self._order is None:
            self._order = sorted(self._rows, key=lambda name: (-self._rows[name].submitted_s, name))
        return self._order


def _step_started(row: Row, event: RunEvent) -> None:
    step_id, data = event.step_id or "", event.data
    if step_id in row.bars:
        return
    row.bars[step_id] = Bar(str(data.get("node") or step_id), str(data.get("kind") or "llm"), event.at_s)
    row.steps += event.at_s > row.counted_until_s
    if len(row.bars) > MAX_BARS:
        del row.bars[next(iter(row.bars))]


def _step_finished(row: Row, event: RunEvent) -> None:
    bar = row.bars.get(event.step_id or "")
    if bar is not None:
        bar.finished_s, bar.outcome, bar.phase = event.at_s, event.data.get("outcome"), None


def _deadlines(row: Row, event: RunEvent) -> None:
    row.slack_s = event.data.get("slack_s")


def _decided(row: Row, event: RunEvent) -> None:
    bar, data = row.bars.get(event.step_id or ""), event.data
    kind = data.get("type")
    if bar is None or bar.finished_s is not None:
        return
    if kind == "dispatch":
        bar.instance, bar.phase = data.get("decode_instance"), "prefill"
    elif kind == "migrate":
        bar.phase = "moving"
    elif kind == "hold":
        bar.phase = "held"


def _first_token(row: Row, event: RunEvent) -> None:
    bar = row.bars.get(event.step_id or "")
    if bar is not None and bar.finished_s is None:
        bar.instance, bar.phase = event.data.get("instance") or bar.instance, "decode"


def _moved(row: Row, event: RunEvent) -> None:
    data = event.data
    move = [event.at_s, data.get("source"), data.get("target"), data.get("cause")]
    if move in row.moves:
        return
    row.moved += 1
    row.moves = [*row.moves, move][-MAX_MOVES:]


def _attempt_failed(row: Row, event: RunEvent) -> None:
    row.failures += event.at_s > row.failed_at_s
    row.failed_at_s = max(row.failed_at_s, event.at_s)
    bar = row.bars.get(event.step_id or "")
    if bar is not None:
        bar.phase = "queue"


def _run_finished(row: Row, event: RunEvent) -> None:
    row.status, row.finished_s = str(event.data.get("status") or _SUCCEEDED), event.at_s
    row.attained = event.data.get("attained")


_READERS: Final = {
    Kind.STEP_STARTED: _step_started,
    Kind.STEP_DEADLINES: _deadlines,
    Kind.STEP_FINISHED: _step_finished,
    Kind.CALL_DECIDED: _decided,
    Kind.CALL_FIRST_TOKEN: _first_token,
    Kind.CALL_MIGRATED: _moved,
    Kind.CALL_ATTEMPT_FAILED: _attempt_failed,
    Kind.RUN_FINISHED: _run_finished,
}
