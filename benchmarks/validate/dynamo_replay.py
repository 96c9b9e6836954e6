"""Dynamo's offline replay of a trace file, as JSON on standard output. Runs in an environment that holds ai-dynamo.

    python dynamo_replay.py TRACE.jsonl JOB.json

JOB holds the engine's sizes and the grid of its step times: against_dynamo.py writes it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from dynamo.replay.api import run_trace_replay


def main() -> None:
    """Replay and print what each request took."""
    trace, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        grid = Path(folder) / "steps.npz"
        np.savez(grid, **{name: np.array(values, dtype=float) for name, values in job["grid"].items()})
        engine = {
            "backend": "vllm",
            "worker_type": "aggregated",
            "num_gpu_blocks": job["kv_blocks"],
            "block_size": job["block_tokens"],
            "max_num_seqs": job["max_num_seqs"],
            "max_num_batched_tokens": job["max_batched_tokens"],
            "enable_prefix_caching": True,
            "enable_chunked_prefill": True,
            "timing_model": {"type": "external", "provider": "dynamo_profile", "config": {"path": str(grid)}},
        }
        began_s = time.perf_counter()
        report = run_trace_replay(
            trace,
            extra_engine_args={"engine": engine},
            num_workers=job["workers"],
            router_mode="round_robin",
            trace_block_size=job["trace_block_tokens"],
            capture_per_request=True,
        )
        wall_s = time.perf_counter() - began_s
    names = ("arrival_time_ms", "ttft_ms", "e2e_latency_ms", "output_length", "input_length", "reused_input_tokens")
    rows = [{name: row[name] for name in names} for row in report.per_request]
    json.dump({"wall_s": wall_s, "rows": rows}, sys.stdout)


if __name__ == "__main__":
    main()
