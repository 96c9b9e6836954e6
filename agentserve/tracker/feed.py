"""What is told of every event to those who watch the whole cluster? Its bare facts: no reasons, no errors, no text.

A journal is kept for each run; the feed is one stream for all of them, so that a watcher reads one key. An entry holds
the facts of one batch of the journal's writer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentserve.errors import Unavailable
from agentserve.journal import Kind, RunEvent
from agentserve.tracker.event_data import check_event

MAX_FEED_BATCHES: Final = 1000
"""About as many batches are kept, the newest; at 20 batches a second 50 s."""
ENDED_KEPT_S: Final = 7200
"""When a run ended and whether it was in time is counted for this long."""
MAX_ENDED: Final = 100_000
"""Most ended runs counted of one outcome; the oldest go first."""

_KEPT: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.RUN_SUBMITTED: ("workflow", "slo_s", "deadline_s"),
    Kind.STEP_STARTED: ("node", "kind"),
    Kind.STEP_DEADLINES: ("slack_s",),
    Kind.CALL_ARRIVED: (),
    Kind.CALL_DECIDED: ("type", "prefill_instance", "decode_instance", "source", "target", "cause"),
    Kind.CALL_FIRST_TOKEN: ("instance",),
    Kind.CALL_MIGRATED: ("source", "target", "cause"),
    Kind.CALL_MIGRATION_REFUSED: (),
    Kind.CALL_ATTEMPT_FAILED: ("instance",),
    Kind.CALL_FINISHED: ("outcome",),
    Kind.STEP_FINISHED: ("outcome",),
    Kind.RUN_FINISHED: ("status", "attained"),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """A piece of the feed. `position` is where to go on; `is_gap`: what came just after the last position is gone."""

    events: Sequence[RunEvent]
    position: str
    is_gap: bool = False
    is_last: bool = True
    """Whether nothing more was there when this was read."""


def bare(event: RunEvent) -> list[Any] | None:
    """An event's facts, ready for JSON; None for one that watchers are not told of."""
    kept = _KEPT.get(event.kind)
    if kept is None:
        return None
    inner = event.data.get("decision")
    data = inner if event.kind is Kind.CALL_DECIDED and isinstance(inner, Mapping) else event.data
    facts = {name: data[name] for name in kept if data.get(name) is not None}
    return [event.run_id, event.kind, event.at_s, event.step_id, event.request_id, facts]


def batch_bytes(events: Iterable[RunEvent]) -> bytes:
    """One entry of the feed; values that JSON does not know are written as text."""
    return orjson.dumps([facts for event in events if (facts := bare(event)) is not None], default=str)


def batch_events(stored: bytes) -> list[RunEvent]:
    """The events of an entry, with their bare facts; Unavailable if it is not one of ours."""
    try:
        return [
            check_event(
                RunEvent(run_id=run_id, kind=Kind(kind), at_s=at_s, step_id=step, request_id=request, data=data)
            )
            for run_id, kind, at_s, step, request, data in orjson.loads(stored)
        ]
    except (TypeError, ValueError) as error:
        raise Unavailable(f"an entry of the feed cannot be read: {type(error).__name__}") from error


def outcome_of(event: RunEvent) -> str | None:
    """Under which outcome an end of a run is counted: `in_time`, `missed` or `no_slo`; None for any other event."""
    if event.kind is not Kind.RUN_FINISHED:
        return None
    attained = event.data.get("attained")
    return "no_slo" if attained is None else "in_time" if attained else "missed"
