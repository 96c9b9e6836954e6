"""Which running calls are about to miss their deadline? Re-estimated every τ, on progress or at a wake-up.

    finish = now + remaining · max(step, elapsed/(tokens + window))

`remaining` is the median of the length conditioned on what was put out, `step` the corrected decode step of what runs
on the instance; the second term lets a call that has stopped to stream look as slow as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.call import Call, CallState
from scheduler.estimate import Pool
from scheduler.frozen import builder


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a running call stands: predicted remaining tokens and time at its instance."""

    remaining_tokens: float
    step_s: float
    finish_s: float


_new_outlook = builder(Outlook)


def outlook(call: Call, pool: Pool, now_s: float) -> Outlook | None:
    """Predict the finish of a running call where it is; None while it has no live instance."""
    seat = call.seat
    if call.state is not CallState.RUNNING or seat is None or not seat.is_bound:
        return None
    window = pool.config.window_tokens
    stalled_s = (now_s - seat.window_from_s) / (seat.window_tokens + window)
    step_s = max(pool.step_s(pool.row[seat.decode]), stalled_s)
    return _new_outlook(seat.remaining, step_s, now_s + seat.remaining * step_s)


def is_late(call: Call, pool: Pool, now_s: float) -> bool:
    """Whether a running call is expected to end after its target deadline."""
    if call.target_deadline_s is None:
        return False
    seen = outlook(call, pool, now_s)
    return seen is not None and seen.finish_s > call.target_deadline_s


def overdue(calls: Iterable[Call], now_s: float, limit: int) -> list[Call]:
    """Running calls whose risk check is due, the most urgent deadline first, at most `limit`."""
    due = [call for call in calls if call.state is CallState.RUNNING and call.next_check_s <= now_s]
    due.sort(key=lambda call: (_deadline(call), call.request_id))
    return due[:limit]


def _deadline(call: Call) -> float:
    return float("inf") if call.target_deadline_s is None else call.target_deadline_s
