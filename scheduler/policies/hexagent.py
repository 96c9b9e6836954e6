"""What would HexAGenT do? Run-level progress orders the calls, and each goes to the pair that ends it first.

    R = ((t - a_w) + Δ) / H_w        the largest first
    (p, d) = argmin wait_p + prefill_p + transfer + wait_d + decode_d

a_w is when the run began, Δ the call's best projected remaining time, H_w the time that the run, as far as it is
revealed, takes alone on the cluster: it grows with each reveal (2605.16637, as reported by readers of the paper).
S: both formulas, decode bound together with prefill, no migration, no prefix reuse, no model of what is not revealed.
I: a call reveals itself when it arrives, its parents are the calls of its run that had ended then; Δ in a queue is the
call's time alone; `prefix`, to give it prefix reuse; on instances that serve both phases p = d, and `splits_mixed`
lets two linked ones share a call too. A pair whose decode instance has KV room for the whole call goes before others.
The order is the engine's priority, as of the dispatch, and under the caps that of calls waiting at the gateway.
"""

from dataclasses import dataclass

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.placement import Placement
from scheduler.policy import Wait
from scheduler.ranking import as_priority, at_decode, offers, take, with_room
from scheduler.state import ClusterState

_PRIORITIES_PER_R = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class HexAgent:
    """Slowdown-ordered queues and pairs by earliest finish."""

    name = "hexagent"

    prefix: bool = False
    """Predictions leave out what is cached."""
    splits_mixed: bool = False
    """Instances that serve both phases may share a call too."""
    batch_cap: int = 0
    """Our calls per decode instance beyond which calls wait at the gateway; 0: none."""
    prefill_cap: int = 0
    """The same for calls whose prefill is not done, per prefill instance."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_cap=(0, 1_000_000), prefill_cap=(0, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The pair with the earliest predicted finish."""
        demand, options = offers(call, state, now_s, splits_mixed=self.splits_mixed, knows_prefix=self.prefix)
        if not options.allowed.any():
            return None
        among = with_room(options, self.batch_cap, self.prefill_cap)
        if not among.any():
            return Wait(f"every pair has {self.batch_cap} calls to decode or {self.prefill_cap} to prefill")
        pool = options.pool
        free = at_decode(options, pool.kv_capacity - pool.kv_used)
        roomy = among & (free >= demand.context_tokens + demand.output_tokens)
        if roomy.any():
            among = roomy
        own_s = options.own_s
        ratio = self._ratio(call, state, float(own_s[among].min()), now_s)
        return take(
            self.name,
            f"the earliest finish of {int(among.sum())} pairs with room, of {options.count()}; R {ratio:.2f}",
            call,
            state,
            demand,
            options,
            own_s,
            now_s,
            among=among,
            priority=as_priority(-ratio * _PRIORITIES_PER_R),
            verdict=lambda option: f"ends {own_s.item(option):.3f} s from now, {free.item(option):.0f} tokens free",
        )

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """The largest R first."""
        arrived = call.arrived
        own_s = state.alone.seconds(arrived.model, arrived.prompt_tokens, call.forecast().p50_tokens)
        return -self._ratio(call, state, own_s, now_s)

    def _ratio(self, call: Call, state: ClusterState, remaining_s: float, now_s: float) -> float:
        """R: how long the run will have taken when the call ends, against what it takes alone."""
        spent_s = now_s - state.runs.of(call).first_seen_s
        return (spent_s + remaining_s) / max(state.runs.alone_s(call), 1e-6)


POLICY = HexAgent
