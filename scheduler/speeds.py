"""What does a call's progress tell of its instances' speed? Samples for the estimates, from first tokens and rates."""

from scheduler.call import Call, Seat
from scheduler.config import EstimateConfig
from scheduler.estimate import Pool

_IDLE_QUEUE_SHARE = 0.1
"""A prefill that was to wait less than this share of its own time tells the instance's prefill speed."""


def met_an_idle_queue(seat: Seat) -> bool:
    """Whether a seat's prefill was to begin about at once."""
    return seat.predicted_queue_s <= _IDLE_QUEUE_SHARE * seat.predicted_prefill_s


def observe_first_token(call: Call, pool: Pool, seat: Seat, config: EstimateConfig, now_s: float) -> None:
    """A first token came: queue and prefill are over."""
    row = pool.row[seat.prefill]
    waited_s = max(now_s - seat.dispatched_s, 1e-6)
    fresh = max(call.arrived.prompt_tokens - seat.cached_tokens, 1.0)
    if met_an_idle_queue(seat):
        pool.observe_black_box("box_p", row, waited_s / fresh)
        pool.observe_black_box("box_q", row, 0.0)
        if not seat.is_split:
            observe_prefill(call, pool, seat, config, now_s)
    else:
        pool.observe_black_box("box_q", row, max(waited_s - float(pool.box_p[row]) * fresh, 0.0))


def observe_prefill(call: Call, pool: Pool, seat: Seat, config: EstimateConfig, now_s: float) -> None:
    """A prefill that did not queue is over."""
    row = pool.row[seat.prefill]
    fresh = max(call.context_tokens - seat.cached_tokens, 1.0)
    observed_s = now_s - seat.dispatched_s - config.overhead_s
    pool.observe_prefill(row, max(observed_s, 1e-6), pool.profile_prefill_s(row, fresh, seat.cached_tokens))


def close_window(pool: Pool, seat: Seat, now_s: float) -> None:
    """Take what a window of a call's tokens took as a sample, and begin the next."""
    row = pool.row[seat.decode]
    observed_s = now_s - seat.window_from_s
    if seat.window_profile_s > 0.0 and observed_s > 0.0:
        pool.observe_decode(row, observed_s, seat.window_profile_s)
        pool.observe_black_box("box_d", row, observed_s / seat.window_tokens)
    seat.window_from_s, seat.window_tokens, seat.window_profile_s = now_s, 0, 0.0
