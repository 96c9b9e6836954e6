"""How long does a running call pause when it moves, by replay of its tokens and by its KV?

`python -m benchmarks.kv_moves` runs two emulated H100 at speed 1 with links of different bandwidth; with
`--engines URL URL --model NAME` two real engines. For each context length a call streams 20 tokens, is cut, and goes on
at the second, which has not seen its prompt; the pause is from the cut to the first token there. The ways alternate.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.engines import open_adapter
from agentserve.engines.adapter import EngineAdapter, EngineCall

CONTEXTS = (512, 2048, 8192, 32768)
LINKS_BYTES_PER_S = {"10 GbE": 1.25e9, "RDMA 400 Gb/s": 50e9}
EMITTED = 20


async def pause_s(source: EngineAdapter, target: EngineAdapter, model: str, prompt: list[int], by: str) -> float:
    """Seconds between the cut and the first token at the target."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    ids: list[int] = []
    stream = source.stream(EngineCall(path="/v1/completions", body=body, request_id=f"{random.random()}"))
    async for delta in stream:
        ids += delta.token_ids
        if len(ids) >= EMITTED:
            break
    started_s = time.perf_counter()
    await stream.aclose()
    call = EngineCall(
        path="/v1/completions",
        body=body,
        request_id=f"{random.random()}",
        replay_ids=(*prompt, *ids),
        max_tokens=8,
        handoff=None,
    )
    if by == "kv":
        handoff = await source.prefill(call)
        call = EngineCall(
            path=call.path,
            body=body,
            request_id=call.request_id,
            replay_ids=call.replay_ids,
            max_tokens=8,
            handoff=handoff,
        )
    going_on = target.stream(call)
    await anext(going_on)
    paused_s = time.perf_counter() - started_s
    async for _ in going_on:
        pass
    return paused_s


@asynccontextmanager
async def emulated(link_bytes_per_s: float) -> AsyncIterator[tuple[str, str]]:
    """Two emulated engines with this link."""
    config = EmulatorConfig(gpu="h100", kv_link_bytes_per_s=link_bytes_per_s)
    async with running(config) as first, running(config) as second:
        yield first, second


async def compare(label: str, urls: tuple[str, str], model: str, contexts: tuple[int, ...], rounds: int) -> None:
    """Print the medians of both ways for each context length."""
    first, second = (open_adapter("vllm", url) for url in urls)
    draw = random.Random(0)  # the seed of prompts
    try:
        for tokens in contexts:
            taken: dict[str, list[float]] = {"replay": [], "kv": []}
            for _ in range(rounds):
                for by, found in taken.items():
                    prompt = [draw.randrange(300, 700) for _ in range(tokens)]
                    found.append(await pause_s(first, second, model, prompt, by))
            replay, kv = (statistics.median(found) for found in taken.values())
            ways = f"replay {replay * 1e3:7.1f} ms, KV {kv * 1e3:7.1f} ms, KV/replay {kv / replay:.2f}"
            print(f"{label:14} {tokens:6} tokens: {ways}")
    finally:
        await first.close()
        await second.close()


async def main() -> None:
    """Run on the emulator, or on the engines that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs=2, metavar="URL")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.engines:
        await compare("given engines", tuple(args.engines), args.model, tuple(args.contexts), args.rounds)
        return
    for label, bandwidth in LINKS_BYTES_PER_S.items():
        async with emulated(bandwidth) as urls:
            await compare(label, urls, args.model, tuple(args.contexts), args.rounds)


if __name__ == "__main__":
    asyncio.run(main())
