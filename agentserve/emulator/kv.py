"""Which KV blocks are free, in use, or kept for their prefix? A paged cache with LRU eviction of free blocks."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat

_MATCH_STEP = 128
"""Keys looked up at a stroke."""


class BlockPool:
    """`total` blocks. One is in use until each `allocate` and `share` of it was released; free ones keep their content.

    A full block is found by its key (`tokens.block_keys`) until it is given to someone else. Free blocks without a key
    are taken first, then the one that was released first. Callers release what they allocate or share, exactly once.
    """

    __slots__ = ("_blank", "_block_of", "_kept", "_key_of", "_shared", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._blank = list(range(total - 1, -1, -1))
        """Free blocks without a key; the last one is taken first."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Free blocks with a key, in the order of their release."""
        self._shared: dict[int, int] = {}
        """Users of a block beyond the first; most blocks have none."""
        self._key_of: list[int | None] = [None] * total
        self._block_of: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._blank) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self.total - len(self._blank) - len(self._kept)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, forgetting what they held; the caller has checked `free`."""
        blank = self._blank
        blocks = blank[: -count - 1 : -1]
        del blank[max(len(blank) - count, 0) :]
        if len(blocks) < count:
            take, key_of, block_of = self._kept.popitem, self._key_of, self._block_of
            for _ in repeat(None, count - len(blocks)):
                block, _ = take(last=False)
                del block_of[key_of[block]]  # type: ignore[arg-type]  # kept for its key
                key_of[block] = None
                blocks.append(block)
        return blocks

    def match(self, keys: Sequence[int], limit: int) -> list[int]:
        """The longest run of blocks that hold the first `limit` keys; not taken yet."""
        get = self._block_of.get
        found: list[int] = []
        for start in range(0, min(limit, len(keys)), _MATCH_STEP):
            part = list(map(get, keys[start : min(start + _MATCH_STEP, limit)]))
            if None in part:
                found += part[: part.index(None)]  # type: ignore[arg-type]  # none of those before it
                break
            found += part  # type: ignore[arg-type]  # nor any here
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of `blocks`, found by `match`, are free, so that sharing them shrinks `free`."""
        return sum(map(self._kept.__contains__, blocks))

    def share(self, blocks: Sequence[int]) -> None:
        """Become a user of blocks found by `match`."""
        kept, shared = self._kept, self._shared
        for block in blocks:
            if block in kept:
                del kept[block]
            else:
                shared[block] = shared.get(block, 0) + 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using `blocks`, given in sequence order: a sequence's last block is evicted before its first."""
        kept, shared, key_of, blank = self._kept, self._shared, self._key_of, self._blank
        for block in reversed(blocks):
            if block in shared:
                if shared[block] == 1:
                    del shared[block]
                else:
                    shared[block] -= 1
            elif key_of[block] is None:
                blank.append(block)
            else:
                kept[block] = None

    def remember(self, blocks: Sequence[int], keys: Sequence[int], start: int, end: int) -> None:
        """Let the full blocks from `start` to `end` be found by their keys, but for keys that another block holds."""
        key_of, block_of = self._key_of, self._block_of
        for block, key in zip(blocks[start:end], keys[start:end], strict=True):
            if key_of[block] is None and key not in block_of:
                key_of[block] = key
                block_of[key] = block

    def check_integrity(self) -> None:
        """Raise AssertionError unless free and shared blocks are told apart and every key points to its block."""
        free = {*self._blank, *self._kept}
        if len(free) != self.free:
            raise AssertionError(f"{self.free - len(free)} blocks were released twice")
        if both := free.intersection(self._shared):
            raise AssertionError(f"blocks {sorted(both)} are shared and free")
        for block in self._blank:
            if self._key_of[block] is not None:
                raise AssertionError(f"block {block} has a key, but is free as one without")
        for block, key in enumerate(self._key_of):
            if key is not None and self._block_of.get(key) != block:
                raise AssertionError(f"block {block} holds key {key}, which points to {self._block_of.get(key)}")
        named = sum(key is not None for key in self._key_of)
        if named != len(self._block_of) or not all(self._key_of[block] is not None for block in self._kept):
            raise AssertionError(f"{len(self._block_of)} keys, but {named} blocks have one")
