"""What if every call goes to the instance with the fewest calls? Least outstanding requests."""

from scheduler.call import Call
from scheduler.estimate import Pool
from scheduler.placement import Placement
from scheduler.ranking import place_at
from scheduler.state import ClusterState


class LeastRequests:
    """The instance with the fewest outstanding calls, of ours or of others."""

    name = "least_requests"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The smallest count of calls sent and not ended; the first id of equals."""
        return place_at(
            self.name,
            "the fewest outstanding calls",
            call,
            state,
            now_s,
            rank=lambda pool, row: (_outstanding(pool, row), pool.ids[row]),
            verdict=lambda pool, row: f"{_outstanding(pool, row):.0f} outstanding calls",
        )


def _outstanding(pool: Pool, row: int) -> float:
    return float(pool.running[row] + pool.bound[row] + pool.foreign[row])


POLICY = LeastRequests
