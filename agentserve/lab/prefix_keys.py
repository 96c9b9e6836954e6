"""Which KV blocks do a plan's prompt and answer fill? One key per block, equal for equal prefixes, without any text.

A trace names its blocks by ranges of ids. Along a range keys are consecutive integers from a base that hashes all that
comes before, so they are made in C however long the prompt is; a key never depends on how a range was cut.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentserve.lab.plans import RunPlan, StepPlan

_CHARS_PER_TOKEN: Final = 4
_MASK: Final = 2**61 - 1


def prompt_keys(plan: RunPlan, step: StepPlan, block_tokens: int) -> tuple[int, ...]:
    """Keys of the full blocks of a prompt that the trace names; what is beyond them is text of its own."""
    if step.prompt_text is not None:
        return _text_keys(step.prompt_text, step.prompt_tokens, block_tokens)
    if not step.blocks:
        return ()
    named = sum(length for _, length in step.blocks)
    count = int(min(step.prompt_tokens, named * step.block_tokens) // block_tokens)
    if not count:
        return ()
    space = step.block_space or plan.session_id
    # Blocks longer than the engine's are cut into parts, so that every key stands for text of its own.
    parts = max(1, ceil(step.block_tokens / block_tokens))
    blocks = step.blocks if parts == 1 else [(first * parts, length * parts) for first, length in step.blocks]
    part_tokens = step.block_tokens / parts
    if part_tokens == block_tokens:
        return _aligned(space, blocks, count)
    ends = _ends(block_tokens / part_tokens, 1 << count.bit_length())[:count]
    keys = np.empty(count, dtype=np.int64)
    at, done, key, following = 0, 0, _seed(space), None
    for first, length in blocks:
        base = key if first == following else hash((key, first)) & _MASK
        upto = int(np.searchsorted(ends, at + length, side="right"))
        keys[done:upto] = base + (ends[done:upto] - at)
        key, at, done, following = base + length, at + length, upto, first + length
        if done == count:
            break
    return tuple(keys[:done].tolist())


def answer_keys(request_id: str, prompt_blocks: int, tokens: int, block_tokens: int) -> range:
    """Keys of the blocks after the named ones, for prompt and answer together of `tokens`: nobody else has them."""
    base = _seed(request_id)
    return range(base, base + max(0, tokens // block_tokens - prompt_blocks))


def coarse(keys: Sequence[int], block_tokens: int, coarse_tokens: int) -> tuple[int, ...]:
    """Every n-th key: the same prefixes named in coarser blocks, a multiple of `block_tokens` long."""
    step = max(1, coarse_tokens // block_tokens)
    return tuple(keys[step - 1 :: step])


@lru_cache(maxsize=64)
def _ends(parts: float, count: int) -> NDArray[np.int64]:
    """How many parts of the trace's blocks lie, in whole or in part, in so many of the engine's first blocks."""
    ends: NDArray[np.int64] = np.ceil(np.arange(1, count + 1) * parts - 1e-9).astype(np.int64)
    return ends


def _aligned(space: str, blocks: Sequence[tuple[int, int]], count: int) -> tuple[int, ...]:
    keys: list[int] = []
    key, following = _seed(space), None
    for first, length in blocks:
        base = key if first == following else hash((key, first)) & _MASK
        key, following = base + length, first + length
        keys.extend(range(base + 1, key + 1))
        if len(keys) >= count:
            break
    return tuple(keys[:count])


def _text_keys(text: str, prompt_tokens: int, block_tokens: int) -> tuple[int, ...]:
    chars = block_tokens * _CHARS_PER_TOKEN
    key, keys = 0, []
    for index in range(min(ceil(len(text) / _CHARS_PER_TOKEN), prompt_tokens) // block_tokens):
        key = hash((key, _seed(text[index * chars : (index + 1) * chars]))) & _MASK
        keys.append(key)
    return tuple(keys)


@lru_cache(maxsize=4096)
def _seed(text: str) -> int:
    """The same in every process, unlike the hash of a string."""
    return hash(tuple(text.encode())) & _MASK
