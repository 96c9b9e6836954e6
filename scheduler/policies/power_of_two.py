"""What if a few instances are drawn and the least loaded of them is taken? The power of two choices (Mitzenmacher).

S: two choices, drawn uniformly, load = outstanding requests. I: weighing by speed, an option for mixed pools.
"""

from dataclasses import dataclass

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.placement import Placement
from scheduler.ranking import at_decode, decode_rows, decoding_at, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfTwo:
    """The one with fewer outstanding calls, of `choices` instances drawn at random."""

    name = "power_of_two"

    choices: int = 2
    by_speed: bool = False
    """Divide outstanding calls by the instance's capability."""

    def __post_init__(self) -> None:
        check_bounds(self, choices=(1, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The least loaded of those drawn; the first id of equals."""
        demand, options = offers(call, state, now_s)
        rows = decode_rows(options)
        if not rows:
            return None
        drawn = state.random.sample(rows, min(self.choices, len(rows)))
        pool = options.pool
        load = at_decode(options, pool.batch / pool.relative_capability if self.by_speed else pool.batch)
        among = decoding_at(options, drawn)
        return take(
            self.name,
            f"the fewest outstanding calls of {len(drawn)} drawn, of {len(rows)}",
            call,
            state,
            demand,
            options,
            load,
            now_s,
            among=among,
            verdict=lambda option: f"load {load.item(option):.1f}" if among[option] else "not drawn",
        )


POLICY = PowerOfTwo
