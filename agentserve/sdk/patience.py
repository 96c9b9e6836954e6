"""How long, and how often, is a gateway tried that is away?"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a gateway that is away, trying again after 0.05, 0.1, 0.2 … seconds up to `cap_s`.

    `unseen_s` holds for a gateway that has not answered this process yet: it may simply not be there.
    """

    total_s: float = 30.0
    unseen_s: float = 2.0
    first_s: float = 0.05
    cap_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    asleep: Callable[[float], Awaitable[None]] = anyio.sleep

    def begin(self, *, seen: bool = True) -> "Wait":
        """Start waiting now."""
        return Wait(self, self.clock() + (self.total_s if seen else self.unseen_s))


@dataclass(slots=True)
class Wait:
    """One spell of waiting; `next_s` is how long to sleep before the next attempt."""

    patience: Patience
    until_s: float
    next_s: float = 0.0

    def longer(self) -> bool:
        """Whether another attempt is due; sets `next_s`."""
        left_s = self.until_s - self.patience.clock()
        self.next_s = min(max(2 * self.next_s, self.patience.first_s), self.patience.cap_s, left_s)
        return left_s > 0
