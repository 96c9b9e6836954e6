"""Which instance holds how much of a prompt's prefix in its KV cache? An index of chained block hashes.

`hash → bitmask of instances` answers for all instances at once: an instance that holds a block holds every block before
it, so masks shrink along the chain, and the depths at which they change are found by bisection. Each instance forgets
its least recently used blocks, deepest first, beyond what its KV cache can hold; what engines report as cached tokens
corrects that size and the trust put in the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

_EVICT_TO = 0.8
_FEW_BITS = 16
_DEPTH_LIMIT = 65536
"""Blocks of one prompt that are indexed."""


@dataclass(slots=True)
class _Cache:
    bit: int
    capacity_tokens: float
    block_tokens: int = 256
    share: float = 1.0
    """Share of the KV cache that prefixes really get, learned from reports."""
    recency: dict[int, int] = field(default_factory=dict)


class PrefixIndex:
    """Prefix blocks of the instances of one model."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._caches: dict[str, _Cache] = {}
        self._clock = count(1)
        self._width = 8
        self._everyone = 0

    def add_instance(self, instance_id: str, capacity_tokens: float) -> int:
        """Start to index an instance; returns its bit, which `depths` uses as position."""
        used = {cache.bit for cache in self._caches.values()}
        bit = next(i for i in range(len(used) + 1) if i not in used)
        self._width = max(self._width, bit // 8 + 1)
        self._caches[instance_id] = _Cache(bit, capacity_tokens)
        self._everyone |= 1 << bit
        return bit

    def drop_instance(self, instance_id: str) -> None:
        """Forget an instance and all it held."""
        cache = self._caches.pop(instance_id)
        self._everyone &= ~(1 << cache.bit)
        self._clear(cache, cache.recency)

    def depths(
        self, hashes: Sequence[int], block_tokens: float = 1.0, most: float = float("inf")
    ) -> NDArray[np.float64]:
        """How many leading blocks of `hashes` each instance holds, by bit; meaningless at bits of no instance.

        In units of `block_tokens`, at most `most`: both per depth found (a few), not per instance.
        """
        found = np.zeros(self._width * 8, dtype=np.float64)
        get = self._masks.get
        start, end = 0, min(len(hashes), _DEPTH_LIMIT)
        mask = get(hashes[0], 0) if end else 0
        while mask:
            # hashes[start:low] all have `mask`; look for the first block held by fewer instances.
            low, high = start, end
            while high - low > 1:
                middle = (low + high) // 2
                if get(hashes[middle], 0) == mask:
                    low = middle
                else:
                    high = middle
            longer = mask & get(hashes[high], 0) if high < end else 0
            # Each instance is written once, at the depth at which it leaves the chain; all of them at one stroke.
            self._mark(found, mask if mask == self._everyone else mask ^ longer, min(high * block_tokens, most))
            start, mask = high, longer
        return found

    def insert(self, instance_id: str, hashes: Sequence[int], block_tokens: int) -> float:
        """Note that an instance holds (or is about to compute) a prefix; returns the tokens it now holds in all."""
        cache = self._caches[instance_id]
        hashes = hashes[:_DEPTH_LIMIT]
        cache.block_tokens = block_tokens
        bit = 1 << cache.bit
        masks, recency = self._masks, cache.recency
        known = len(recency)
        recency.update(dict.fromkeys(hashes, next(self._clock)))
        for block in islice(reversed(recency), len(recency) - known):  # the new ones are the dict's last
            held = masks.get(block)
            masks[block] = bit if held is None else held | bit
        limit = cache.capacity_tokens * cache.share / block_tokens
        if len(recency) > limit:
            self._evict(cache, int(limit * _EVICT_TO))
        return float(len(recency) * block_tokens)

    def correct(self, instance_id: str, expected_tokens: float, cached_tokens: float) -> None:
        """Learn from an engine's own count: fewer than expected means that it keeps fewer blocks than assumed."""
        cache = self._caches[instance_id]
        if cached_tokens < expected_tokens - cache.block_tokens:
            cache.share = max(0.05, cache.share * 0.9)
        elif expected_tokens > 0:
            cache.share = min(1.0, cache.share * 1.02)

    def blocks(self) -> int:
        """Blocks indexed, over all instances; the index's memory is proportional to it."""
        return sum(len(cache.recency) for cache in self._caches.values())

    def holds_only_known(self) -> bool:
        """Whether masks and per-instance records agree (an invariant)."""
        counted = sum(mask.bit_count() for mask in self._masks.values())
        return counted == self.blocks() and all(self._masks.values())

    def _evict(self, cache: _Cache, keep: int) -> None:
        # A block entered the dict after the blocks before it, so that reversed, of equal recency the deepest is first.
        by_age = list(reversed(cache.recency))
        by_age.sort(key=cache.recency.__getitem__)
        oldest = by_age[: max(len(by_age) - keep, 0)]
        self._clear(cache, oldest)
        for block in oldest:
            del cache.recency[block]

    def _clear(self, cache: _Cache, blocks: Sequence[int] | dict[int, int]) -> None:
        keep = ~(1 << cache.bit)
        for block in blocks:
            left = self._masks[block] & keep
            if left:
                self._masks[block] = left
            else:
                del self._masks[block]

    def _mark(self, found: NDArray[np.float64], mask: int, depth: float) -> None:
        """Write `depth` at the mask's bits: one by one if they are few, else by unpacking all."""
        if mask == self._everyone:
            found.fill(depth)
            return
        if mask.bit_count() > _FEW_BITS:
            packed = np.frombuffer(mask.to_bytes(self._width, "little"), dtype=np.uint8)
            np.putmask(found, np.unpackbits(packed, bitorder="little").view(np.bool_), depth)
            return
        while mask:
            highest = mask.bit_length() - 1
            found[highest] = depth
            mask ^= 1 << highest
