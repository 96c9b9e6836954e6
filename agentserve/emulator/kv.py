"""Which KV blocks are free, in use, or kept for their prefix? A paged cache with LRU eviction of free blocks."""

from collections import OrderedDict
from collections.abc import Sequence

_MATCH_STEP = 128
"""Keys looked up at a stroke."""


class BlockPool:
    """`total` blocks. A block is in use while its count of users is above zero; free ones keep their content.

    A full block is found by its key (`tokens.block_keys`) until it is given to someone else; the free block that was
    released first is taken first. Callers release what they allocate or share, exactly once.
    """

    __slots__ = ("_block_of", "_free", "_key_of", "_users", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._users = [0] * total
        self._key_of: list[int | None] = [None] * total
        self._block_of: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self.total - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, forgetting what they held; the caller has checked `free`."""
        blocks = []
        users, take, key_of = self._users, self._free.popitem, self._key_of
        for _ in range(count):
            block = take(last=False)[0]
            if key_of[block] is not None:
                self._forget(block)
            users[block] = 1
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
        """How many of `blocks` are free, so that sharing them shrinks `free`."""
        users = self._users
        return sum(1 for block in blocks if not users[block])

    def share(self, blocks: Sequence[int]) -> None:
        """Become a user of blocks found by `match`."""
        users, free = self._users, self._free
        for block in blocks:
            if not users[block]:
                del free[block]
            users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using `blocks`, given in sequence order: a sequence's last block is evicted before its first."""
        users, free, key_of = self._users, self._free, self._key_of
        for block in reversed(blocks):
            users[block] -= 1
            if not users[block]:
                free[block] = None
                if key_of[block] is None:
                    free.move_to_end(block, last=False)

    def remember(self, block: int, key: int) -> None:
        """Let a full block be found by `key`, unless another already holds the same."""
        if self._key_of[block] is None and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is free or used, and every key points to the block that has it."""
        for block, users in enumerate(self._users):
            if users < 0 or (users == 0) != (block in self._free):
                raise AssertionError(
                    f"block {block} has {users} users and is {'' if block in self._free else 'not '}free"
                )
        for key, block in self._block_of.items():
            if self._key_of[block] != key:
                raise AssertionError(f"key {key} points to block {block}, which holds {self._key_of[block]}")

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
