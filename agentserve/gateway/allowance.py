"""May this tenant make another call now? Rate, calls in flight and tokens, each with a refusal that names it.

Rate and tokens are buckets that fill evenly. A call is let in while the tokens' bucket is not empty, pays for its
prompt at once and for its answer when it ends, so the bucket may run into debt: the next call waits that off.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agentserve.errors import LimitReached
from agentserve.tenants.tenant import Tenant

_MINUTE_S: Final = 60.0
_SOON_S: Final = 1.0
_MAX_KNOWN: Final = 1_000


@dataclass(slots=True)
class _Bucket:
    """Holds at most `most`, gains `per_s`."""

    per_s: float
    most: float
    left: float
    at_s: float

    def fill(self, now_s: float) -> float:
        """What is in it now."""
        self.left = min(self.most, self.left + max(0.0, now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        return self.left

    def wait_s(self, wanted: float) -> float:
        """How long until so much is in it."""
        return max(0.0, (wanted - self.left) / self.per_s)


@dataclass(slots=True)
class _Used:
    """What one tenant uses of its limits."""

    tenant: Tenant
    calls: _Bucket | None
    tokens: _Bucket | None
    in_flight: int = 0


@dataclass(slots=True)
class Ticket:
    """One call that was let in; `leave` when it is over, once or more often."""

    _used: _Used
    _charged: int = 0
    _is_over: bool = field(default=False)

    def charge(self, tokens: int) -> None:
        """The call has used so many tokens so far."""
        if self._used.tokens is not None:
            self._used.tokens.left -= tokens - self._charged
            self._charged = tokens

    def leave(self) -> None:
        """The call is over."""
        if not self._is_over:
            self._is_over = True
            self._used.in_flight -= 1


class Allowances:
    """What every tenant uses, in this process. `clock`: seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, _Used] = {}

    def enter(self, tenant: Tenant) -> Ticket:
        """Let a call in; LimitReached naming the limit and when to come back."""
        used, now_s = self._of(tenant), self._clock()
        most = tenant.concurrent_calls
        if most is not None and used.in_flight >= most:
            raise LimitReached(
                f"tenant {tenant.name}: {most} calls are in flight, its limit (concurrent_calls)",
                "concurrency_limit_exceeded",
                _SOON_S,
            )
        if used.tokens is not None and used.tokens.fill(now_s) <= 0:
            raise LimitReached(
                f"tenant {tenant.name}: its budget of {tenant.tokens_per_minute} tokens per minute is used up",
                "token_budget_exceeded",
                used.tokens.wait_s(1.0),
            )
        if used.calls is not None:
            if used.calls.fill(now_s) < 1:
                raise LimitReached(
                    f"tenant {tenant.name}: more than {tenant.rate_per_s:g} calls per second, its limit (rate_per_s)",
                    "rate_limit_exceeded",
                    used.calls.wait_s(1.0),
                )
            used.calls.left -= 1
        used.in_flight += 1
        return Ticket(used)

    def _of(self, tenant: Tenant) -> _Used:
        used = self._used.get(tenant.name)
        if used is not None and used.tenant is tenant:
            return used
        if used is not None and used.tenant == tenant:
            used.tenant = tenant
            return used
        fresh = _fresh(tenant, self._clock())
        if used is not None:  # its table was changed: full buckets, but what is in flight stays so
            used.tenant, used.calls, used.tokens = tenant, fresh.calls, fresh.tokens
            return used
        if len(self._used) >= _MAX_KNOWN:
            idle = next((name for name, one in self._used.items() if not one.in_flight), None)
            if idle is not None:
                del self._used[idle]
        self._used[tenant.name] = fresh
        return fresh


def _fresh(tenant: Tenant, now_s: float) -> _Used:
    calls = tokens = None
    if tenant.rate_per_s is not None:
        burst = float(tenant.burst or max(1.0, tenant.rate_per_s))
        calls = _Bucket(tenant.rate_per_s, burst, burst, now_s)
    if tenant.tokens_per_minute is not None:
        most = float(tenant.tokens_per_minute)
        tokens = _Bucket(most / _MINUTE_S, most, most, now_s)
    return _Used(tenant, calls, tokens)
