"""How were the bundled traces cut? From the published ones, by rule and seed, rows unchanged.

    python benchmarks/cut_slices.py CODING_AGENT_SESSIONS.jsonl.gz AZURE_CONV.csv.gz [--out agentserve/lab/data]

The first file is callanjfox/kv-cache-tester's trace set as JSON lines, one session a line; the second Azure's
AzureLLMInferenceTrace_conv.csv. Of the sessions, a seeded sample is taken of those whose prompts all fit 128K tokens
and which hold at least two requests, plus the first few with sub-agents among them. Of the arrivals, the first rows.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

MAX_PROMPT_TOKENS = 128 * 1024
SESSIONS = 72
SESSIONS_WITH_SUBAGENTS = 3
ARRIVALS = 2400
SEED = 0


def main() -> None:
    """Cut both slices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sessions", type=Path)
    parser.add_argument("arrivals", type=Path)
    parser.add_argument("--out", type=Path, default=Path("agentserve/lab/data"))
    given = parser.parse_args()
    lines = gzip.decompress(given.sessions.read_bytes()).splitlines(keepends=True)
    fitting = [line for line in lines if fits(json.loads(line))]
    nested = [line for line in fitting if b'"type":"subagent"' in line.replace(b" ", b"")][:SESSIONS_WITH_SUBAGENTS]
    plain = [line for line in fitting if line not in nested]
    chosen = set(random.Random(SEED).sample(plain, min(SESSIONS - len(nested), len(plain))) + nested)
    write(given.out / "coding_agent_sessions.jsonl.gz", [line for line in lines if line in chosen])
    rows = gzip.decompress(given.arrivals.read_bytes()).splitlines(keepends=True)
    write(given.out / "azure_conv_arrivals.csv.gz", rows[: ARRIVALS + 1])
    print(f"{len(chosen)} of {len(lines)} sessions ({len(fitting)} fit), {ARRIVALS} of {len(rows) - 1} arrivals")


def fits(session: dict) -> bool:
    """Whether every prompt of the session, sub-agents included, fits the context of the models simulated."""
    requests = session["requests"]
    flat = [inner for entry in requests for inner in (entry["requests"] if entry["type"] == "subagent" else [entry])]
    return len(flat) >= 2 and all(request["in"] <= MAX_PROMPT_TOKENS for request in flat)


def write(path: Path, lines: list[bytes]) -> None:
    """Write gzip that is the same for the same lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(lines), compresslevel=9, mtime=0))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
