"""What would Kairos do? Agents with the least left to do first, dispatched where memory suffices in every time slot.

A proxy: the paper (2508.06948) gives no formulas that can be built from. S: priority between agents by the
distribution of their remaining latency, within an agent by the start of its run; dispatch by predicted KV demand per
time slot; calls wait centrally while no instance has the memory. I, all of it: remaining latency is the call's time
alone plus the forecast of what its run does after it, in steps of `bucket_s`; in each of `slots` time slots residents
of an instance are taken to end evenly over twice their mean remaining time and to grow until then; the call goes to
the instance with the lowest peak share of KV among those whose peak stays under `room` (`earliest`: to the earliest
finish among those). With none it waits, if every instance has a call of ours that will end. The order is also the
engine's priority.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.estimate import Floats
from scheduler.latency import Demand
from scheduler.placement import Options, Placement
from scheduler.policy import Wait
from scheduler.ranking import as_priority, at_decode, offers, take, with_room
from scheduler.state import ClusterState

_RANK_S = 1e7
_PRIORITIES = 10**5
"""Per bucket of remaining latency, seconds: a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kairos:
    """Remaining latency orders, KV demand over time places."""

    name = "kairos"

    bucket_s: float = 1.0
    """Remaining latencies that differ by less count as equal."""
    slots: int = 8
    """Time slots into which the call's own time on an instance is divided."""
    room: float = 0.95
    """Share of the KV cache that may be in use in any slot."""
    earliest: bool = False
    """Among those with room, the earliest finish instead of the lowest peak."""
    batch_cap: int = 0
    """Our calls per instance beyond which calls wait at the gateway; 0: none."""

    def __post_init__(self) -> None:
        check_bounds(self, bucket_s=(1e-3, 1e6), slots=(1, 1000), room=(0.0, 1e3), batch_cap=(0, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The instance whose KV cache stays emptiest while the call is there."""
        demand, options = offers(call, state, now_s)
        if not options.allowed.any():
            return None
        pool, peak = options.pool, at_decode(options, self._peak(options, demand))
        idle = at_decode(options, pool.running + pool.bound) == 0.0
        room = with_room(options, self.batch_cap) & (idle | (peak <= self.room))
        if not room.any():
            return Wait("no instance has the memory in every time slot, or room for one more call")
        bucket = self._bucket(call, state)
        start_s = min(state.runs.of(call).first_seen_s - (state.epoch_s or 0.0), _PRIORITIES - 1.0)
        return take(
            self.name,
            f"{'the earliest finish' if self.earliest else 'the lowest peak of KV'} of {int(room.sum())} with room, "
            f"of {options.count()}; about {bucket * self.bucket_s:g} s left of its run",
            call,
            state,
            demand,
            options,
            options.own_s if self.earliest else peak,
            now_s,
            among=room,
            priority=as_priority(bucket * _PRIORITIES + start_s),
            verdict=lambda option: f"KV would peak at {peak.item(option):.1%}",
        )

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """The least remaining latency first, in a bucket the earliest run."""
        return self._bucket(call, state) * _RANK_S + state.runs.of(call).first_seen_s - (state.epoch_s or 0.0)

    def _bucket(self, call: Call, state: ClusterState) -> int:
        arrived = call.arrived
        own_s = state.alone.seconds(arrived.model, arrived.prompt_tokens, call.forecast().p50_tokens)
        return int(min((own_s + max(arrived.downstream_s, 0.0)) / self.bucket_s, 1e9))

    def _peak(self, options: Options, demand: Demand) -> Floats:
        """Highest predicted share of KV in use while the call is there, per instance."""
        pool, terms = options.pool, options.terms
        share = np.arange(self.slots + 1)[:, None] / self.slots
        passed_s = share * terms.decode_s
        left = np.maximum(1.0 - passed_s / np.maximum(2.0 * pool.mean_remaining_s, 1e-9), 0.0)
        grown = pool.batch * passed_s / terms.step_s
        others = left * (pool.kv_used + grown)
        used: Floats = others + demand.context_tokens + share * demand.output_tokens
        peak: Floats = used.max(axis=0) / pool.kv_capacity
        return peak


POLICY = Kairos
