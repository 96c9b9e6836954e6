"""Which calls wait at the gateway by their policy's wish, and in which order are they asked about?

Each tenant's calls wait in the order of their ranks, which are those of the last sorting: the core sorts anew when time
or events may have changed them. Of several tenants' calls one of each is asked about in turn.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import chain, islice, zip_longest
from operator import itemgetter

from scheduler.call import Call

_Entry = tuple[float, int, Call]
_RANK = itemgetter(0, 1)
Turn = Callable[[Iterable[str]], list[str]]
"""Puts tenants into the order in which their calls are asked about."""


class WaitingRoom:
    """Waiting calls, by tenant in the order of (rank, arrival)."""

    def __init__(self) -> None:
        self._orders: dict[str, list[_Entry]] = {}
        self._entries: dict[str, _Entry] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._entries

    def names(self) -> Iterator[str]:
        """Ids of the waiting calls, in the order they came."""
        return iter(self._entries)

    def first(self, count: int, turn: Turn | None = None) -> list[Call]:
        """The calls to be asked about first: of several tenants one each, as `turn` puts them, then the second ones.

        Without `turn` whose they are does not matter.
        """
        if len(self._orders) == 1:
            (order,) = self._orders.values()
            return [call for _, _, call in order[:count]]
        if turn is None:
            return [entry[2] for entry in islice(merge(*self._orders.values(), key=_RANK), count)]
        orders = [self._orders[tenant] for tenant in turn(self._orders)]
        entries = chain.from_iterable(zip_longest(*orders))
        return [entry[2] for entry in islice((one for one in entries if one is not None), count)]

    def enter(self, call: Call, rank: float) -> None:
        """Let a call wait; one that waits already keeps its place."""
        if call.request_id in self._entries:
            return
        self._came += 1
        entry = (rank, self._came, call)
        self._entries[call.request_id] = entry
        insort(self._orders.setdefault(call.arrived.tenant, []), entry, key=_RANK)

    def leave(self, call: Call) -> None:
        """The call waits no more; nothing happens if it did not."""
        entry = self._entries.pop(call.request_id, None)
        if entry is not None:
            order = self._orders[call.arrived.tenant]
            order.remove(entry)
            if not order:
                del self._orders[call.arrived.tenant]

    def sort(self, rank: Callable[[Call], float]) -> None:
        """Order the waiting calls by new ranks."""
        for tenant, order in self._orders.items():
            self._orders[tenant] = sorted(((rank(call), came, call) for _, came, call in order), key=_RANK)
        entries = [entry for order in self._orders.values() for entry in order]
        self._entries = {entry[2].request_id: entry for entry in sorted(entries, key=itemgetter(1))}
