"""What if every call simply goes to the next instance? Round robin over the open instances, by id."""

from scheduler.call import Call
from scheduler.placement import Placement
from scheduler.ranking import place_at
from scheduler.state import ClusterState


class RoundRobin:
    """The instance after the one that took the last call of the same model."""

    name = "round_robin"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The next id after the last one, from the start again after the greatest."""
        last = state.pool_of(call).last_placed
        return place_at(
            self.name,
            "the next instance in turn",
            call,
            state,
            now_s,
            rank=lambda pool, row: (last is not None and pool.ids[row] <= last, pool.ids[row]),
            verdict=lambda _pool, _row: "not its turn",
        )


POLICY = RoundRobin
