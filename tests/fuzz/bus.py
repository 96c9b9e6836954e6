"""Target: what comes over MQTT, as the gateway's registry and its scheduler take it, and as a worker takes it."""

import itertools
from typing import Any

import orjson
from pydantic import ValidationError

from agentserve.telemetry.messages import Announce, Control, Report
from agentserve.workers.registry import Registry
from scheduler.core import make_scheduler
from scheduler.events import InstanceDraining, InstanceJoined, InstanceLost, InstanceReported, InstanceSpec
from tests.fuzz.mutations import case
from tests.fuzz.target import Target

ANNOUNCE = {
    "worker_id": "w-1",
    "boot_id": "b1",
    "engine_url": "http://127.0.0.1:8000",
    "engine": "vllm",
    "engine_version": "0.32.0",
    "model": "llama-3.1-8b",
    "gpu": "h100",
    "role": "mixed",
    "kv_capacity_tokens": 400_000,
    "block_tokens": 16,
    "max_num_seqs": 256,
    "max_batched_tokens": 8192,
    "kv_bytes_per_token": 131_072,
    "kv_link_bytes_per_s": 5e10,
    "kv_group": "g",
    "kv_address": "127.0.0.1:8998",
    "speed": 1.0,
    "supports_priority": True,
    "supports_replay": True,
}
REPORT = {
    "worker_id": "w-1",
    "boot_id": "b1",
    "seq": 1,
    "measured_at_s": 100.0,
    "healthy": True,
    "running": 3,
    "waiting": 0,
    "kv_usage": 0.4,
    "prefix_hit_rate": 0.5,
    "prefill_tokens_per_s": 5000.0,
    "decode_tokens_per_s": 900.0,
    "preemptions": 0,
}
STATUS = {"worker_id": "w-1", "boot_id": "b1", "state": "draining"}
PREFIX = "agentserve/v1/default/workers/"
EXAMPLES: list[dict[str, Any]] = [
    {"topic": f"{PREFIX}w-1/announce", "payload": ANNOUNCE},
    {"topic": f"{PREFIX}w-1/report", "payload": REPORT},
    {"topic": f"{PREFIX}w-1/status", "payload": STATUS},
    {"topic": f"{PREFIX}w-1/control", "payload": {"action": "drain"}},
]


class _Gateway:
    """A registry that drives a real scheduler, as the gateway's does."""

    def __init__(self) -> None:
        self._scheduler = make_scheduler("agentserve")
        self._ids = itertools.count()
        self.registry = Registry(
            "default",
            1.5,
            on_joined=self._joined,
            on_reported=self._reported,
            on_draining=self._draining,
            on_lost=self._lost,
        )
        for channel, payload in (("announce", ANNOUNCE), ("report", REPORT)):
            self.registry.handle_message(f"{PREFIX}w-1/{channel}", orjson.dumps(payload), 100.0)

    def _handle(self, kind: Any, **fields: Any) -> None:
        self._scheduler.handle(kind(event_id=f"e{next(self._ids)}", **fields), 100.0)

    def _joined(self, spec: InstanceSpec, announce: Announce) -> None:
        self._handle(InstanceJoined, instance=spec)

    def _reported(self, report: Report) -> None:
        figures = report.model_dump(exclude={"worker_id", "boot_id", "seq", "healthy"})
        self._handle(InstanceReported, instance_id=report.worker_id, **figures)

    def _draining(self, worker_id: str) -> None:
        self._handle(InstanceDraining, instance_id=worker_id)

    def _lost(self, worker_id: str, reason: str) -> None:
        self._handle(InstanceLost, instance_id=worker_id, reason=reason)


def _make(draw: bytes) -> bytes:
    if draw[1] % 4 == 3:
        return b"\n" + case([each["payload"] for each in EXAMPLES], draw)
    example = EXAMPLES[draw[0] % len(EXAMPLES)]
    return example["topic"].encode() + b"\n" + case([example["payload"]], draw)


def _take(given: bytes) -> None:
    registry = _Gateway().registry
    topic, _, payload = given.partition(b"\n")
    topics = [topic.decode()] if topic else [example["topic"] for example in EXAMPLES]
    for each in topics:
        registry.handle_message(each, payload, 100.0)
    registry.tick(100.1, True)
    try:
        Control.model_validate_json(payload)
    except ValidationError:
        return


TARGETS = (Target("mqtt", _make, _take),)
