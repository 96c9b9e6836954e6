"""What workers and gateway say to each other over MQTT: topics, and one pydantic model per payload (JSON).

Topics, under `agentserve/v1/<cluster>/workers/<worker_id>/`:
  announce  retained, QoS 1   who I am and what my engine can do
  status    retained, QoS 1   online, draining, or offline (also the last will)
  report    QoS 0, 5 Hz       what my engine reports about itself
  control   QoS 1             gateway → worker: drain, resume
Messages may come twice or out of order: readers are idempotent and drop a report older than the last.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from scheduler.events import InstanceSpec, Role

MAX_PAYLOAD_BYTES: Final = 64 * 1024
WorkerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Channel(StrEnum):
    """Last level of a topic."""

    ANNOUNCE = "announce"
    STATUS = "status"
    REPORT = "report"
    CONTROL = "control"


class Message(BaseModel):
    """Common rules: unknown keys are ignored, so that newer workers can speak to older gateways."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Announce(Message):
    """A worker's facts about its engine. `boot_id` changes whenever the worker restarts."""

    worker_id: WorkerId
    boot_id: str = Field(max_length=64)
    engine_url: str = Field(max_length=512, pattern=r"^https?://")
    engine: str = Field(max_length=64)
    engine_version: str | None = Field(None, max_length=64)
    model: str = Field(max_length=256)
    gpu: str = Field(max_length=64)
    role: Role = Role.MIXED
    kv_capacity_tokens: int = Field(gt=0)
    block_tokens: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    max_batched_tokens: int = Field(gt=0)
    kv_bytes_per_token: int = Field(gt=0)
    kv_link_bytes_per_s: float | None = Field(None, gt=0)
    kv_group: str | None = Field(None, max_length=256)
    kv_address: str | None = Field(None, max_length=256)
    """Where decode legs meet its prefill legs, `host:port`, in dialects that name it beforehand (SGLang)."""
    speed: float = Field(1.0, gt=0)
    supports_priority: bool = False
    supports_replay: bool = False

    def to_spec(self) -> InstanceSpec:
        """The same facts as the scheduler takes them; the worker id is the instance id."""
        return InstanceSpec(
            instance_id=self.worker_id,
            **self.model_dump(exclude={"worker_id", "boot_id", "engine_url", "engine", "engine_version", "kv_address"}),
        )


class Status(Message):
    """Whether the worker takes work; `offline` is also its last will."""

    worker_id: WorkerId
    boot_id: str = Field(max_length=64)
    state: Literal["online", "draining", "offline"]


class Report(Message):
    """One reading of the engine's metrics; None is unknown, not zero. `seq` grows within a boot."""

    worker_id: WorkerId
    boot_id: str = Field(max_length=64)
    seq: int = Field(ge=0)
    measured_at_s: float
    healthy: bool = True
    running: int | None = Field(None, ge=0)
    waiting: int | None = Field(None, ge=0)
    kv_usage: float | None = Field(None, ge=0, le=1)
    prefix_hit_rate: float | None = Field(None, ge=0, le=1)
    prefill_tokens_per_s: float | None = Field(None, ge=0)
    decode_tokens_per_s: float | None = Field(None, ge=0)
    preemptions: int | None = Field(None, ge=0)


class Control(Message):
    """The gateway asks a worker to take no more work, or to take it again."""

    action: Literal["drain", "resume"]


def topic(cluster: str, worker_id: str, channel: Channel) -> str:
    """The topic of one worker's channel; `+` as worker_id makes a filter for all workers."""
    return f"agentserve/v1/{cluster}/workers/{worker_id}/{channel}"
