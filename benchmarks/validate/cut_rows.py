"""How was benchmarks/data/measured_serving.csv cut? Rows that speak of our GPUs and models, unchanged but for units.

    python -m benchmarks.validate.cut_rows SILICON.csv.gz SPLITWISE.csv ARGONNE_TTFT.csv

The files are aiconfigurator's measured serving rows (a sample), Splitwise's perf_model.csv and LLM-Inference-Bench's
ttft_itl.csv; benchmarks/data/README.md names commits and licences. Splitwise's repeats of a shape become their median.
"""

import csv
import gzip
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

OUT = Path(__file__).parents[1] / "data" / "measured_serving.csv"
COLUMNS = (
    "source", "gpu", "model", "precision", "engine", "tp", "kind", "concurrency", "input_tokens", "output_tokens",
    "ttft_s", "tpot_s",
)  # fmt: skip
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
}
OUR_TP = {"llama-3.1-8b": 1, "qwen3-32b": 2, "llama-3.1-70b": 4}


def main() -> None:
    """Write the rows."""
    silicon, splitwise, argonne = (Path(name) for name in sys.argv[1:4])
    rows = [*_silicon(silicon), *_splitwise(splitwise), *_argonne(argonne)]
    with OUT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    print(f"{len(rows)} rows in {OUT}")


def _silicon(path: Path) -> Iterator[tuple[object, ...]]:
    """Closed loops at a concurrency: BF16 at our tensor parallelism; FP8 where H100 and H200 share a shape."""
    with gzip.open(path, "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model_path"] in MODELS and row["mode"] == "agg"]
    seen: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        seen[_shape(row)].add(row["system"])
    for row in sorted(rows, key=lambda row: (_shape(row), row["system"])):
        model = MODELS[row["model_path"]]
        is_ours = row["precision"] == "" and float(row["tp_size"]) == OUR_TP[model]
        if not is_ours and not (row["precision"] == "fp8" and len(seen[_shape(row)]) == 2):
            continue
        gpu = row["system"].removesuffix("_sxm")
        precision = row["precision"] or "bf16"
        times = (f"{float(row[f'silicon_{name}_ms']) / 1e3:.6g}" for name in ("ttft", "tpot"))
        yield ("aiconfigurator", gpu, model, precision, row["backend"], int(float(row["tp_size"])), "closed_loop",
               int(float(row["batch_size"])), row["isl"], row["osl"], *times)  # fmt: skip


def _shape(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("model_path", "precision", "backend", "tp_size", "isl", "osl", "batch_size"))


def _splitwise(path: Path) -> Iterator[tuple[object, ...]]:
    """Batches that start together; Llama-2-70B has the layers and heads of Llama-3.1-70B."""
    found: dict[tuple[str, int, int, int], list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] == "llama2-70b" and row["tensor_parallel"] == "4":
                shape = (row["hardware"], int(row["batch_size"]), int(row["prompt_size"]), int(row["token_size"]))
                found[shape].append((float(row["prompt_time"]), float(row["token_time"])))
    for (hardware, batch, tokens_in, tokens_out), times in sorted(found.items()):
        gpu = {"a100-80gb": "a100-80g", "h100-80gb": "h100"}[hardware]
        ttft_s, tpot_s = (f"{median(values) / 1e3:.6g}" for values in zip(*times, strict=True))
        yield ("splitwise", gpu, "llama-3.1-70b", "fp16", "vllm-2023", 4, "batch", batch, tokens_in, tokens_out,
               ttft_s, tpot_s)  # fmt: skip


def _argonne(path: Path) -> Iterator[tuple[object, ...]]:
    """First tokens of a batch of 16 × 1,024 on vLLM and TensorRT-LLM."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            gpu = {"Nvidia A100 GPU": "a100-80g", "Nvidia H100 GPU": "h100"}.get(row["Hardware"])
            if gpu and row["Model"].endswith("Meta-Llama-3-8B") and row["Framework"] in ("vLLM", "TensorRT-LLM"):
                yield ("argonne", gpu, "llama-3.1-8b", "bf16", row["Framework"].lower(), 1, "batch",
                       row["Batch Size"], row["Input Length"], 1, f"{float(row['TTFT Latency']):.6g}", "")  # fmt: skip


if __name__ == "__main__":
    main()
