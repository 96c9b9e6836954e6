"""Which prompt tokens of a workload can no policy find cached, and how much KV is a call's alone?

Blocks are cached by chains of ids, so equal blocks stand at equal places. Nothing of a run is known before it arrives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentserve.lab.plans import RunPlan, StepPlan

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a call adds, in tokens, and the sums of x1² − x0² over their places, for the quadratic part of a prefill.

    `charged`: computed by somebody within the run's window, charged to this call and to no other. `own`: the part of it
    that only this call itself can have computed, before its first token. `held`: KV that is this call's alone while it
    is in memory; a block that up to n calls may share counts 1/n. `kept`: what an earlier call of the run held and
    nobody else can use in between: it stays in memory through the tool time before this call, or is computed anew.
    """

    charged_tokens: float
    charged_squares: float
    own_tokens: float
    own_squares: float
    held_tokens: float
    kept_tokens: float


def fresh_tokens(plans: Sequence[RunPlan], deadlines_s: Sequence[float]) -> dict[tuple[int, str], Fresh]:
    """By run (its place in the order of arrival; `deadlines_s` ends its window) and step id, what no cache can spare.

    A block is charged to the first run that holds it: nobody could compute it before that run arrived, and when the
    run ends in time, somebody has. So whatever set of runs ends in time, their charges were worked off inside their
    windows, each once.
    """
    widths = np.array([chain_cover(plan.steps) for plan in plans], dtype=np.int64)
    windows = _Windows(np.array([plan.arrival_s for plan in plans]), np.array(deadlines_s, dtype=float), widths)
    found = {(run, step.step_id): _without_blocks(step) for run, plan in enumerate(plans) for step in plan.steps}
    for by_run in _spaces(plans):
        holders = _holders(by_run, windows)
        for run, named in by_run.items():
            found.update(_of_run(run, plans[run].steps, named, holders, windows))
    return found


def ancestors(steps: Sequence[StepPlan]) -> dict[str, int]:
    """Per step a bit mask of the steps, by position, that must end before it starts."""
    position = {step.step_id: index for index, step in enumerate(steps)}
    masks: dict[str, int] = {}
    for step in steps:
        mask = 0
        for parent in step.parents:
            mask |= masks[parent] | (1 << position[parent])
        masks[step.step_id] = mask
    return masks


def chain_cover(steps: Sequence[StepPlan]) -> int:
    """Chains of steps, each after the one before, that cover the run: so many calls at most are alive at once."""
    tails: set[str] = set()
    for step in steps:
        extended = next((parent for parent in step.parents if parent in tails), None)
        if extended is not None:
            tails.remove(extended)
        tails.add(step.step_id)
    # A tail is only ever replaced, so there are as many tails as chains.
    return max(1, len(tails))


@dataclass(frozen=True, slots=True)
class _Windows:
    arrivals_s: Floats
    ends_s: Floats
    widths: Ints


@dataclass(frozen=True, slots=True)
class _Holders:
    """By block number of one space: the first run that holds it, when the second came, calls that may share it."""

    runs: Ints
    first_run: Ints
    second_arrival_s: Floats
    sharers: Ints


def _spaces(plans: Sequence[RunPlan]) -> list[dict[int, dict[str, Ints]]]:
    """Per space of blocks, by run and step id, the prompt's blocks, numbered from 0 on within the space."""
    raw: dict[str, list[tuple[int, str, Ints]]] = {}
    for run, plan in enumerate(plans):
        for step in plan.steps:
            if step.blocks and step.prompt_text is None:
                ids = np.concatenate([np.arange(first, first + count, dtype=np.int64) for first, count in step.blocks])
                raw.setdefault(step.block_space or plan.session_id, []).append((run, step.step_id, ids))
    spaces = []
    for entries in raw.values():
        _, numbers = np.unique(np.concatenate([ids for _, _, ids in entries]), return_inverse=True)
        by_run: dict[int, dict[str, Ints]] = {}
        begin = 0
        for run, step_id, ids in entries:
            by_run.setdefault(run, {})[step_id] = numbers[begin : begin + len(ids)]
            begin += len(ids)
        spaces.append(by_run)
    return spaces


def _holders(by_run: Mapping[int, Mapping[str, Ints]], windows: _Windows) -> _Holders:
    size = 1 + max(int(ids.max()) for named in by_run.values() for ids in named.values())
    first_run, second_arrival_s = np.full(size, -1), np.full(size, np.inf)
    sharers = np.zeros(size, np.int64)
    for run, named in by_run.items():
        held = np.unique(np.concatenate(list(named.values())))
        sharers[held] += windows.widths[run]
        is_new = first_run[held] < 0
        again = held[~is_new]
        second_arrival_s[again] = np.minimum(second_arrival_s[again], windows.arrivals_s[run])
        first_run[held[is_new]] = run
    return _Holders(np.array(list(by_run)), first_run, second_arrival_s, sharers)


def _of_run(
    run: int, steps: Sequence[StepPlan], named: Mapping[str, Ints], holders: _Holders, windows: _Windows
) -> dict[tuple[int, str], Fresh]:
    overlaps = (windows.arrivals_s[holders.runs] <= windows.ends_s[run]) & (
        windows.ends_s[holders.runs] >= windows.arrivals_s[run]
    )
    alive = int(windows.widths[holders.runs][overlaps].sum())
    aside = _held_aside(steps, named)
    seen: Ints = np.zeros(0, np.int64)
    found = {}
    for step in steps:
        ids = named.get(step.step_id)
        if ids is None:
            continue
        charged = (holders.first_run[ids] == run) & ~np.isin(ids, seen)
        own = charged & (holders.second_arrival_s[ids] > windows.ends_s[run]) & ~np.isin(ids, aside)
        sharers = np.minimum(holders.sharers[ids], alive)
        kept = (sharers == 1) & np.isin(ids, seen)
        found[run, step.step_id] = _with_blocks(step, charged, own, kept, sharers)
        seen = np.union1d(seen, ids)
    return found


def _held_aside(steps: Sequence[StepPlan], named: Mapping[str, Ints]) -> Ints:
    """Blocks that two calls hold of which neither waits for the other: either may be the one that computes them."""
    masks = ancestors(steps)
    aside: Ints = np.zeros(0, np.int64)
    for position, step in enumerate(steps):
        besides = [
            other.step_id for index, other in enumerate(steps[:position]) if not masks[step.step_id] >> index & 1
        ]
        for other_id in besides:
            if step.step_id in named and other_id in named:
                aside = np.union1d(aside, np.intersect1d(named[step.step_id], named[other_id]))
    return aside


def _without_blocks(step: StepPlan) -> Fresh:
    """Nobody else has text without names; of a recorded text, which others may have, the last token alone is sure."""
    if step.prompt_text is not None:
        return Fresh(1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    tokens = float(step.prompt_tokens)
    return Fresh(tokens, tokens**2, tokens, tokens**2, tokens, 0.0)


def _with_blocks(step: StepPlan, charged: Bools, own: Bools, kept: Bools, sharers: Ints) -> Fresh:
    edges = np.minimum(np.arange(len(charged) + 1) * step.block_tokens, step.prompt_tokens)
    lengths, squares = np.diff(edges), np.diff(edges**2)
    text, text_squares = step.prompt_tokens - float(edges[-1]), step.prompt_tokens**2 - float(edges[-1]) ** 2
    # An engine computes a prompt's last token even where all of it is cached.
    charged_tokens, own_tokens = (max(1.0, float(lengths[which].sum()) + text) for which in (charged, own))
    return Fresh(
        charged_tokens=charged_tokens,
        charged_squares=float(squares[charged].sum()) + text_squares,
        own_tokens=own_tokens,
        own_squares=float(squares[own].sum()) + text_squares,
        held_tokens=float((lengths / sharers).sum()) + text,
        kept_tokens=float(lengths[kept].sum()),
    )
