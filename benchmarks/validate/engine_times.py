"""How near are the engine model's TTFT and TPOT to what others measured, by GPU and model?

    python -m benchmarks.validate.engine_times [--seed N] [--together]

The rows of benchmarks/data/measured_serving.csv (and the end-to-end rows of measured_latency.csv) are played on
agentserve/emulator/engine.py: a closed loop at the row's concurrency, or a batch that starts together. Each series is
split in half by the seed: one factor per series and phase, the median of measured / predicted, is fitted on one half;
errors are those of the other half, as the profile stands and with the factor. FP8 rows have no profile of their own:
only the ratio of H200 to H100 at equal shapes is compared. A closed loop's starts are spread; `--together` lets all
its requests begin at once, so that equal lengths keep them in waves: a row's client does not say which it did.
"""

import argparse
import csv
import random
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest
from benchmarks.fit_profiles import read_rows
from scheduler.profiles import load_profile

DATA = Path(__file__).parents[1] / "data" / "measured_serving.csv"
ROUNDS = 3
"""Requests per place of a closed loop that are measured, after a first one that only spreads the starts."""


class Point(NamedTuple):
    """One figure of one row."""

    series: str
    phase: str
    measured_s: float
    predicted_s: float


def main() -> None:
    """Play all rows, print errors by series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true")
    given = parser.parse_args()
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [point for row in rows if row["precision"] != "fp8" for point in play(row, given.seed, given.together)]
    points += end_to_end()
    print_errors(points, given.seed)
    print_ratios([row for row in rows if row["precision"] == "fp8"], given.seed)


def play(row: dict[str, str], seed: int, together: bool) -> list[Point]:
    """A row's TTFT and TPOT beside the engine model's."""
    shape = [int(row[name]) for name in ("concurrency", "input_tokens", "output_tokens")]
    predicted = simulated(row["gpu"], row["model"], row["kind"], *shape, seed, together)
    if predicted is None:
        return []
    series = f"{row['source']} {row['engine']} {row['gpu']} {row['model']}"
    pairs = zip(("ttft", "tpot"), (row["ttft_s"], row["tpot_s"]), predicted, strict=True)
    return [Point(series, phase, float(seen), value) for phase, seen, value in pairs if seen and value]


def simulated(
    gpu: str,
    model: str,
    kind: str,
    concurrency: int,
    tokens_in: int,
    tokens_out: int,
    seed: int,
    together: bool = False,
) -> tuple[float, float | None] | None:
    """Mean TTFT and TPOT on the engine model; None for a shape that its KV cache cannot hold even once."""
    engine = Engine(load_profile(gpu, model))
    if tokens_in + tokens_out > engine.pool.total * engine.block_tokens:
        return None
    draw, per_place = random.Random(seed), 1 if kind == "batch" else ROUNDS + 1
    began_s: dict[str, float] = {}
    first_s: dict[str, float] = {}
    ttfts_s: list[float] = []
    tpots_s: list[float] = []
    now_s = 0.0

    def add(place: int, number: int) -> None:
        spread = kind != "batch" and number == 0 and not together
        length = draw.randint(1, tokens_out) if spread else tokens_out
        name = f"{place}/{number}"
        engine.add(EngineRequest(request_id=name, prompt_tokens=tokens_in, output_tokens=length))
        began_s[name] = now_s

    for place in range(concurrency):
        add(place, 0)
    while began_s:
        result = engine.step(now_s)
        now_s += result.duration_s
        for name in result.emitted:
            first_s.setdefault(name, now_s)
        for name in result.finished:
            place, number = map(int, name.split("/"))
            if number or kind == "batch":
                ttfts_s.append(first_s[name] - began_s[name])
                if tokens_out > 1:
                    tpots_s.append((now_s - first_s[name]) / (tokens_out - 1))
            del began_s[name]
            if number + 1 < per_place:
                add(place, number + 1)
    # A batch's prompt time is that of the whole batch, a closed loop's that of a request.
    return max(ttfts_s) if kind == "batch" else mean(ttfts_s), mean(tpots_s) if tpots_s else None


def end_to_end() -> list[Point]:
    """The rows that the profiles' calibration was fitted to, predicted by the profiles as shipped."""
    found = []
    for row in read_rows():
        if "e2e" in row.what:
            gpu, model = row.series.split()[1:]
            profile = load_profile(gpu, model)
            predicted_s = profile.calibration * row.kernel_s + profile.overhead_per_sequence_s * row.sequence_steps
            found.append(Point(f"{row.series} (fitted to)", "e2e", row.measured_s, predicted_s))
    return found


def print_errors(points: list[Point], seed: int) -> None:
    """By series and phase: rows held out, error as shipped, the factor of the other half, error with it."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        groups[point.series, point.phase].append(point)
    print(f"{'series':58}{'phase':6}{'held out':>9}{'MAPE':>8}{'factor':>8}{'MAPE with it':>14}")
    for (series, phase), members in sorted(groups.items()):
        shuffled = random.Random(seed).sample(members, len(members))
        half = len(shuffled) // 2
        fitted, held_out = shuffled[:half], shuffled[half:]
        factor = median(point.measured_s / point.predicted_s for point in fitted) if fitted else None
        line = f"{series:58}{phase:6}{len(held_out):9}{_mape(held_out, 1.0):8.1%}"
        print(line + (f"{factor:8.2f}{_mape(held_out, factor):14.1%}" if factor else f"{'-':>8}{'-':>14}"))


def print_ratios(rows: list[dict[str, str]], seed: int) -> None:
    """FP8 on H100 and H200 at equal shapes: measured ratio of their times beside the BF16 profiles'."""
    shapes: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        names = ("model", "engine", "tp", "concurrency", "input_tokens", "output_tokens")
        shapes[tuple(row[name] for name in names)][row["gpu"]] = row
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for (model, engine, tp, *sizes), by_gpu in shapes.items():
        both = [simulated(gpu, model, "closed_loop", *map(int, sizes), seed) for gpu in ("h100", "h200")]
        for index, phase in enumerate(("ttft_s", "tpot_s")):
            predicted = [times[index] if times else None for times in both]
            if all(predicted) and len(by_gpu) == 2:
                seen = float(by_gpu["h100"][phase]) / float(by_gpu["h200"][phase])
                found[f"{model} FP8 {engine} TP{tp}", phase[:4]].append((seen, predicted[0] / predicted[1]))
    print("\nH100 time / H200 time, measured in FP8 against the model's in BF16 (medians over shapes)")
    for (series, phase), ratios in sorted(found.items()):
        seen, ours = (median(values) for values in zip(*ratios, strict=True))
        print(f"{series:58}{phase:6}{len(ratios):9}   measured {seen:5.2f}   model {ours:5.2f}")


def _mape(points: list[Point], factor: float) -> float:
    return mean(abs(factor * point.predicted_s / point.measured_s - 1) for point in points)


if __name__ == "__main__":
    main()
