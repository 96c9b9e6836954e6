"""What is a worker told when it starts? Its engine, its GPU, its broker, and what it should not find out by itself."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from agentserve.errors import BadInput
from agentserve.workers.compatibility import MAX_GROUP_CHARS
from agentserve.workers.kinds import AUTO
from scheduler.events import Role
from scheduler.profiles import ProfileBook

_MAX_URL_CHARS = 512
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")


def check_url(url: str) -> None:
    """Raise BadInput for a URL that no engine can have."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise BadInput("engine URL: host or port cannot be read") from None
    if parts.username or parts.password:
        raise BadInput("engine URL: must not hold credentials, since it is announced to the cluster")
    if not good or len(url) > _MAX_URL_CHARS:
        raise BadInput(f"engine URL {url[:80]!r}: must be http://host:port or https://host:port")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """An engine and the facts about it that are given; None: ask the engine, then the GPU profile or a default.

    `kv_transfer` True or False settles whether it can hand over KV; `kv_link_bytes_per_s` is the link's bandwidth.
    """

    engine_url: str
    """The engine's base URL, as the gateway will call it."""
    gpu: str
    model: str | None = None
    """Served model name; None: the engine's only one."""
    engine: str = AUTO
    """Kind of the engine, as adapters name it; `auto`: found out."""
    role: Role | None = None
    """Phases that it may serve; None: those that the engine is set up for, else both."""
    speed: float = 1.0
    kv_capacity_tokens: int | None = None
    block_tokens: int | None = None
    max_num_seqs: int | None = None
    max_batched_tokens: int | None = None
    kv_bytes_per_token: int | None = None
    kv_link_bytes_per_s: float | None = None
    kv_transfer: bool | None = None
    kv_group: str | None = None
    """Instances of equal group may hand KV to each other; None: made of what the engine reports."""
    supports_priority: bool | None = None
    """It orders calls by priority; None: found out."""
    supports_replay: bool | None = None
    """It goes on from token ids; None: found out."""
    profiles: ProfileBook = field(default=ProfileBook(), repr=False)
    """The shipped GPU profiles and the user's own."""
    worker_id: str | None = None
    """Instance id; None: made of the GPU and the engine's address, so that a restarted worker keeps it."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer token that the engine asks for."""
    request_timeout_s: float = 1.0
    """For each question to the engine, but for those that follow."""
    probe_timeout_s: float = 30.0
    """For the one-token completions that find out what the engine can do."""
    ready_timeout_s: float | None = None
    """Give up on an engine that is not ready after this long; None: wait for ever."""

    def __post_init__(self) -> None:
        """Raises BadInput naming the field."""
        check_url(self.engine_url)
        if self.worker_id is not None and not _NAME.match(self.worker_id):
            raise BadInput(f"worker id {self.worker_id!r}: 1 to 64 letters, digits, '_', '.' or '-'")
        if self.kv_group is not None and not (
            self.kv_group.isprintable() and 0 < len(self.kv_group) <= MAX_GROUP_CHARS
        ):
            raise BadInput(f"kv-group {self.kv_group[:80]!r}: must be 1 to {MAX_GROUP_CHARS} printable characters")
        for name in ("speed", "kv_capacity_tokens", "block_tokens", "max_num_seqs", "max_batched_tokens",
                     "kv_bytes_per_token", "kv_link_bytes_per_s", "request_timeout_s", "probe_timeout_s"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"{name.replace('_', '-')} {value}: must be above 0 and finite")

    @property
    def instance_id(self) -> str:
        """The given worker id, or one made of GPU, host and port."""
        if self.worker_id is not None:
            return self.worker_id
        parts = urlsplit(self.engine_url)
        return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{self.gpu}-{parts.hostname}-{parts.port or parts.scheme}")[:64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(EngineConfig):
    """A worker process: its engine, and how it reports."""

    mqtt_url: str = field(default="mqtt://127.0.0.1:1883", repr=False)
    mqtt_ca_file: Path | None = None
    """Certificates that sign the broker's, with `mqtts://`; `AGENTSERVE_MQTT_CA_FILE`."""
    key: str | None = field(default=None, repr=False)
    """With what it signs its messages; `AGENTSERVE_WORKER_KEY`."""
    cluster: str = "default"
    report_interval_s: float = 0.2
    """Time between signs of life, and the shortest between two readings of the engine's metrics."""
    recheck_interval_s: float = 5.0
    """How often model and version are asked for again."""
    drain_timeout_s: float = 30.0
    """How long a stopping worker waits for its engine to become idle."""
    handle_signals: bool = True
    """SIGTERM and SIGINT drain and stop; a second one stops at once."""

    def __post_init__(self) -> None:
        """Raises BadInput naming the field."""
        EngineConfig.__post_init__(self)
        if not _NAME.match(self.cluster):
            raise BadInput(f"cluster {self.cluster!r}: 1 to 64 letters, digits, '_', '.' or '-'")
        for name in ("report_interval_s", "recheck_interval_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name.replace('_', '-')} {getattr(self, name)}: must be above 0 and finite")
        if not self.drain_timeout_s >= 0:
            raise BadInput(f"drain-timeout {self.drain_timeout_s}: must not be negative")
