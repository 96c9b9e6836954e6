"""What if a call goes where the longest part of its prompt is cached, unless that instance is overloaded?

An instance is allowed while

    load ≤ cap · (its share of the load of all) + slack · (what one call adds)

Of the allowed ones the call goes to the one that holds the longest prefix, of equals to the least loaded; with too
short a prefix everywhere, to the least loaded. The cap is that of consistent hashing with bounded loads (Mirrokni et
al. 2018); SGLang's and llm-d's routers follow prefixes within a limit of imbalance too. S: the rule. I: its values, how
load is measured, that shares may follow speed, and the slack, which keeps a quiet cluster from giving up its caches for
one call more or less. Of separate prefill and decode instances, prefix and cap are the prefill instance's, and decode
goes to the least loaded.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.call import Call
from scheduler.config import check_bounds, check_choice
from scheduler.estimate import Floats, Pool
from scheduler.latency import Demand, Terms
from scheduler.placement import Options, Placement
from scheduler.ranking import at_decode, at_prefill, offers, take
from scheduler.state import ClusterState

_MEASURES = ("calls", "tokens", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAffinity:
    """The longest cached prefix among the instances that are not overloaded."""

    name = "prefix_affinity"

    cap: float = 1.25
    """Load allowed, against an even share."""
    slack: float = 2.0
    """And as many calls more."""
    least_share: float = 0.5
    """A cached prefix counts from this share of the prompt on."""
    load: str = "calls"
    """`calls` outstanding, `tokens` to prefill and to put out, or `seconds` that all calls there need, in sum."""
    by_speed: bool = True
    """An even share is one by capability; `seconds` are by speed of themselves."""

    def __post_init__(self) -> None:
        check_bounds(self, cap=(0.0, 1e6), slack=(0.0, 1e6), least_share=(0.0, 1.0))
        check_choice(self, load=_MEASURES)

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The longest prefix under the cap; else the least loaded under it."""
        demand, options = offers(call, state, now_s)
        if not options.allowed.any():
            return None
        pool = options.pool
        prefill, decode, one = self._loads(pool, options.terms, demand)
        load = at_prefill(options, prefill)
        under = options.allowed & (load <= self._limit(options, load) + self.slack * at_prefill(options, one))
        if not under.any():
            under = options.allowed
        longest = float(options.cached[under].max())
        if longest > 0.0 and longest >= self.least_share * demand.context_tokens:
            among, rule = under & (options.cached == longest), f"the longest cached prefix, {longest:.0f} tokens"
        else:
            among, rule = under, "no prefix that counts: the least loaded"
        weight = pool.relative_capability if self._weighs else 1.0
        price = at_prefill(options, prefill / weight)
        if options.decode_rows:
            price = price / _level(price) + at_decode(options, decode / weight) / _level(decode)
        return take(
            self.name,
            f"{rule}, of {int(under.sum())} under the load cap, of {options.count()}",
            call,
            state,
            demand,
            options,
            price,
            now_s,
            among=among,
            verdict=lambda option: (
                f"{options.cached.item(option):.0f} tokens cached, load {load.item(option):.1f}"
                + ("" if under[option] else ", over the load cap")
            ),
        )

    @property
    def _weighs(self) -> bool:
        return self.by_speed and self.load != "seconds"

    def _loads(self, pool: Pool, terms: Terms, demand: Demand) -> tuple[Floats, Floats, Floats]:
        """Load of an instance that prefills and of one that only decodes, and what this call would add to the first."""
        if self.load == "calls":
            return np.where(pool.can_decode, pool.batch, pool.queued), pool.batch, np.ones(len(pool.ids))
        if self.load == "tokens":
            one = np.full(len(pool.ids), demand.context_tokens + demand.output_tokens)
            return pool.queued_tokens + pool.remaining, pool.remaining, one
        decode_s = pool.mean_remaining_s * pool.batch
        return pool.queued_work_s + decode_s, decode_s, terms.prefill_s + terms.decode_s

    def _limit(self, options: Options, load: Floats) -> Floats:
        """The cap times an even share, per placement."""
        allowed = options.allowed
        if not self._weighs:
            return np.full(len(load), self.cap * float(load[allowed].mean()))
        speed = at_prefill(options, options.pool.relative_capability)
        share: Floats = speed * (self.cap * float(load[allowed].sum()) / float(speed[allowed].sum()))
        return share


def _level(load: Floats) -> float:
    return max(float(load.mean()), 1e-9)


POLICY = PrefixAffinity
