"""What an emulated engine is: its GPU and model, its limits, its pace, and where it listens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agentserve.errors import BadInput
from scheduler.errors import UnknownProfile
from scheduler.profiles import GpuProfile, ProfileBook

DEFAULT_MAX_MODEL_LEN = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorConfig:
    """One emulated engine and its server. Raises BadInput, naming the field, when built with a bad value.

    `port` 0 takes a free one. `speed` 20 makes engine time run twenty times faster than wall time. `model` None serves
    the profile's model under its own name; `served_model` is the name clients use. `script` is a JSONL file of replies
    (see replies.py). `kv_capacity_tokens` and `kv_link_bytes_per_s` None take the profile's. `stream_interval` is how
    many tokens a stream's chunk holds at least, once the first is out. `chaos` opens the endpoint that slows it down.
    """

    gpu: str = "h100"
    model: str = "llama-3.1-8b"
    served_model: str | None = None
    """The name that clients use; None: the profile's."""
    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    seed: int = 0
    script: Path | None = None
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    block_tokens: int = 16
    """Tokens of a KV block."""
    max_model_len: int | None = None
    """Most tokens of prompt and reply together; None: 131,072, or what the KV cache holds."""
    kv_capacity_tokens: int | None = None
    kv_link_bytes_per_s: float | None = None
    kv_lease_s: float = 30.0
    """Wall seconds that KV stays pinned on a prefill instance for a decode instance to fetch."""
    stream_interval: int = 1
    max_body_bytes: int = 16 * 2**20
    """A longer body is refused with 413."""
    chaos: bool = False
    profiles: ProfileBook = field(default=ProfileBook(), repr=False)
    """The shipped GPU profiles and the user's own."""

    def __post_init__(self) -> None:
        """Refuse values that no engine could run with."""
        self._check_choices()
        self._check_ranges()

    @property
    def profile(self) -> GpuProfile:
        """The GPU profile that times every iteration."""
        return self.profiles(self.gpu, self.model)

    @property
    def model_name(self) -> str:
        """The model's name on the wire."""
        return self.served_model or self.model

    @property
    def capacity_tokens(self) -> int:
        """KV cache size, in whole blocks."""
        tokens = self.profile.kv_capacity_tokens if self.kv_capacity_tokens is None else self.kv_capacity_tokens
        return tokens - tokens % self.block_tokens

    @property
    def context_limit(self) -> int:
        """Most tokens, prompt and reply together, that one request may have."""
        return min(self.max_model_len or DEFAULT_MAX_MODEL_LEN, self.capacity_tokens)

    @property
    def link_bytes_per_s(self) -> float:
        """One-way bandwidth of the KV link."""
        return self.profile.kv_link_bytes_per_s if self.kv_link_bytes_per_s is None else self.kv_link_bytes_per_s

    def _check_choices(self) -> None:
        try:
            self.profiles(self.gpu, self.model)
        except UnknownProfile as error:
            raise BadInput(f"emulator: {error}") from None
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise BadInput(f"emulator: scheduling_policy {self.scheduling_policy!r}; known: fcfs, priority")
        if self.role not in ("mixed", "prefill", "decode"):
            raise BadInput(f"emulator: role {self.role!r}; known: mixed, prefill, decode")
        if self.script is not None and not self.script.is_file():
            raise BadInput(f"emulator: script {str(self.script)!r} is not a file")

    def _check_ranges(self) -> None:
        if not 0 <= self.port <= 65535:
            raise BadInput(f"emulator: port {self.port} is not within 0..65535")
        positive = {
            "speed": self.speed,
            "max_num_seqs": self.max_num_seqs,
            "max_batched_tokens": self.max_batched_tokens,
            "block_tokens": self.block_tokens,
            "max_model_len": self.max_model_len,
            "kv_link_bytes_per_s": self.kv_link_bytes_per_s,
            "kv_lease_s": self.kv_lease_s,
            "stream_interval": self.stream_interval,
            "max_body_bytes": self.max_body_bytes,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"emulator: {name} is {value}, but must be above 0 and finite")
        if not self.link_bytes_per_s > 0:
            raise BadInput("emulator: kv_link_bytes_per_s is not in the GPU's profile and must be given")
        if self.capacity_tokens < self.block_tokens:
            raise BadInput(f"emulator: kv_capacity_tokens {self.kv_capacity_tokens} is less than one block")
