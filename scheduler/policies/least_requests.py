"""What if every call goes to the instance with the fewest calls? Least outstanding requests.

What balancers call least connections; `by_speed` is their weighted form.
"""

from dataclasses import dataclass

from scheduler.call import Call
from scheduler.placement import Placement
from scheduler.ranking import at_decode, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastRequests:
    """The instance with the fewest outstanding calls, of ours or of others."""

    name = "least_requests"

    by_speed: bool = False
    """Divide outstanding calls by the instance's capability."""

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The smallest count of calls sent and not ended; the first id of equals."""
        demand, options = offers(call, state, now_s)
        pool = options.pool
        count = at_decode(options, pool.batch)
        load = at_decode(options, pool.batch / pool.relative_capability) if self.by_speed else count
        return take(
            self.name,
            f"the fewest outstanding calls, of {options.count()}",
            call,
            state,
            demand,
            options,
            load,
            now_s,
            verdict=lambda option: f"{count.item(option):.0f} outstanding calls",
        )


POLICY = LeastRequests
