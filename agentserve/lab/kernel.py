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

    def at(self, at_s: float, act: Act, *args: Any) -> None:
        """Have `act(*args)` done at `at_s`, or now if that is past."""
        heappush(self._heap, (max(at_s, self.now_s), next(self._order), act, args))

    def after(self, delay_s: float, act: Act, *args: Any) -> None:
        """Have `act(*args)` done in so many seconds."""
        self.at(self.now_s + delay_s, act, *args)

    def run(self, is_done: Callable[[], bool], until_s: float) -> None:
        """Do what is due, in order, until `is_done` or nothing is left; RuntimeError past `until_s`."""
        heap = self._heap
        while heap and not is_done():
            at_s, _, act, args = heappop(heap)
            if at_s > until_s:
                raise RuntimeError(f"the simulation has not ended by {until_s:g} s of virtual time")
            self.now_s = at_s
            self.events += 1
            act(*args)
