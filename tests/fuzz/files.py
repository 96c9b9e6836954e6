"""Targets: the files that people write or bring: scenarios, fleets, GPU profiles, traces, and settings."""

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from agentserve.errors import AgentServeError
from agentserve.lab.scenario import SHIPPED, read_scenario
from agentserve.lab.workloads import WorkloadOptions, load_workload
from agentserve.local.fleet import read_fleet
from agentserve.profile_files import read_profiles
from agentserve.settings import load_settings
from scheduler.errors import SchedulerError
from tests.fuzz.mutations import HOSTILE, changed_bytes
from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
DATA = ROOT / "agentserve" / "lab" / "data"
PROFILES = ROOT / "scheduler" / "profiles"


def _toml_value(value: object) -> bytes:
    if isinstance(value, str):
        return (
            b'"'
            + value.encode("utf-8", "replace").replace(b"\\", b"").replace(b'"', b"").replace(b"\n", b"")[:400]
            + b'"'
        )
    if isinstance(value, bool):
        return str(value).lower().encode()
    return str(value).replace("None", '""').replace("'", '"').encode()[:1200]


def _changed_toml(raw: bytes, draw: bytes) -> bytes:
    """Two of four times values are replaced by hostile ones, once lines are dropped, repeated or moved, once bytes."""
    if draw[1] % 4 == 0:
        return changed_bytes(raw, draw)
    lines = raw.split(b"\n")
    for at in range(2, len(draw) - 3, 4):
        a, b, c, d = draw[at : at + 4]
        place = (a * 256 + b) % len(lines)
        key, is_value, _ = lines[place].partition(b"=")
        if draw[1] % 4 == 1:
            line = lines.pop(place) if c % 3 == 0 and len(lines) > 1 else lines[place]
            lines.insert(d % (len(lines) + 1), line)
        elif is_value:
            lines[place] = key + b"= " + _toml_value(HOSTILE[(c * 256 + d) % len(HOSTILE)])
        else:
            lines[place] = lines[place] + b"\n" + [b"[x]", b"[[workers]]", b"a.b = 1", b"x = {a = 1}"][d % 4]
    return b"\n".join(lines)


@contextmanager
def _file(content: bytes, name: str) -> Iterator[Path]:
    path = Path(_FOLDER.name) / name
    path.write_bytes(content)
    yield path


_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def _toml(name: str, examples: Sequence[bytes], take: Callable[[Path], object]) -> Target:
    def taken(given: bytes) -> None:
        with _file(given, f"{name}.toml") as path:
            take(path)

    return Target(
        name,
        lambda draw: _changed_toml(examples[draw[0] % len(examples)], draw),
        taken,
        (AgentServeError, SchedulerError),
    )


def _heads(path: Path, count: int) -> bytes:
    with gzip.open(path, "rb") as rows:
        return b"".join(islice(rows, count))


TRACES = [
    *(_heads(path, 2)[:20_000] for path in sorted(DATA.glob("coding_agent_sessions.*"))),
    *(_heads(DATA / name, 4) for name in ("azure_code_arrivals.csv.gz", "mooncake_conversation.jsonl.gz")),
    _heads(DATA / "servegen_windows.csv.gz", 6),
    b'{"input": "hi", "output": "there"}\n{"prompt": "a", "response": "b"}\n',
]


OWN_PROFILE = b"""gpu = "rtx-4090"
model = "llama-3.1-8b"
aliases = ["my-llama"]
prefill_s = [0.01, 4e-5, 1e-9]
decode_s = [0.016, 1e-4, 1e-7]
kv_bytes_per_token = 131072
kv_capacity_tokens = 40000
tensor_parallel = 1

[measured]
engine = "vllm"
prefill_mape = 0.02
"""


def _trace(given: bytes) -> None:
    with _file(given, "trace") as path:
        load_workload(path, WorkloadOptions(limit=20))


def _changed_trace(draw: bytes) -> bytes:
    raw = TRACES[draw[0] % len(TRACES)]
    made = changed_bytes(raw, draw)
    return gzip.compress(made, 1)[: -1 - draw[1] % 9] if draw[1] % 16 == 0 else made


ENVIRONMENT = sorted(
    f"AGENTSERVE_{name.upper()}"
    for name in (
        *("host", "port", "redis_url", "mqtt_url", "cluster", "policy", "mode", "observed_policy", "otlp_endpoint"),
        *("trace_share", "profiles", "engine_api_key", "kv_moves", "event_log", "max_body_bytes", "max_prompt_tokens"),
        *("max_live_calls", "default_slo_s", "max_slo_s", "call_timeout_s", "lost_after_s", "run_ttl_s", "log_level"),
    )
)


def _settings(given: bytes) -> None:
    """Settings from an environment of `NAME=value` lines, which is then put back."""
    lines = (line.partition(b"=") for line in given.split(b"\n") if line)
    env = {name.decode(): value.replace(b"\0", b"").decode("utf-8", "surrogateescape") for name, _, value in lines}
    before = dict(os.environ)
    os.environ.update(env)
    try:
        load_settings()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _changed_settings(draw: bytes) -> bytes:
    rows = []
    for at in range(0, len(draw) - 1, 2):
        name = ENVIRONMENT[draw[at] % len(ENVIRONMENT)]
        value = str(HOSTILE[draw[at + 1] % len(HOSTILE)]).replace("\n", "")[:2000]
        rows.append(name.encode() + b"=" + value.encode("utf-8", "replace"))
    return b"\n".join(rows)


TARGETS = (
    _toml(
        "scenario",
        [path.read_bytes() for path in sorted(SHIPPED.glob("*.toml"))],
        lambda path: read_scenario(str(path)),
    ),
    _toml("fleet", [(ROOT / "examples" / "fleet.toml").read_bytes()], read_fleet),
    _toml("profile", [OWN_PROFILE], lambda path: read_profiles([path])),
    Target("trace", _changed_trace, _trace, (AgentServeError,)),
    Target("settings", _changed_settings, _settings, (AgentServeError,)),
)
