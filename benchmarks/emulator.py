"""How fast is the engine model, and how true is the emulator to its profile over HTTP?

    python benchmarks/emulator.py [--seed N] [--quick]

Prints iterations per second of the engine model at three batch sizes, a lone request's TTFT and E2E through HTTP at
speed 1 as ratios to the profile's formula, and what a stream's chunk costs the server.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from random import Random

import httpx

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.engine import Engine
from agentserve.emulator.inprocess import running
from agentserve.emulator.sequence import EngineRequest
from agentserve.emulator.tokens import block_keys
from scheduler.profiles import GpuProfile, load_profile

GPU, MODEL = "h100", "llama-3.1-8b"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args()
    print(f"machine: {machine()}")
    print(f"command: {' '.join(['python -m benchmarks.emulator', *sys.argv[1:]])}, seed {options.seed}\n")
    for batch in (8, 64, 256):
        rate = iterations_per_s(batch, 500 if options.quick else 2000, Random(options.seed))
        print(f"engine model, batch {batch:3}: {rate:8.0f} iterations/s, {rate * batch:9.0f} tokens/s")
    print()
    asyncio.run(compare_lone_requests(3 if options.quick else 7, options.seed))
    asyncio.run(chunk_cost(options.seed))


def machine() -> str:
    """Processor, cores and Python."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def iterations_per_s(batch: int, iterations: int, random: Random) -> float:
    """Decode iterations of a full batch, each sequence with keys for its prefix, prefills left out."""
    engine = Engine(load_profile(GPU, MODEL), max_num_seqs=batch)
    for number in range(batch):
        prompt = random.randrange(200, 1200)
        keys = block_keys([number * 10_000 + position for position in range(prompt + iterations)], 16)
        request = EngineRequest(
            request_id=str(number), prompt_tokens=prompt, output_tokens=iterations + 1000, block_keys=keys
        )
        engine.add(request)
    now_s = 0.0
    while engine.state.waiting:
        now_s += engine.step(now_s).duration_s
    began_s = time.perf_counter()
    for _ in range(iterations):
        now_s += engine.step(now_s).duration_s
    return iterations / (time.perf_counter() - began_s)


async def compare_lone_requests(repetitions: int, seed: int) -> None:
    """TTFT and E2E of one request at a time at speed 1, against prefill_s and the sum of decode_step_s."""
    profile, random = load_profile(GPU, MODEL), Random(seed)
    print(f"lone request over HTTP, {GPU} {MODEL}, speed 1, {repetitions} repetitions")
    async with running(EmulatorConfig(gpu=GPU, model=MODEL)) as url, httpx.AsyncClient(base_url=url) as client:
        await ask(client, prompt_of(64, random), 4)
        trip_s = statistics.median([await round_trip(client) for _ in range(20)])
        print(f"(a round trip of /health, which every TTFT holds too: {trip_s * 1e3:.1f} ms)")
        print("prompt  output   TTFT profile   median  ratio   best    E2E profile   median  ratio   best")
        for prompt, output in ((512, 64), (2048, 128), (7000, 32)):
            times = [await ask(client, prompt_of(prompt, random), output) for _ in range(repetitions)]
            columns = zip(expected(profile, prompt, output), zip(*times, strict=True), strict=True)
            print(f"{prompt:6}  {output:6}" + "".join(against(*column) for column in columns))
    print()


def against(expected_s: float, measured_s: tuple[float, ...]) -> str:
    """The profile's time, the median, and the ratios of the median and of the least disturbed repetition."""
    median_s = statistics.median(measured_s)
    ratios = f"{median_s / expected_s:.3f}  {min(measured_s) / expected_s:.3f}"
    return f"  {expected_s * 1e3:10.1f} ms {median_s * 1e3:7.1f} ms  {ratios}"


def prompt_of(tokens: int, random: Random) -> list[int]:
    """Ids that share no prefix with any other prompt; the last is the assistant's mark."""
    return [*(random.randrange(400, 100_000) for _ in range(tokens - 1)), 3]


def expected(profile: GpuProfile, prompt: int, output: int) -> tuple[float, float]:
    """The profile's TTFT and E2E of a lone request."""
    ttft_s = profile.prefill_s(prompt)
    return ttft_s, ttft_s + sum(profile.decode_step_s(1, prompt + step) for step in range(1, output))


async def round_trip(client: httpx.AsyncClient) -> float:
    """Seconds of a request that the engine has no part in."""
    began_s = time.perf_counter()
    await client.get("/health")
    return time.perf_counter() - began_s


async def ask(client: httpx.AsyncClient, prompt: list[int], output: int) -> tuple[float, float]:
    """TTFT and E2E as the client sees them."""
    body = json.dumps({"prompt": prompt, "max_tokens": output, "ignore_eos": True, "stream": True})
    began_s = time.perf_counter()
    first_s = last_s = 0.0
    async with client.stream("POST", "/v1/completions", content=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                last_s = time.perf_counter()
                first_s = first_s or last_s
    return first_s - began_s, last_s - began_s


async def chunk_cost(seed: int) -> None:
    """Processor time per token streamed, client included, with 16 streams as fast as they go."""
    random = Random(seed)
    async with running(EmulatorConfig(speed=1000.0)) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        began_s = time.process_time()
        await asyncio.gather(*(ask(client, prompt_of(100, random), 500) for _ in range(16)))
        tokens = 16 * 500
        print(
            f"16 streams at speed 1000: {(time.process_time() - began_s) / tokens * 1e6:.0f} us of processor per token"
        )


if __name__ == "__main__":
    main()
