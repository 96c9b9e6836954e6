"""Has a stop string come, and how much text is safe to pass on? A matcher over text that arrives in pieces."""


class StopMatcher:
    """Finds the earliest stop string in a text that grows; it does not see where pieces or engines begin.

    Our own, because an engine that takes over in mid-text does not know the text before the cut.
    """

    __slots__ = ("_stops", "_tail")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._tail = ""

    def __bool__(self) -> bool:
        return bool(self._stops)

    @property
    def held(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return len(self._tail)

    def feed(self, text: str, *, armed: bool = True) -> tuple[int, int] | None:
        """Take the next piece; if a stop string ends in it, return where it begins and ends.

        Both are relative to the begin of this piece, so a begin may be negative: that much was held before. `armed`
        False: the text counts as context only (min_tokens is not reached yet), as in vLLM.
        """
        joined = self._tail + text
        before = len(self._tail)
        found = self._earliest(joined, before) if armed else None
        if found is not None:
            return found[0] - before, found[1] - before
        self._tail = self._possible_beginning(joined)
        return None

    def _earliest(self, joined: str, before: int) -> tuple[int, int] | None:
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = joined.find(stop, max(0, before - len(stop) + 1))
            if at >= 0 and (best is None or (at + len(stop), at) < (best[1], best[0])):
                best = at, at + len(stop)
        return best

    def _possible_beginning(self, joined: str) -> str:
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(joined)), longest, -1):
                if stop.startswith(joined[-size:]):
                    longest = size
                    break
        return joined[-longest:] if longest else ""
