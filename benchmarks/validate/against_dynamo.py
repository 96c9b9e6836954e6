"""Does Dynamo's offline replay tell the same of a trace as our simulator? The Mooncake slice, round robin, equal GPUs.

    python -m benchmarks.validate.against_dynamo [--rows N] [--instances N] [--keep p0 p2] [--python PYTHON]

Both get the step times of Llama-3.1-8B on H100 as near as Dynamo's form (prefill time by new tokens, decode time by KV
tokens and mean context) allows: without p0, which ours adds to prefill-only steps alone, and without p2, since Dynamo's
has no term for the cached prefix. `--keep` leaves them in. KV blocks are the trace's, 512 tokens. `make validate`
installs the wheels (ai-dynamo and ai-dynamo-runtime, with --no-deps) into an environment of their own.
"""

import argparse
import gzip
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agentserve.lab.options import SimulatedInstance, SimulationOptions
from agentserve.lab.simulation import simulate
from agentserve.lab.workloads import WorkloadOptions, load_workload
from agentserve.records import quantile
from scheduler.events import InstanceSpec
from scheduler.profiles import GpuProfile, load_profile

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "agentserve" / "lab" / "data" / "mooncake_conversation.jsonl.gz"
GPU, MODEL = "h100", "llama-3.1-8b"
BLOCK_TOKENS = 512


def main() -> None:
    """Run both, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-dynamo" / "bin" / "python")
    parser.add_argument("--keep", nargs="*", choices=("p0", "p2"), default=())
    given = parser.parse_args()
    profile = load_profile(GPU, MODEL)
    if "p0" not in given.keep:
        profile = replace(profile, prefill_base_s=0.0)
    if "p2" not in given.keep:
        profile = replace(profile, prefill_per_token2_s=0.0)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        trace.write_bytes(b"".join(gzip.decompress(TRACE.read_bytes()).splitlines(keepends=True)[: given.rows]))
        theirs = dynamo(given.python, trace, profile, given.instances)
        ours = own(trace, profile, given.instances)
    print(f"{given.rows} rows of {TRACE.name}, {given.instances} × {GPU} {MODEL}, round robin\n")
    print(f"{'':24}{'Dynamo':>12}{'agentserve':>12}{'ratio':>8}")
    for name in theirs:
        print(f"{name:24}{theirs[name]:12.3f}{ours[name]:12.3f}{ours[name] / theirs[name]:8.3f}")


def dynamo(python: Path, trace: Path, profile: GpuProfile, instances: int) -> dict[str, float]:
    """Dynamo's figures."""
    job = {
        "workers": instances,
        "block_tokens": BLOCK_TOKENS,
        "trace_block_tokens": BLOCK_TOKENS,
        "kv_blocks": profile.kv_capacity_tokens // BLOCK_TOKENS,
        "max_num_seqs": 256,
        "max_batched_tokens": 8192,
        "grid": grid(profile),
    }
    path = trace.with_suffix(".job")
    path.write_text(json.dumps(job))
    script = Path(__file__).parent / "dynamo_replay.py"
    done = subprocess.run([python, script, trace, path], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"Dynamo's replay failed; {python} needs ai-dynamo (make validate installs it):\n{done.stderr}"
        )
    told = json.loads(done.stdout[done.stdout.index('{"wall_s"') :])
    rows = told["rows"]
    return figures(
        [row["ttft_ms"] / 1e3 for row in rows],
        [row["e2e_latency_ms"] / 1e3 for row in rows],
        sum(row["reused_input_tokens"] for row in rows) / sum(row["input_length"] for row in rows),
        sum(row["output_length"] for row in rows),
        told["wall_s"],
    )


def grid(profile: GpuProfile) -> dict[str, list[object]]:
    """Step times at points; Dynamo interpolates between them."""
    lengths = [0, 1, *np.geomspace(16, 262_144, 60).round().tolist()]
    kv = [0, *np.geomspace(64, profile.kv_capacity_tokens, 120).tolist()]
    contexts = np.geomspace(1, 131_072, 120).tolist()
    return {
        "prefill_isl": lengths,
        "prefill_ttft_ms": [1e3 * profile.prefill_s(tokens) for tokens in lengths],
        "decode_active_kv_tokens": kv,
        "decode_context_length": contexts,
        "decode_itl": [[1e3 * profile.decode_step_s(max(1.0, held / context), held) for context in contexts]
                       for held in kv],
    }  # fmt: skip


def own(trace: Path, profile: GpuProfile, instances: int) -> dict[str, float]:
    """The simulator's figures; no relay, as Dynamo has none."""
    workload = load_workload(trace, WorkloadOptions())
    fleet = [
        SimulatedInstance(
            spec=InstanceSpec(
                instance_id=f"{GPU}-{number}",
                model=MODEL,
                gpu=GPU,
                kv_capacity_tokens=profile.kv_capacity_tokens,
                block_tokens=BLOCK_TOKENS,
                max_num_seqs=256,
                max_batched_tokens=8192,
                kv_bytes_per_token=profile.kv_bytes_per_token,
            )
        )
        for number in range(instances)
    ]
    result = simulate(
        workload,
        {},
        fleet,
        model=MODEL,
        policy="round_robin",
        profiles=lambda _gpu, _model: profile,
        options=SimulationOptions(relay_s=0.0, engine_block_tokens=BLOCK_TOKENS),
    )
    calls = result.replay.calls
    return figures(
        [call.ttft_s or 0.0 for call in calls],
        [call.e2e_s for call in calls],
        sum(call.cached_tokens or 0 for call in calls) / sum(call.prompt_tokens for call in calls),
        sum(call.output_tokens for call in calls),
        result.wall_s,
    )


def figures(
    ttfts_s: Sequence[float], e2es_s: Sequence[float], hit_share: float, output_tokens: int, wall_s: float
) -> dict[str, float]:
    """What is compared."""
    found: dict[str, float] = {}
    for name, values in (("TTFT", ttfts_s), ("E2E", e2es_s)):
        found[f"{name} mean, s"] = sum(values) / len(values)
        for q in (0.5, 0.9, 0.99):
            found[f"{name} p{q * 100:g}, s"] = quantile(values, q) or 0.0
    return found | {
        "prompt share cached": hit_share,
        "output tokens": output_tokens,
        "output tokens per wall s": output_tokens / wall_s,
    }


if __name__ == "__main__":
    main()
