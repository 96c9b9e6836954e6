"""How fast does plain PyTorch run Llama-3.1-8B's shape on this GPU, against the shipped profile?

    python -m benchmarks.gpu_profile [--gpu NAME] [--cpu-smoke]

Random weights in bf16, attention by SDPA with grouped KV heads, a KV cache, decode steps in a CUDA graph. Prints
medians and ratios to the profile, whose figures hold an engine's host work too (its calibration, docs/emulator.md): the
kernels alone should come out below 1. Without an NVIDIA GPU it says so and measures nothing; --cpu-smoke runs a tiny
shape on the CPU, to see that the code works, and compares with nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scheduler.profiles import GpuProfile, known_gpus, load_profile

MODEL = "llama-3.1-8b"
PREFILLS = (128, 512, 1024, 2048, 4096, 8192, 16_384)
CACHED = ((512, 4096), (2048, 8192))
DECODES = ((1, 512), (1, 4096), (8, 512), (8, 4096), (32, 512), (32, 2048), (64, 1024), (128, 512))
REPEATS = 7
WARM_UPS = 3


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes only."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    inner: int = 14_336
    vocabulary: int = 128_256


TINY = Shape(layers=2, hidden=64, heads=4, kv_heads=2, head=16, inner=128, vocabulary=256)


def main() -> None:
    """Measure where there is a GPU, or say that there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", help="profile to compare with [default: by the card's name]")
    parser.add_argument("--cpu-smoke", action="store_true", help="run a tiny shape on the CPU and compare with nothing")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit(_stop("PyTorch is not installed"))
    if options.cpu_smoke:
        smoke(torch)
        return
    if not torch.cuda.is_available():
        sys.exit(_stop("PyTorch sees no NVIDIA GPU"))
    card = torch.cuda.get_device_name(0)
    gpu = options.gpu or next((name for name in known_gpus() if name.split("-")[0] in card.lower()), None)
    if gpu is None:
        sys.exit(_stop(f"there is no shipped profile of {card}; name one with --gpu"))
    print(f"{card}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}; random weights, bf16, medians of {REPEATS}")
    compare(torch, load_profile(gpu, MODEL))


def compare(torch: Any, profile: GpuProfile) -> None:
    """Print every point beside the profile's time, and the ratio."""
    llama = Llama(torch, Shape(), "cuda", torch.bfloat16)
    print(f"\nagainst {profile.gpu} × {profile.model}\nprefill: new tokens, cached   measured      profile    ratio")
    ratios = []
    for new, cached in (*((n, 0) for n in PREFILLS), *CACHED):
        measured_s = median_s(torch, llama.prefill(new, cached))
        ratios.append(_line(f"{new:8} {cached:8}", measured_s, profile.prefill_s(new, cached)))
    print(
        f"median ratio {statistics.median(ratios):.3f}\n\ndecode: batch, context        measured      profile    ratio"
    )
    ratios = []
    for batch, context in DECODES:
        step_s = median_s(torch, llama.decode(batch, context))
        ratios.append(_line(f"{batch:8} {context:8}", step_s, profile.decode_step_s(batch, batch * context)))
    print(f"median ratio {statistics.median(ratios):.3f}")


def smoke(torch: Any) -> None:
    """Run both phases once on the CPU, and check that a prompt in two parts ends as the prompt in one does."""
    torch.manual_seed(0)
    llama = Llama(torch, TINY, "cpu", torch.float32)
    ids = torch.randint(TINY.vocabulary, (1, 40))
    cache = llama.cache(1, 64)
    whole = llama.forward(ids, cache, 0)
    cache = llama.cache(1, 64)
    llama.forward(ids[:, :25], cache, 0)
    parts = llama.forward(ids[:, 25:39], cache, 25)
    step = llama.forward(ids[:, 39:], cache, 39)
    if not torch.allclose(whole, step, atol=1e-4):
        sys.exit("the cached way gives other logits than the whole prompt")
    for what, run in (("prefill of 40", llama.prefill(40, 0)), ("decode of 3 × 20", llama.decode(3, 20))):
        print(
            f"{what} tokens, tiny shape on the CPU: {median_s(torch, run) * 1e3:.2f} ms (checks the code, is no result)"
        )
    print(f"logits {tuple(parts.shape)}: a prompt in parts ends as the whole one")


class Llama:
    """Random weights in a Llama's shape; every method runs without gradients."""

    def __init__(self, torch: Any, shape: Shape, device: str, dtype: Any) -> None:
        self.torch, self.shape, self.device, self.dtype = torch, shape, device, dtype
        query, kv = shape.heads * shape.head, shape.kv_heads * shape.head
        self.embedding = self._weights(shape.vocabulary, shape.hidden)
        self.output = self._weights(shape.vocabulary, shape.hidden)
        self.blocks = [
            {
                "qkv": self._weights(query + 2 * kv, shape.hidden),
                "o": self._weights(shape.hidden, query),
                "gate_up": self._weights(2 * shape.inner, shape.hidden),
                "down": self._weights(shape.hidden, shape.inner),
            }
            for _ in range(shape.layers)
        ]
        self.norm = torch.ones(shape.hidden, device=device, dtype=dtype)
        self.frequencies = 500_000.0 ** (
            -torch.arange(0, shape.head, 2, device=device, dtype=torch.float32) / shape.head
        )

    def cache(self, batch: int, tokens: int) -> list[Any]:
        """Keys and values of every layer, with room for `tokens` per sequence."""
        shape = self.shape
        size = (2, batch, shape.kv_heads, tokens, shape.head)
        return [self.torch.zeros(size, device=self.device, dtype=self.dtype) for _ in range(shape.layers)]

    def forward(self, ids: Any, cache: list[Any], start: int) -> Any:
        """Logits of the last token of each sequence; `ids` (batch × tokens) stand from `start` on."""
        torch, tokens = self.torch, ids.shape[1]
        functional = torch.nn.functional
        with torch.inference_mode():
            positions = torch.arange(start, start + tokens, device=self.device)
            angles = positions[:, None].float() * self.frequencies
            cosine, sine = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
            hidden = functional.embedding(ids, self.embedding)
            mask = self._mask(tokens, start)
            for weights, kept in zip(self.blocks, cache, strict=True):
                hidden = hidden + self._attention(self._normed(hidden), weights, kept, start, cosine, sine, mask)
                gate, up = functional.linear(self._normed(hidden), weights["gate_up"]).chunk(2, dim=-1)
                hidden = hidden + functional.linear(functional.silu(gate) * up, weights["down"])
            return functional.linear(self._normed(hidden[:, -1]), self.output)

    def prefill(self, new: int, cached: int) -> Callable[[], Any]:
        """What computes `new` tokens after `cached`, of one sequence."""
        ids = self.torch.randint(self.shape.vocabulary, (1, new), device=self.device)
        cache = self.cache(1, new + cached)
        return lambda: self.forward(ids, cache, cached)

    def decode(self, batch: int, context: int) -> Callable[[], Any]:
        """What computes one token more of each sequence; on a GPU a captured graph, as engines have it."""
        ids = self.torch.randint(self.shape.vocabulary, (batch, 1), device=self.device)
        cache = self.cache(batch, context + 1)

        def step() -> Any:
            return self.forward(ids, cache, context)

        return step if self.device == "cpu" else self._captured(step)

    def _captured(self, step: Callable[[], Any]) -> Callable[[], Any]:
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def _attention(self, hidden: Any, weights: Any, kept: Any, start: int, cosine: Any, sine: Any, mask: Any) -> Any:
        shape, functional = self.shape, self.torch.nn.functional
        batch, tokens, _ = hidden.shape
        sizes = [shape.heads, shape.kv_heads, shape.kv_heads]
        joined = functional.linear(hidden, weights["qkv"]).view(batch, tokens, sum(sizes), shape.head).transpose(1, 2)
        query, key, value = joined.split(sizes, dim=1)
        end = start + tokens
        kept[0][:, :, start:end], kept[1][:, :, start:end] = self._rotated(key, cosine, sine), value
        keys, values = kept[0][:, :, :end], kept[1][:, :, :end]
        if mask is not None:  # the fast kernels that take a mask want as many KV heads as query heads
            keys, values = (part.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for part in (keys, values))
        mixed = functional.scaled_dot_product_attention(
            self._rotated(query, cosine, sine),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            enable_gqa=mask is None,
        )
        return functional.linear(mixed.transpose(1, 2).reshape(batch, tokens, -1), weights["o"])

    def _mask(self, tokens: int, start: int) -> Any:
        """Only a chunk after a prefix needs one: alone it is causal, and a single token sees all before it."""
        if tokens == 1 or start == 0:
            return None
        ones = self.torch.ones(tokens, start + tokens, dtype=self.torch.bool, device=self.device)
        return ones.tril(diagonal=start)

    def _rotated(self, heads: Any, cosine: Any, sine: Any) -> Any:
        first, second = heads.chunk(2, dim=-1)
        return self.torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    def _normed(self, hidden: Any) -> Any:
        return self.torch.nn.functional.rms_norm(hidden, (self.shape.hidden,), self.norm, 1e-5)

    def _weights(self, rows: int, columns: int) -> Any:
        return self.torch.randn(rows, columns, device=self.device, dtype=self.dtype) * columns**-0.5


def median_s(torch: Any, run: Callable[[], Any]) -> float:
    """Median seconds of some runs after some that warm up; a GPU's work is waited for."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    times = []
    for number in range(WARM_UPS + REPEATS):
        wait()
        began_s = time.perf_counter()
        run()
        wait()
        if number >= WARM_UPS:
            times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _line(what: str, measured_s: float, profile_s: float) -> float:
    ratio = measured_s / profile_s
    print(f"{what:28}{measured_s * 1e3:9.2f} ms {profile_s * 1e3:9.2f} ms  {ratio:6.3f}")
    return ratio


def _stop(why: str) -> int:
    print(f"{why}: nothing was measured (this is no result). It needs an NVIDIA GPU and PyTorch with CUDA.")
    return 0


if __name__ == "__main__":
    main()
