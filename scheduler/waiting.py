"""Which calls wait at the gateway by their policy's wish, and in which order are they asked about?

Ranks are those of the last sorting: the core sorts anew when time or events may have changed them.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from operator import itemgetter

from scheduler.call import Call

_Entry = tuple[float, int, Call]
_RANK = itemgetter(0, 1)


class WaitingRoom:
    """Waiting calls in the order of (rank, arrival); `stale` once ranks should be taken anew."""

    def __init__(self) -> None:
        self._order: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._entries

    def names(self) -> Iterator[str]:
        """Ids of the waiting calls, in the order they came."""
        return iter(self._entries)

    def first(self, count: int) -> list[Call]:
        """The calls to be asked about first."""
        return [call for _, _, call in self._order[:count]]

    def enter(self, call: Call, rank: float) -> None:
        """Let a call wait; one that waits already keeps its place."""
        if call.request_id in self._entries:
            return
        self._came += 1
        entry = (rank, self._came, call)
        self._entries[call.request_id] = entry
        insort(self._order, entry, key=_RANK)

    def leave(self, call: Call) -> None:
        """The call waits no more; nothing happens if it did not."""
        entry = self._entries.pop(call.request_id, None)
        if entry is not None:
            self._order.remove(entry)

    def sort(self, rank: Callable[[Call], float]) -> None:
        """Order the waiting calls by new ranks."""
        self._order = sorted(((rank(call), came, call) for _, came, call in self._order), key=_RANK)
        self._entries = {entry[2].request_id: entry for entry in sorted(self._order, key=itemgetter(1))}
