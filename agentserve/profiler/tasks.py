"""How is one point measured once? A lone prefill, a batch that decodes, or what HTTP adds; each knows its cost."""

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from agentserve.profiler.client import EngineClient, Prompt, Reply
from agentserve.profiler.engine_facts import metric_total

WINDOW_TOKENS: Final = 32
"""Decode steps per sample, beyond those that go by until all of the batch decode."""
FEW_TOKENS: Final = 2
"""Of calls that only their first token is wanted of: some engines count no cached tokens for a call of one."""
_LEAST_CHUNKS: Final = 4
_TRIES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a measurement may go."""

    max_prompt_tokens: int
    kv_capacity_tokens: int
    max_num_seqs: int
    max_batched_tokens: int
    block_tokens: int


@dataclass(eq=False)
class Prefill:
    """Prompts of `new` tokens after a prefix of `cached`, one at a time."""

    new: int
    cached: int = 0
    prefix: Prompt | None = None
    taken: int = 0
    taken_s: float | None = None
    samples: list[tuple[int, int, float]] = field(default_factory=list)
    """(new tokens, cached tokens, TTFT), as it came out."""

    def __str__(self) -> str:
        """For the progress line."""
        return f"prefill of {self.new:,} tokens" + (f" after {self.cached:,} cached" if self.cached else "")

    async def sample(self, session: "Session") -> None:
        """Measure once."""
        client = session.client
        if self.cached and self.prefix is None:
            prefix = client.prompt(self.cached)
            await client.call(prefix, FEW_TOKENS)
            self.prefix = prefix
        prompt = client.prompt(self.new) if self.prefix is None else client.extended(self.prefix, self.new)
        reply = await client.call(prompt, FEW_TOKENS)
        prompt_tokens = reply.prompt_tokens or self.new + self.cached
        cached = reply.cached_tokens
        if cached is None:  # not told: all whole blocks of the prefix, if the engine keeps any
            cached = self.cached // session.bounds.block_tokens * session.bounds.block_tokens if session.keeps else 0
        self.samples.append((prompt_tokens - cached, cached, reply.ttft_s))
        if not self.cached:
            session.prefill_s_by_tokens[self.new] = reply.ttft_s

    def expected_s(self, session: "Session") -> float:
        """What the next sample should take, on the safe side."""
        if self.taken_s is not None and (not self.cached or self.prefix is not None):
            return self.taken_s
        return session.guessed_prefill_s(self.new + self.cached) + session.guessed_prefill_s(self.new)


@dataclass(eq=False)
class Decode:
    """`batch` sequences that decode together, each with a prompt of `context` tokens."""

    batch: int
    context: int
    taken: int = 0
    taken_s: float | None = None
    samples: list[tuple[float, float]] = field(default_factory=list)
    """(context tokens in sum, step seconds)."""

    def __str__(self) -> str:
        """For the progress line."""
        return f"decode of {self.batch} × {self.context:,} tokens"

    async def sample(self, session: "Session") -> None:
        """Measure once. Prompts are those of the smaller batches and some more, computed beforehand."""
        prompts = await session.warm_prompts(self.context, self.batch)
        chunks = -(-self.batch * self.context // session.bounds.max_batched_tokens) if not session.keeps else 2
        replies = await session.client.calls(prompts, WINDOW_TOKENS + 2 * chunks + self.batch // 8)
        measured = decode_window(replies, self.context)
        if measured is not None:
            self.samples.append(measured)
            session.step_s_by_batch[self.batch] = measured[1]

    def expected_s(self, session: "Session") -> float:
        """What the next sample should take, on the safe side."""
        if self.taken_s is not None:
            return self.taken_s
        fresh = max(self.batch - len(session.prompts.get(self.context, ())), 0) * self.context
        step_s = max(session.step_s_by_batch.values(), default=0.02) * 1.5
        return session.guessed_prefill_s(fresh) + (WINDOW_TOKENS + 8 + self.batch // 8) * step_s


@dataclass(eq=False)
class Overhead:
    """What a client's TTFT holds beside the engine's own count of it.

    The engine's count is `vllm:time_to_first_token_seconds`, from the parsed call to the first token; without it, a
    round trip of `/health` stands for the difference.
    """

    taken: int = 0
    taken_s: float | None = None
    samples: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """For the progress line."""
        return "HTTP round trip"

    async def sample(self, session: "Session") -> None:
        """Measure once."""
        client = session.client
        before = await _first_token_figures(client)
        if before is None:
            started_s = perf_counter()
            await client.get("/health")
            self.samples.append(perf_counter() - started_s)
            return
        reply = await client.call(client.prompt(16), 1)
        for _ in range(_TRIES):
            after = await _first_token_figures(client)
            if after is None or after[0] != before[0]:
                break
            await asyncio.sleep(0.01)  # engines count a call shortly after they have answered it
        if after is not None and after[0] == before[0] + 1:
            self.samples.append(max(reply.ttft_s - (after[1] - before[1]), 0.0))

    def expected_s(self, session: "Session") -> float:
        """What the next sample should take."""
        return self.taken_s or 0.0


@dataclass(eq=False)
class Session:
    """What is known while it goes on."""

    client: EngineClient
    bounds: Bounds
    keeps: bool = True
    """The engine keeps prefixes."""
    prefill_s_by_tokens: dict[int, float] = field(default_factory=dict)
    step_s_by_batch: dict[int, float] = field(default_factory=dict)
    prompts: dict[int, list[Prompt]] = field(default_factory=dict)

    def guessed_prefill_s(self, tokens: int) -> float:
        """From the prefill nearest in size; a longer one is taken to grow by the power 1.5."""
        if not self.prefill_s_by_tokens or not tokens:
            return 0.0
        near = min(self.prefill_s_by_tokens, key=lambda known: abs(known - tokens))
        return self.prefill_s_by_tokens[near] * float(max(tokens / near, 1.0) ** 1.5)

    async def warm_prompts(self, context: int, batch: int) -> list[Prompt]:
        """`batch` prompts that share nothing, each sent once before, so that decoding begins soon."""
        known = self.prompts.setdefault(context, [])
        fresh = [self.client.prompt(context) for _ in range(batch - len(known))]
        if fresh:
            await self.client.calls(fresh, 1)
            known += fresh
        return known[:batch]


Point = Prefill | Decode | Overhead


def decode_window(replies: list[Reply], prompt_tokens: int) -> tuple[float, float] | None:
    """Context in sum and seconds per step while all of the batch decoded; None if that were too few steps.

    The step is the mean of the middle half of the times between chunks, so that neither a stall nor the burst that
    makes up for it counts.
    """
    from_s = max(reply.times_s[0] for reply in replies)
    until_s = min(reply.times_s[-1] for reply in replies)
    context = 0.0
    steps: list[float] = []
    for reply in replies:
        inside = [i for i, at_s in enumerate(reply.times_s) if from_s <= at_s <= until_s]
        if len(inside) < _LEAST_CHUNKS:
            return None
        first, last = inside[0], inside[-1]
        steps += [(reply.times_s[i] - reply.times_s[i - 1]) / reply.tokens[i] for i in inside[1:]]
        emitted = sum(reply.tokens[: first + 1]) + sum(reply.tokens[first + 1 : last + 1]) / 2
        context += (reply.prompt_tokens or prompt_tokens) + emitted
    steps.sort()
    middle = steps[len(steps) // 4 : len(steps) - len(steps) // 4]
    return context, sum(middle) / len(middle)


async def _first_token_figures(client: EngineClient) -> tuple[float, float] | None:
    count = await metric_total(client, "vllm:time_to_first_token_seconds_count")
    total_s = await metric_total(client, "vllm:time_to_first_token_seconds_sum")
    return None if count is None or total_s is None else (count, total_s)
