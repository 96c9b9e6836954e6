"""What happens next in virtual time? A heap of (time, order of scheduling, act); equal times keep their order."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

Act = Callable[..., None]


class Kernel:
    """Runs acts at their times; `now_s` never goes back."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Act, tuple[Any, ...]]] = []
        self._order = count()
        self._is_stopped = False

    def at(self, at_s: float, act: Act, *args: Any) -> None:
        """Have `act(*args)` done at `at_s`, or now if that is past."""
        now_s = self.now_s
        heappush(self._heap, (at_s if at_s > now_s else now_s, next(self._order), act, args))

    def after(self, delay_s: float, act: Act, *args: Any) -> None:
        """Have `act(*args)` done in so many seconds, at least none."""
        heappush(self._heap, (self.now_s + delay_s, next(self._order), act, args))

    def stop(self) -> None:
        """Do nothing more after the act that runs."""
        self._is_stopped = True

    def run(self, until_s: float) -> None:
        """Do what is due, in order, until somebody stops it or nothing is left; RuntimeError past `until_s`."""
        heap, events = self._heap, 0
        try:
            while heap and not self._is_stopped:
                at_s, _, act, args = heappop(heap)
                if at_s > until_s:
                    raise RuntimeError(f"the simulation has not ended by {until_s:g} s of virtual time")
                self.now_s = at_s
                events += 1
                act(*args)
        finally:
            self.events += events
