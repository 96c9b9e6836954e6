"""Which ordered pairs of instances lately failed to pass KV, though what they announced said that they could?

A pair is noted when its decode leg broke before its first token while its prefill had ended; it counts as broken until
`pair_retry_s` has passed, a first token came over it, or one of the two left.
"""


class BrokenPairs:
    """Ordered (prefill, decode) pairs by instance id, each until a time on the driver's clock."""

    def __init__(self) -> None:
        self._until_s: dict[tuple[str, str], float] = {}

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return pair in self._until_s

    def __bool__(self) -> bool:
        return bool(self._until_s)

    def note(self, prefill: str, decode: str, until_s: float) -> None:
        """KV did not pass."""
        self._until_s[prefill, decode] = until_s

    def clear(self, prefill: str, decode: str) -> None:
        """KV passed."""
        self._until_s.pop((prefill, decode), None)

    def forget(self, instance_id: str) -> None:
        """An instance left; one that comes back under its name is another."""
        self._until_s = {pair: until_s for pair, until_s in self._until_s.items() if instance_id not in pair}

    def expire(self, now_s: float) -> None:
        """Give those another chance whose time has passed."""
        self._until_s = {pair: until_s for pair, until_s in self._until_s.items() if until_s > now_s}
