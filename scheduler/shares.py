"""Which tenant was served least lately, for its weight, and so goes first? Service received, fading with time.

As in VTC (Sheng et al., arXiv 2401.00588) a tenant is charged for the tokens of its calls, an output token twice as
much as a computed prompt token, over its weight. VTC's counters only grow and are lifted when a tenant comes back; here
they fade (`memory_s`), which forgets both the debt and the credit of long ago. It is counted where something is
computed: new prompt tokens at the dispatch, output tokens as they come, repeated work again.

It orders the waiting calls of several tenants, and says what a run's chance is worth: less of a tenant that had more
than its share, so that its new runs wait first, and its calls keep away from where they would harm others' runs. Where
nothing is at stake anywhere, it changes nothing.
"""

from collections.abc import Iterable
from math import exp

from scheduler.call import Call
from scheduler.config import FairnessConfig

PROMPT_COST = 1.0
OUTPUT_COST = 2.0
_MAX_KNOWN = 4096


class _Share:
    """What one tenant was served, over its weight, as of `at_s`; `live`: its calls not yet ended."""

    __slots__ = ("at_s", "live", "served")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.live = 0
        self.served = 0.0


class Shares:
    """Service lately received by each tenant."""

    def __init__(self, config: FairnessConfig) -> None:
        self._config = config
        self._shares: dict[str, _Share] = {}
        self._live: dict[str, None] = {}

    def begin(self, call: Call, now_s: float) -> None:
        """A call came."""
        name = call.arrived.tenant
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = _Share(now_s)
            if len(self._shares) > _MAX_KNOWN:
                idle = next((other for other, one in self._shares.items() if not one.live and other != name), None)
                if idle is not None:
                    del self._shares[idle]
        share.live += 1
        self._live[name] = None

    def end(self, call: Call) -> None:
        """A call ended."""
        share = self._shares[call.arrived.tenant]
        share.live -= 1
        if not share.live:
            del self._live[call.arrived.tenant]

    def charge(self, call: Call, prompt_tokens: float, output_tokens: float, now_s: float) -> None:
        """So much was, or is about to be, computed for a call."""
        share = self._shares[call.arrived.tenant]
        cost = (PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens) / call.arrived.tenant_weight
        share.served = self._faded(share, now_s) + cost
        share.at_s = now_s

    @property
    def order_calls(self) -> bool:
        """Whether tenants take turns."""
        return self._config.strength > 0

    def in_turn(self, tenants: Iterable[str], now_s: float) -> list[str]:
        """Tenants, the one served least lately first; of equals the smaller name."""
        return sorted(tenants, key=lambda name: (self._faded(self._shares[name], now_s), name))

    def worth(self, call: Call, now_s: float) -> float:
        """By how much its run's chance weighs more than others': the mean service of tenants with calls over its own.

        To the power of `strength`, within a factor of `most_worth`; exactly 1 where its tenant is alone.
        """
        if len(self._live) < 2 or not self.order_calls:
            return 1.0
        served = {name: self._faded(self._shares[name], now_s) for name in self._live}
        mean = sum(served.values()) / len(served)
        if mean <= 0.0:
            return 1.0
        most = self._config.most_worth
        ratio = mean / max(served[call.arrived.tenant], mean / 1e6)
        return float(min(max(ratio**self._config.strength, 1.0 / most), most))

    def live_calls(self) -> dict[str, int]:
        """Calls not yet ended, by tenant."""
        return {name: self._shares[name].live for name in self._live}

    def _faded(self, share: _Share, now_s: float) -> float:
        age_s = max(0.0, now_s - share.at_s)  # a clock that was set back makes no service more
        return share.served * exp(-age_s / self._config.memory_s) if share.served else 0.0
