"""Which engine instances are there, and how are they reached? The orchestrator's own list, one entry per instance."""

from dataclasses import dataclass, field
from typing import Any

from agentserve.engines.adapter import EngineAdapter
from agentserve.orchestrator.gate import Gate
from scheduler.events import InstanceSpec


def gate_for(spec: InstanceSpec) -> Gate | None:
    """A gate for an engine without priorities, as wide as its batch; None for one that orders calls itself."""
    return None if spec.supports_priority else Gate(spec.max_num_seqs)


@dataclass(slots=True)
class Instance:
    """One engine as the orchestrator reaches it; `state` is online, draining or lost."""

    spec: InstanceSpec
    url: str
    engine: str
    adapter: EngineAdapter
    kv_address: str | None = None
    """Where decode legs meet its prefill legs, if that is not part of a handoff."""
    gate: Gate | None = None
    """Keeps the order of calls where the engine does not."""
    state: str = "online"
    reason: str | None = None
    drained: bool = False
    """It took no new work any more when it went: it left, rather than broke."""
    reported: dict[str, Any] = field(default_factory=dict)

    def is_reached_as(self, spec: InstanceSpec, url: str, engine: str, kv_address: str | None) -> bool:
        """Whether the present adapter serves an instance of these facts too."""
        here = (self.url, self.engine, self.kv_address, self.spec.supports_priority)
        return here == (url, engine, kv_address, spec.supports_priority)

    @property
    def is_live(self) -> bool:
        """Whether calls may run there."""
        return self.state != "lost"

    def to_plain(self) -> dict[str, Any]:
        """For people and programs that look at the cluster."""
        spec = self.spec
        return {
            "instance_id": spec.instance_id,
            "model": spec.model,
            "gpu": spec.gpu,
            "role": str(spec.role),
            "state": self.state,
            "reason": self.reason,
            "drained": self.drained,
            "engine": self.engine,
            "url": self.url,
            "speed": spec.speed,
            "kv_capacity_tokens": spec.kv_capacity_tokens,
            "held_back": self.gate.waiting if self.gate is not None else 0,
            "reported": self.reported or None,
        }
