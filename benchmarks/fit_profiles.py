"""Which calibration factor and per-sequence cost make the GPU profiles agree with what others measured?

Kernel sums leave out the host: scheduling, sampling, detokenising, launch gaps. Measured time is modelled as
c·kernels + s·B per iteration, with one c and one s for every GPU and model, since measured / predicted is the same on
A100 and H100 (the ratios between GPUs stay those of the kernels). Least squares on relative error, every series with
the same weight. Prints the fit and its residuals; `profiles.toml` holds the rounded result.

    python benchmarks/fit_profiles.py
"""

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from scheduler.profiles import GpuProfile, load_profile

DATA = Path(__file__).parent / "data" / "measured_latency.csv"
BATCHED_TOKENS = 8192
LEFT_OUT = {
    (
        "a100-80g",
        "llama-3.1-8b",
        64,
        2048,
    ): "far slower than its neighbours: 4,096 tokens x 64 overflow the KV cache of a 40 GB A100"
}


class Row(NamedTuple):
    """One measurement: `kernel_s` and `sequence_steps` are what c and s are multiplied with."""

    series: str
    what: str
    kernel_s: float
    sequence_steps: float
    measured_s: float


def main() -> None:
    """Fit, print, compare."""
    rows = list(read_rows())
    fitted = [row for row in rows if not row.series.startswith("aiconfigurator")]
    calibration, overhead_s = fit(fitted)
    print(f"calibration = {calibration:.3f}   overhead_per_sequence_s = {overhead_s:.2e}\n")
    series: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        predicted_s = calibration * row.kernel_s + overhead_s * row.sequence_steps
        series[row.series].append(predicted_s / row.measured_s - 1)
        print_row(row, predicted_s)
    print("\nseries                                rows  mean |error|  worst")
    for name, errors in series.items():
        held_out = "  (held out)" if name.startswith("aiconfigurator") else ""
        mean = sum(map(abs, errors)) / len(errors)
        print(f"{name:38}{len(errors):4}{mean:13.1%}{max(errors, key=abs):8.1%}{held_out}")
    for (gpu, model, batch, tokens), why in LEFT_OUT.items():
        print(f"left out: {gpu} {model} batch {batch}, {tokens} tokens: {why}")


def read_rows() -> list[Row]:
    """The measurements, with the kernel time of each."""
    rows = []
    with DATA.open(newline="") as file:
        for entry in csv.DictReader(file):
            batch, tokens = int(entry["batch"]), int(entry["input_tokens"])
            if (entry["gpu"], entry["model"], batch, tokens) in LEFT_OUT and entry["source"] == "argonne":
                continue
            profile = load_profile(entry["gpu"], entry["model"])
            if entry["kind"] == "e2e":
                kernel_s, steps = batch_terms(profile, batch, tokens, int(entry["output_tokens"]))
            else:
                kernel_s, steps = step_terms(profile, batch, tokens, int(entry["output_tokens"]))
            series = f"{entry['source']} {entry['gpu']} {entry['model']}"
            rows.append(Row(series, f"{entry['kind']} {batch} x {tokens}", kernel_s, steps, float(entry["seconds"])))
    return rows


def batch_terms(profile: GpuProfile, batch: int, tokens_in: int, tokens_out: int) -> tuple[float, float]:
    """Kernel seconds and sequence steps of a batch that is prefilled together and then decoded to the end."""
    chunks = math.ceil(batch * tokens_in / BATCHED_TOKENS)
    prefill_s = (
        profile.prefill_base_s * chunks
        + profile.prefill_per_token_s * batch * tokens_in
        + profile.prefill_per_token2_s * batch * tokens_in**2
    )
    steps = tokens_out - 1
    context = batch * sum(tokens_in + step for step in range(1, tokens_out))
    decode_s = steps * (profile.decode_base_s + profile.decode_per_sequence_s * batch)
    return prefill_s + decode_s + profile.decode_per_context_token_s * context, steps * batch


def step_terms(profile: GpuProfile, batch: int, tokens_in: int, tokens_out: int) -> tuple[float, float]:
    """Kernel seconds and sequence steps of one decode step; with outputs, prefills of new requests share the step."""
    context = batch * (tokens_in + tokens_out / 2)
    kernel_s = (
        profile.decode_base_s + profile.decode_per_sequence_s * batch + profile.decode_per_context_token_s * context
    )
    if tokens_out:
        prefill_s = profile.prefill_per_token_s * tokens_in + profile.prefill_per_token2_s * tokens_in**2
        kernel_s += prefill_s * batch / tokens_out
    return kernel_s, batch


def fit(rows: list[Row]) -> tuple[float, float]:
    """The c and s that minimise the weighted sum of squared relative errors (normal equations)."""
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row.series] += 1
    aa = ab = bb = a1 = b1 = 0.0
    for row in rows:
        weight, a, b = 1 / sizes[row.series], row.kernel_s / row.measured_s, row.sequence_steps / row.measured_s
        aa, ab, bb = aa + weight * a * a, ab + weight * a * b, bb + weight * b * b
        a1, b1 = a1 + weight * a, b1 + weight * b
    determinant = aa * bb - ab * ab
    return (a1 * bb - b1 * ab) / determinant, (aa * b1 - ab * a1) / determinant


def print_row(row: Row, predicted_s: float) -> None:
    """One line of residuals."""
    error = predicted_s / row.measured_s - 1
    print(f"{row.series:38}{row.what:16}measured {row.measured_s:9.4f} s, profile {predicted_s:9.4f} s{error:8.1%}")


if __name__ == "__main__":
    main()
