"""What would llm-d's latency scorer do with its default strategy, `least`? The least headroom that is not negative.

    headroom = SLO · buffer - predicted latency

In order: keep the instances that hold nearly the whole prompt, if any (gate); of those with headroom the one closest
to its SLO; with `explore` chance one without headroom instead; with none, an idle instance, else the least violation.
S: strategy, weights 0.8 and 0.2 of TTFT and TPOT (normalised over the tier), gates 0.99 before and 0.80 within the
tier, the gate's penalty of 5 s of TTFT, exploration 1 %. I: a run has one deadline. By default both latencies are
judged in one, as predicted finish against the deadline; `ttft_share` > 0 divides the time left into a TTFT and a TPOT
objective. S: without objectives the predicted latency alone decides. Its weighted draws are replaced by the best
weight.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.estimate import Bools, Floats
from scheduler.latency import Demand
from scheduler.placement import Options, Placement
from scheduler.ranking import at_decode, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmdLeast:
    """Latency headroom, least first, behind gates of prefix affinity."""

    name = "llmd_least"

    ttft_share: float = 0.0
    """Part of the time left that is the objective of the first token; 0: one objective for the whole call."""
    ttft_weight: float = 0.8
    tpot_weight: float = 0.2
    buffer: float = 1.0
    """The objective is taken to be so many times the time left."""
    explore: float = 0.01
    gate: float = 0.99
    """Cached share of the prompt from which instances are kept to themselves, before headroom is looked at."""
    tier_gate: float = 0.8
    """The same among those with headroom, or among those without."""
    gate_skip: float = 0.01
    """Chance that a gate is passed over."""
    gate_penalty_s: float = 5.0
    """A gate is passed over if it costs so much more time to the first token."""

    def __post_init__(self) -> None:
        unit = (0.0, 1.0)
        check_bounds(self, ttft_share=(0.0, 0.99), ttft_weight=(0.0, 1e3), tpot_weight=(0.0, 1e3), buffer=(0.01, 1e3))
        check_bounds(self, explore=unit, gate=(0.0, 10.0), tier_gate=(0.0, 10.0), gate_skip=unit)

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The least headroom that is not negative, of those behind the gates."""
        demand, options = offers(call, state, now_s)
        if not options.allowed.any():
            return None
        among = self._gated(options, demand, options.allowed, self.gate, state)
        if call.target_deadline_s is None:
            price, rule = options.own_s, "no deadline: least predicted latency"
        else:
            ttft_s, tpot_s = self._headrooms(options, demand, (call.target_deadline_s - now_s) * self.buffer)
            has_headroom: Bools = (ttft_s >= 0.0) & (tpot_s >= 0.0)
            among, rule = self._tier(among, has_headroom, state)
            among = self._gated(options, demand, among, self.tier_gate, state)
            if has_headroom[among].all():
                price = self._blend(ttft_s, tpot_s, among)
            else:
                among, rule = _idle_first(options, among, rule)
                price = self._blend(np.maximum(-ttft_s, 0.0), np.maximum(-tpot_s, 0.0), among)
        return take(
            self.name,
            f"{rule}, of {options.count()}",
            call,
            state,
            demand,
            options,
            price,
            now_s,
            among=among,
            verdict=lambda option: (
                f"finish in {options.own_s.item(option):.3f} s" + ("" if among[option] else ", not in the tier or gate")
            ),
        )

    def _headrooms(self, options: Options, demand: Demand, left_s: float) -> tuple[Floats, Floats]:
        if not self.ttft_share:
            return left_s - options.own_s, np.zeros(len(options.own_s))
        per_token_s = (1.0 - self.ttft_share) * left_s / demand.output_tokens
        return self.ttft_share * left_s - options.ready_s, per_token_s - options.step_s

    def _gated(self, options: Options, demand: Demand, among: Bools, share: float, state: ClusterState) -> Bools:
        """Those of `among` that hold at least `share` of the prompt, if that is worth it."""
        most = max(demand.context_tokens - 1, 1)  # the last token is never cached
        sticky: Bools = among & (options.cached >= share * most)
        if not sticky.any() or (self.gate_skip and state.random.random() < self.gate_skip):
            return among
        ready_s = options.ready_s
        return among if ready_s[sticky].min() - ready_s[among].min() > self.gate_penalty_s else sticky

    def _tier(self, among: Bools, has_headroom: Bools, state: ClusterState) -> tuple[Bools, str]:
        positive, negative = among & has_headroom, among & ~has_headroom
        if not positive.any():
            return negative, "no headroom anywhere: the least violation"
        if self.explore and negative.any() and state.random.random() < self.explore:
            return negative, "exploring one without headroom"
        return positive, f"the least headroom of {int(positive.sum())} that have some"

    def _blend(self, ttft_s: Floats, tpot_s: Floats, among: Bools) -> Floats:
        return self.ttft_weight * _normal(ttft_s, among) + self.tpot_weight * _normal(tpot_s, among)


def _normal(values: Floats, among: Bools) -> Floats:
    """Scaled so that `among` spans 0 to 1."""
    low, high = float(values[among].min()), float(values[among].max())
    return (values - low) / max(high - low, 1e-12)


def _idle_first(options: Options, among: Bools, rule: str) -> tuple[Bools, str]:
    idle: Bools = among & (at_decode(options, options.pool.batch) == 0.0)
    return (idle, f"{rule}, an idle one first") if idle.any() else (among, rule)


POLICY = LlmdLeast
