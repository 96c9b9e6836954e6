"""Which KV blocks are free, in use, or kept for their prefix? A paged cache with LRU eviction of free blocks."""

from collections import OrderedDict
from collections.abc import Sequence


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
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            self._forget(block)
            self._users[block] = 1
            blocks.append(block)
        return blocks

    def match(self, keys: Sequence[int], limit: int) -> list[int]:
        """The longest run of blocks that hold the first `limit` keys; not taken yet."""
        found = []
        for index in range(min(limit, len(keys))):
            block = self._block_of.get(keys[index])
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` are free, so that sharing them shrinks `free`."""
        users = self._users
        return sum(1 for block in blocks if not users[block])

    def share(self, blocks: Sequence[int]) -> None:
        """Become a user of blocks found by `match`."""
        for block in blocks:
            if not self._users[block]:
                del self._free[block]
            self._users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using `blocks`, given in sequence order: a sequence's last block is evicted before its first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None
                if self._key_of[block] is None:
                    self._free.move_to_end(block, last=False)

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
