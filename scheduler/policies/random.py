"""What if every call goes to any instance? Uniform random choice among the open ones, reproducible by seed."""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.placement import Placement
from scheduler.ranking import decode_rows, decoding_at, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True)
class Random:
    """Any instance that can serve the call, each as likely."""

    name = "random"

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """One draw from the scheduler's own generator."""
        demand, options = offers(call, state, now_s)
        rows = decode_rows(options)
        if not rows:
            return None
        return take(
            self.name,
            f"drawn at random, of {len(rows)}",
            call,
            state,
            demand,
            options,
            np.zeros(len(options.own_s)),
            now_s,
            among=decoding_at(options, [state.random.choice(rows)]),
            verdict=lambda _option: "not drawn",
        )


POLICY = Random
