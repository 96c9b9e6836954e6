"""How little of the fleet's time and memory can a run cost, if it is to end within its SLO?

Machine time of a GPU kind k has a price y_k, and its whole KV memory ρ·y_k a second. The least priced cost of a run,
over every way of giving its tokens to kinds, may be set against the priced capacity, (1 + ρ)·Σ y_k·(machines of k) a
second, whatever y, ρ ≥ 0 are.

An iteration with a batch of decodes takes T = D + Σ a_i + prefills: D = c·d0, a_i = c·(d1 + d2·context_i) + s. D is
shared among its sequences by any rule whose shares sum to at most 1. Three rules are used:

- slots: 1/max_num_seqs each.
- kv: each by its own KV over the cache's capacity, since what is in memory fits.
- pace: a_i/(T − D), since Σ a_i ≤ T − D. A token then costs y·a·T/(T − D): the smaller the batch the dearer, and a run
  in a hurry cannot wait for a large T. Let λ ≥ 0 price wall time. For every T > D

      y·a·T/(T − D) + λ·T ≥ (√(y·a) + √(λ·D))²

  with equality at T = D + √(y·a·D/λ). λ is the price of the run's time plus that of the memory it holds. So a run costs
  at least Σ (√(y·a) + √(λ·D))² − λ·(time that the SLO leaves for it), for any price of its time. In a DAG that price
  is split along paths (a unit flow), whose mean length is at most the makespan.

What a run keeps in cache through a tool's time costs memory, or else its prefill again: the cheaper one is taken. A
prefill is done on one instance, or begun anew on another. Decoding may move: the minimum over kinds is taken token by
token. All terms are concave in the tokens so far (√ of a product of two linear functions is), so the mean of both ends
of a range is at most the mean over it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agentserve.lab.bound_blocks import Floats, Fresh
from agentserve.lab.plans import RunPlan, StepPlan
from scheduler.profiles import GpuProfile

TOKENS_PER_MOVE: Final = 32
"""A call is moved or preempted at most once per so many output tokens; each time a prefill gives the next token."""
_TIME_PRICES: Final = np.concatenate([[0.0], np.geomspace(1e-4, 1e7, 54)])
"""λ that are tried, on the scale of the prices of machine time (tokens per second); the best one counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Instances that are alike: how many, and their constants in seconds, their own pace included."""

    count: int
    prefill_token_s: float
    prefill_square_s: float
    iteration_s: float
    """What any iteration takes at least."""
    decode_base_s: float
    decode_sequence_s: float
    decode_context_s: float
    max_num_seqs: int
    kv_tokens: int

    @classmethod
    def of(cls, profile: GpuProfile, *, count: int, pace: float, max_num_seqs: int, kv_tokens: int) -> "Kind":
        """Instances of this profile on which everything takes `pace` times as long."""
        scale = profile.calibration * pace
        return cls(
            count=count,
            prefill_token_s=scale * profile.prefill_per_token_s,
            prefill_square_s=scale * profile.prefill_per_token2_s,
            iteration_s=scale * min(profile.prefill_base_s, profile.decode_base_s),
            decode_base_s=scale * profile.decode_base_s,
            decode_sequence_s=scale * profile.decode_per_sequence_s + pace * profile.overhead_per_sequence_s,
            decode_context_s=scale * profile.decode_per_context_token_s,
            max_num_seqs=max_num_seqs,
            kv_tokens=kv_tokens,
        )


@dataclass(frozen=True, slots=True)
class Fleet:
    """The constants of all kinds as rows, to be set against calls in columns."""

    rows: Mapping[str, Floats]

    @classmethod
    def with_kinds(cls, kinds: Sequence[Kind]) -> "Fleet":
        """The fleet of these kinds."""
        return cls({f.name: np.array([float(getattr(kind, f.name)) for kind in kinds]) for f in fields(Kind)})

    def of(self, name: str) -> Floats:
        """One constant, by kind."""
        return self.rows[name]

    def sequence_s(self, context_tokens: Floats) -> Floats:
        """a: what a decode adds to an iteration, by context and kind."""
        return self.of("decode_sequence_s") + np.multiply.outer(context_tokens, self.of("decode_context_s"))

    def prices(self, context_tokens: float) -> list[Floats]:
        """Prices of a kind's machine time that owe nothing to other kinds: its tokens/s, as they are and steeper.

        The steeper ones count for runs in a hurry, to which the time of slow kinds is worth little.
        """
        decode_s = self.sequence_s(np.array(context_tokens)) + self.of("decode_base_s") / 32
        prefill_s = np.maximum(self.of("prefill_token_s"), 1e-12)
        return [1 / decode_s, 1 / prefill_s, (2e-4 / decode_s) ** 2 / decode_s, (2e-5 / prefill_s) ** 2 / prefill_s]


@dataclass(frozen=True, slots=True)
class Calls:
    """All calls of a workload as columns: tokens, and what share of λ each carries under each of the unit flows."""

    run: NDArray[np.int64]
    decodes: Floats
    """Output tokens that decode iterations give."""
    moves: Floats
    """Output tokens that prefills of moved calls may give instead."""
    prompt: Floats
    held: Floats
    charged: Floats
    charged_squares: Floats
    own: Floats
    own_squares: Floats
    kept: Floats
    gap_s: Floats
    flows: tuple[Floats, ...]

    def per_run(self, values: Floats, runs: int) -> Floats:
        """Sums by run."""
        return np.bincount(self.run, weights=values, minlength=runs).astype(np.float64)


def calls_of(plans: Sequence[RunPlan], fresh: Mapping[tuple[int, str], Fresh]) -> Calls:
    """The columns; calls keep the order of runs and steps."""
    keys = [(run, step) for run, plan in enumerate(plans) for step in plan.steps]
    found = [fresh[run, step.step_id] for run, step in keys]
    further = np.array([max(0, step.output_tokens - 1) for _, step in keys], dtype=float)
    moves = np.ceil(further / TOKENS_PER_MOVE)
    longest, even = (np.concatenate([flow(p.steps) for p in plans]) for flow in (_along_longest_path, _split_evenly))
    return Calls(
        run=np.array([run for run, _ in keys], dtype=np.int64),
        decodes=further - moves,
        moves=moves,
        prompt=np.array([step.prompt_tokens for _, step in keys], dtype=float),
        held=np.array([entry.held_tokens for entry in found]),
        charged=np.array([entry.charged_tokens for entry in found]),
        charged_squares=np.array([entry.charged_squares for entry in found]),
        own=np.array([entry.own_tokens for entry in found]),
        own_squares=np.array([entry.own_squares for entry in found]),
        kept=np.array([entry.kept_tokens for entry in found]),
        gap_s=np.array([step.tool_gap_s for _, step in keys]),
        flows=(longest,) if np.array_equal(longest, even) else (longest, even),
    )


def alone_s(plans: Sequence[RunPlan], calls: Calls, fleet: Fleet) -> Floats:
    """Per run its makespan alone, with the fastest kind in every phase and everything cached that may be."""
    step_s = fleet.of("decode_base_s")
    decode_s = calls.decodes * _mean_of_ends(
        (step_s + fleet.sequence_s(calls.prompt + 1)).min(axis=1),
        (step_s + fleet.sequence_s(calls.prompt + np.maximum(1, calls.decodes))).min(axis=1),
    )
    spent_s = _own_prefill_s(calls, fleet).min(axis=1) + decode_s + (1 + calls.moves) * fleet.of("iteration_s").min()
    makespans, begin = np.zeros(len(plans)), 0
    for run, plan in enumerate(plans):
        ends_s: dict[str, float] = {}
        for offset, step in enumerate(plan.steps):
            ready_s = max((ends_s[parent] for parent in step.parents), default=0.0)
            ends_s[step.step_id] = ready_s + step.tool_gap_s + float(spent_s[begin + offset])
        makespans[run] = max(ends_s.values(), default=0.0)
        begin += len(plan.steps)
    return makespans


def shared_costs(calls: Calls, fleet: Fleet, prices: Floats, runs: int) -> list[Floats]:
    """Per run the least priced cost under the rules `slots` and `kv`, with memory for nothing."""
    costs = []
    last = np.maximum(1, calls.decodes)
    own = _own_prefill(calls, fleet, prices, np.zeros_like(last)).min(axis=1)
    prefill = own + _others_prefill(calls, fleet, prices)
    for one, room in ((0.0, fleet.of("max_num_seqs")), (1.0, fleet.of("kv_tokens"))):

        def token(emitted: Floats, one: float = one, room: Floats = room) -> Floats:
            base_s = np.multiply.outer((calls.held + emitted) ** one, fleet.of("decode_base_s") / room)
            least: Floats = (prices * (fleet.sequence_s(calls.prompt + emitted) + base_s)).min(axis=1)
            return least

        decode = calls.decodes * _mean_of_ends(token(np.ones_like(last)), token(last))
        costs.append(calls.per_run(decode + prefill, runs))
    return costs


def paced_costs(calls: Calls, fleet: Fleet, prices: Floats, memory: float, slos_s: Floats) -> Floats:
    """Per run the least priced cost under the rule `pace`, ρ = `memory`, with the best of the tried λ and flows.

    A prefill is not divided among kinds: for the largest of each run, every kind is tried by itself.
    """
    largest = _largest_prefills(calls, len(slos_s))
    best = np.zeros((len(slos_s), len(prices)))
    for flow in calls.flows:
        left_s = slos_s - calls.per_run(flow * calls.gap_s, len(slos_s))
        for price in _TIME_PRICES:
            time_price = flow * price
            own = _own_prefill(calls, fleet, prices, time_price)
            rest = _paced(calls, fleet, prices, memory, time_price) + np.where(largest, 0.0, own.min(axis=1))
            by_kind = np.zeros_like(best)
            by_kind[calls.run[largest]] = own[largest]
            total = calls.per_run(rest, len(slos_s)) - price * left_s
            best = np.maximum(best, by_kind + total[:, None])
    least: Floats = best.min(axis=1)
    return least


def _largest_prefills(calls: Calls, runs: int) -> NDArray[np.bool_]:
    """One call of each run, that with most tokens of its own."""
    order = np.lexsort((-calls.own, calls.run))
    firsts = order[np.unique(calls.run[order], return_index=True)[1]]
    largest = np.zeros(len(calls.run), dtype=np.bool_)
    largest[firsts] = True
    return largest


def _paced(calls: Calls, fleet: Fleet, prices: Floats, memory: float, time_price: Floats) -> Floats:
    """Per call its least cost, its wall time at `time_price`, but for the prefill of its own tokens."""
    token_s_price = memory * prices / fleet.of("kv_tokens")

    def token(emitted: Floats) -> Floats:
        wall = time_price[:, None] + np.multiply.outer(calls.held + emitted, token_s_price)
        work = prices * fleet.sequence_s(calls.prompt + emitted)
        least: Floats = ((np.sqrt(work) + np.sqrt(wall * fleet.of("decode_base_s"))) ** 2).min(axis=1)
        return least

    last = np.maximum(1, calls.decodes)
    cost = calls.decodes * _mean_of_ends(token(np.ones_like(last)), token(last))
    again = (np.add.outer(time_price, prices) * fleet.of("prefill_token_s")).min(axis=1)
    cost += calls.kept * np.minimum(again, calls.gap_s * token_s_price.min())
    cost += time_price * (1 + calls.moves) * fleet.of("iteration_s").min()
    return cost + _others_prefill(calls, fleet, prices)


def _others_prefill(calls: Calls, fleet: Fleet, prices: Floats) -> Floats:
    """Per call the least cost of the tokens that it is charged with, but others may have computed."""
    tokens: Floats = (calls.charged - calls.own) * (prices * fleet.of("prefill_token_s")).min()
    squares: Floats = (calls.charged_squares - calls.own_squares) * (prices * fleet.of("prefill_square_s")).min()
    return tokens + squares


def _own_prefill(calls: Calls, fleet: Fleet, prices: Floats, time_price: Floats) -> Floats:
    """Per call and kind the cost of computing there what only this call can have computed."""
    return np.add.outer(time_price, prices) * _own_prefill_s(calls, fleet)


def _own_prefill_s(calls: Calls, fleet: Fleet) -> Floats:
    tokens_s = np.multiply.outer(calls.own, fleet.of("prefill_token_s"))
    squares_s: Floats = np.multiply.outer(calls.own_squares, fleet.of("prefill_square_s"))
    return tokens_s + squares_s


def _mean_of_ends(low: Floats, high: Floats) -> Floats:
    return (low + high) / 2


def _along_longest_path(steps: Sequence[StepPlan]) -> Floats:
    """1 for the steps on the path that looks longest, whatever the fleet: 10 ms a token and 20 µs a prompt token."""
    ends_s: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for step in steps:
        last = max(step.parents, key=lambda parent: ends_s[parent], default=None)
        before[step.step_id] = last
        ready_s = 0.0 if last is None else ends_s[last]
        ends_s[step.step_id] = ready_s + step.tool_gap_s + 0.01 * step.output_tokens + 2e-5 * step.prompt_tokens
    on_path: set[str] = set()
    at = max(ends_s, key=lambda step_id: ends_s[step_id], default=None)
    while at is not None:
        on_path.add(at)
        at = before[at]
    return np.array([float(step.step_id in on_path) for step in steps])


def _split_evenly(steps: Sequence[StepPlan]) -> Floats:
    """From the ends backwards, each step's share divided among its parents."""
    inner = {parent for step in steps for parent in step.parents}
    ends = [step.step_id for step in steps if step.step_id not in inner]
    shares = {step.step_id: 1 / len(ends) if step.step_id in ends else 0.0 for step in steps}
    for step in reversed(steps):
        for parent in step.parents:
            shares[parent] += shares[step.step_id] / len(step.parents)
    return np.array([shares[step.step_id] for step in steps])
