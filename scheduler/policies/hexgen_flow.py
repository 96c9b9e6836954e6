"""What would HexGen-Flow do? Trade suitability against load at dispatch, and serve the most urgent call first.

    score(g) = α·T(b)/T(g) - (1 - α)·W(g)/W(b)    T: predicted execution; W: outstanding predicted work; b: the first
    budget   = (SLO - spent)·T / (T + predicted time of what the run still has to do)
    urgency  = T - (budget - elapsed)                  the largest first

All urgencies grow alike, so that the order is one by latest start: arrival + budget - T (2505.05286 and public code).
S: all of this, α from a sweep over 0 … 0.5. I: α itself; W(b) counts at least as T(b), so that idle instances compare;
what is still to do is the forecast of the run's workflow; T in the order is that of the call alone on the fastest
instance; `prefix`, whether T knows of cached prefixes. A call without SLO comes `no_slo_s` after its arrival. The
order is the engine's priority and, under `batch_cap`, that of calls waiting at the gateway. For split pairs T and W
are of both.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.placement import Placement
from scheduler.policy import Wait
from scheduler.ranking import as_priority, at_decode, at_prefill, offers, take, with_room
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class HexGenFlow:
    """Workload-balanced dispatch and urgency-ordered queues."""

    name = "hexgen_flow"

    alpha: float = 0.2
    """Weight of suitability against load."""
    prefix: bool = False
    """Predicted execution leaves out what is cached."""
    no_slo_s: float = 3600.0
    """Latest start of a call without SLO, after its arrival."""
    batch_cap: int = 0
    """Our calls per instance beyond which calls wait at the gateway; 0: none."""

    def __post_init__(self) -> None:
        check_bounds(self, alpha=(0.0, 1.0), no_slo_s=(0.0, 1e6), batch_cap=(0, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The best score."""
        demand, options = offers(call, state, now_s, knows_prefix=self.prefix)
        if not options.allowed.any():
            return None
        room = with_room(options, self.batch_cap)
        if not room.any():
            return Wait(f"every instance has {self.batch_cap} calls")
        pool, first = options.pool, int(np.argmax(options.allowed))
        execution_s = options.own_s - options.queue_s
        work_s = at_decode(options, pool.queued_work_s + pool.mean_remaining_s * np.maximum(pool.batch, 1.0))
        if options.prefill_rows:
            work_s = work_s + at_prefill(options, pool.queued_work_s)
        base_s = execution_s.item(first)
        score = self.alpha * base_s / execution_s
        score -= (1.0 - self.alpha) * work_s / max(work_s.item(first), base_s)
        start_s = self.latest_start_s(call, state)
        return take(
            self.name,
            f"the best of suitability and load, of {options.count()}; to start {start_s - now_s:+.3f} s from now",
            call,
            state,
            demand,
            options,
            -score,
            now_s,
            among=room,
            priority=as_priority((start_s - (state.epoch_s or 0.0)) * 100.0),
            verdict=lambda option: (
                f"score {score.item(option):.3f}: execution {execution_s.item(option):.3f} s, "
                f"work {work_s.item(option):.3f} s"
            ),
        )

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """The most urgent first."""
        return self.latest_start_s(call, state)

    def latest_start_s(self, call: Call, state: ClusterState) -> float:
        """Arrival + budget - T: urgency less its common part, the time."""
        deadline_s = call.arrived.run_deadline_s
        if deadline_s is None:
            deadline_s = call.latest_deadline_s
        if deadline_s is None:
            return call.arrived_s + self.no_slo_s
        output_tokens = call.forecast().p50_tokens
        own_s = max(state.alone.seconds(call.arrived.model, call.arrived.prompt_tokens, output_tokens), 1e-9)
        budget_s = (deadline_s - call.arrived_s) * own_s / (own_s + max(call.arrived.downstream_s, 0.0))
        return call.arrived_s + budget_s - own_s


POLICY = HexGenFlow
