"""What if every call goes to the instance whose KV cache is least used? The KV scorer of llm-d and others, alone.

KV use is the last report's, plus what was sent and put out since. S: the share in use. I: tokens in use as an option.
"""

from dataclasses import dataclass

from scheduler.call import Call
from scheduler.placement import Placement
from scheduler.ranking import at_decode, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastKv:
    """The instance with the smallest share of its KV cache in use."""

    name = "least_kv"

    as_share: bool = True
    """Of the instance's own capacity; else tokens in use."""

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The least used KV cache; the first id of equals."""
        demand, options = offers(call, state, now_s)
        pool = options.pool
        share = at_decode(options, pool.kv_used / pool.kv_capacity)
        return take(
            self.name,
            f"the least used KV cache, of {options.count()}",
            call,
            state,
            demand,
            options,
            share if self.as_share else at_decode(options, pool.kv_used),
            now_s,
            verdict=lambda option: f"{share.item(option):.1%} of its KV cache in use",
        )


POLICY = LeastKv
