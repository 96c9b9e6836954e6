"""What if every call goes to the instance that had the fewest tokens of late? Usage-based routing (LiteLLM).

S: the deployment with the lowest tokens per minute, prompt and output. I: the minute slides (a calendar minute would
forget all at its end), prompts count when they are sent and outputs when they end.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.placement import Placement
from scheduler.ranking import at_decode, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class LowestTpm:
    """The instance with the fewest tokens in the last minute."""

    name = "lowest_tpm"

    by_speed: bool = False
    """Divide tokens by the instance's capability."""

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The fewest tokens per minute; the first id of equals."""
        demand, options = offers(call, state, now_s)
        pool, tokens = options.pool, state.recent.tokens
        counts = np.array([tokens(name, now_s) for name in pool.ids])
        told = at_decode(options, counts)
        return take(
            self.name,
            f"the fewest tokens in the last minute, of {options.count()}",
            call,
            state,
            demand,
            options,
            at_decode(options, counts / pool.relative_capability) if self.by_speed else told,
            now_s,
            verdict=lambda option: f"{told.item(option):.0f} tokens in the last minute",
        )


POLICY = LowestTpm
