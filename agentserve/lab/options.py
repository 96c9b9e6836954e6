"""What can be told to a simulation beside the workload? Instances with what the scheduler does not know, and faults."""

from dataclasses import dataclass
from enum import StrEnum

from agentserve.errors import BadInput
from scheduler.events import InstanceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedInstance:
    """`spec` is what the scheduler is told; `slowdown` is not: iterations take so many times as long."""

    spec: InstanceSpec
    slowdown: float = 1.0


class FaultKind(StrEnum):
    """What may happen to an instance."""

    LOST = "lost"
    """It dies; its calls go on elsewhere."""
    BACK = "back"
    """It comes back, with nothing cached."""
    SLOW = "slow"
    """From now on iterations take `factor` times as long (1: as before)."""
    DRAIN = "drain"
    """It takes no new work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that happens to an instance at a time."""

    at_s: float
    instance_id: str
    kind: FaultKind
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """How the live system's edges are played."""

    report_period_s: float = 0.2
    """Telemetry is read this often …"""
    report_delay_s: float = 0.1
    """… and comes so much later."""
    relay_s: float = 0.003
    """From the gateway's decision to the engine's queue."""
    progress_s: float = 1.0
    """How often the scheduler hears of streamed tokens (live: every 0.1 s or 16 tokens)."""
    engine_priority: bool = True
    """Engines order their queues by the priority of the dispatch."""
    engine_block_tokens: int = 64
    """KV block."""
    length_error: float = 1.0
    """Factor on all that the length predictor learns."""
    faults: tuple[Fault, ...] = ()
    max_virtual_s: float = 1e7

    def __post_init__(self) -> None:
        for name in ("report_period_s", "progress_s", "engine_block_tokens", "length_error", "max_virtual_s"):
            if not 0 < getattr(self, name) < 1e12:
                raise BadInput(f"simulation: {name} is {getattr(self, name)}; expected a positive number")
        for name in ("report_delay_s", "relay_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise BadInput(f"simulation: {name} is {getattr(self, name)}; expected 0 or more")
