"""How were the bundled traces cut? From the published ones, by rule and seed, rows unchanged.

    python benchmarks/cut_slices.py FOLDER [--out agentserve/lab/data]

FOLDER holds the published traces, any of them, plain or gzip: `claude_code_sessions.jsonl` (one session a line, of
callanjfox/kv-cache-tester), `mooncake_conversation*.jsonl` (kvcache-ai/Mooncake), `azure2023_conv*.csv` and
`azure2023_code*.csv` (Azure/AzurePublicDataset), `servegen_m-small_client_windows.csv` (alibaba/ServeGen's client
windows as one table).

Coding-agent sessions: the first file is a seeded sample of those whose prompts all fit 128K tokens and which hold at
least two requests, plus the first few with sub-agents among them; the second is a seeded sample of all others, so that
the two are disjoint. Mooncake and Azure: the first rows. ServeGen: the windows of four hours in which the client calls.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

MAX_PROMPT_TOKENS = 128 * 1024
SESSIONS = 72
SESSIONS_WITH_SUBAGENTS = 3
MORE_SESSIONS = 160
MOONCAKE_ROWS = 5_800
AZURE_ROWS = 10_200
SERVEGEN_S = (43_200, 57_600)
"""From a window in which the clients' lengths are given, to the next such one's before last."""
SEED = 0


def main() -> None:
    """Cut every slice whose trace is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("agentserve/lab/data"))
    given = parser.parse_args()
    for pattern, cut in CUTS.items():
        for path in sorted(given.folder.glob(pattern + "*")):
            lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines(True)
            for name, kept in cut(lines).items():
                write(given.out / name, kept)


def sessions(lines: list[bytes]) -> dict[str, list[bytes]]:
    """Two disjoint samples: short sessions, and any others."""
    fitting = [line for line in lines if fits(json.loads(line))]
    nested = [line for line in fitting if b'"type":"subagent"' in line.replace(b" ", b"")][:SESSIONS_WITH_SUBAGENTS]
    plain = [line for line in fitting if line not in nested]
    first = set(random.Random(SEED).sample(plain, min(SESSIONS - len(nested), len(plain))) + nested)
    others = [line for line in lines if line not in first]
    second = set(random.Random(SEED).sample(others, min(MORE_SESSIONS, len(others))))
    return {
        "coding_agent_sessions.jsonl.gz": [line for line in lines if line in first],
        "coding_agent_sessions_2.jsonl.gz": [line for line in lines if line in second],
    }


def fits(session: dict) -> bool:
    """Whether every prompt of the session, sub-agents included, fits the context of the models simulated."""
    requests = session["requests"]
    flat = [inner for entry in requests for inner in (entry["requests"] if entry["type"] == "subagent" else [entry])]
    return len(flat) >= 2 and all(request["in"] <= MAX_PROMPT_TOKENS for request in flat)


def servegen(lines: list[bytes]) -> dict[str, list[bytes]]:
    """The windows of a part of one day in which the client calls."""
    rows = [(line, line.split(b",")) for line in lines[1:]]
    kept = [line for line, cells in rows if float(cells[2]) > 0 and SERVEGEN_S[0] <= float(cells[1]) < SERVEGEN_S[1]]
    return {"servegen_windows.csv.gz": [lines[0], *kept]}


CUTS = {
    "claude_code_sessions.jsonl": sessions,
    "mooncake_conversation": lambda lines: {"mooncake_conversation.jsonl.gz": lines[:MOONCAKE_ROWS]},
    "azure2023_conv": lambda lines: {"azure_conv_arrivals.csv.gz": lines[: AZURE_ROWS + 1]},
    "azure2023_code": lambda lines: {"azure_code_arrivals.csv.gz": lines[: AZURE_ROWS + 1]},
    "servegen_m-small_client_windows.csv": servegen,
}


def write(path: Path, lines: list[bytes]) -> None:
    """Write gzip that is the same for the same lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(lines), compresslevel=9, mtime=0))
    print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
