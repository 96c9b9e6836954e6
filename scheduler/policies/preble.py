"""What would Preble do? E2: exploit a cached prefix while it saves more than it leaves to compute, else explore.

    exploit   if new tokens < matched tokens: of the instances that hold the longest match, the least load L
    explore   else: the least L + M + P over all          P: prefill of the missed tokens; M: prefill of what it evicts

L is the predicted work (prefill of missed tokens, decode of the output) sent to an instance within the last three
minutes. When the exploited instance carries at least `imbalance` times the load of the lightest, the call goes to the
lightest, which then holds the prefix too (Srivatsa et al., ICLR 2025).
S: the rules, the three minutes, 1.5. I: `slack_s`, without which an idle instance would draw every call off a cache; M
by tokens beyond the cache's size instead of the evicted nodes' hit rates; each instance's own speed in L, M and P, as
the paper has equal GPUs; the engine's own order (by share of cached prompt, with quotas) is left to the engine.
Of separate prefill and decode instances, the match is the prefill instance's, and L is the sum over both.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import check_bounds
from scheduler.estimate import Floats
from scheduler.placement import Options, Placement
from scheduler.ranking import at_decode, at_prefill, offers, take
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Preble:
    """Exploitation plus exploration over the prefixes that instances hold."""

    name = "preble"

    imbalance: float = 1.5
    """Load of the exploited instance against the lightest one's from which on the call goes to the lightest."""
    slack_s: float = 5.0
    """And by how many seconds of work it must be more."""
    eviction_weight: float = 1.0
    """Price of a second of prefill that evicted prefixes would need, as if all of them were used again."""

    def __post_init__(self) -> None:
        check_bounds(self, imbalance=(1.0, 1e6), slack_s=(0.0, 1e6), eviction_weight=(0.0, 1e3))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """Where the longest match is, if it is longer than the rest of the prompt; else where it costs least."""
        demand, options = offers(call, state, now_s)
        allowed = options.allowed
        if not allowed.any():
            return None
        load_s = _load_s(options, state, now_s)
        matched = float(options.cached[allowed].max())
        is_exploit = demand.context_tokens - matched < matched
        among, price = allowed, load_s
        if is_exploit:
            among = allowed & (options.cached == matched)
            rule = f"exploit: least load of those that hold {matched:.0f} of {demand.context_tokens} tokens"
            least_s, lightest_s = float(load_s[among].min()), float(load_s[allowed].min())
            if least_s > self.slack_s + self.imbalance * lightest_s:
                among = allowed
                rule = f"rebalance: {least_s:.1f} s of load where the prefix is, {lightest_s:.1f} s at the lightest"
        else:
            price = load_s + self._cost_s(options)
            rule = f"explore: least load, prefill and eviction, {matched:.0f} of {demand.context_tokens} tokens known"
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
                f"{options.cached.item(option):.0f} tokens known, cost {price.item(option):.3f} s, "
                f"{load_s.item(option):.3f} s of it load"
            ),
        )

    def _cost_s(self, options: Options) -> Floats:
        """Prefill of what is missed, decode, and prefill of what would be evicted, per placement."""
        pool = options.pool
        evicted_s = np.maximum(pool.cache_excess + options.terms.fresh, 0.0) * pool.p1
        return options.prefill_s + options.decode_s + self.eviction_weight * at_prefill(options, evicted_s)


def _load_s(options: Options, state: ClusterState, now_s: float) -> Floats:
    """Work sent of late per placement: of its instance, or of both."""
    work_s = state.recent.work_s
    load_s = np.array([work_s(name, now_s) for name in options.pool.ids])
    prefill_s = at_prefill(options, load_s)
    return prefill_s + at_decode(options, load_s) if options.decode_rows else prefill_s


POLICY = Preble
