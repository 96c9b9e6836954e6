"""Builders for scheduler tests: instances with round speeds, calls, and a driver that numbers events."""

from dataclasses import replace
from typing import Any

from scheduler.config import EstimateConfig, LengthConfig, SchedulerConfig
from scheduler.core import Scheduler, make_scheduler
from scheduler.decisions import Decision, Dispatch, Migrate, WakeAt
from scheduler.events import (
    Event,
    FirstToken,
    InstanceJoined,
    InstanceSpec,
    Progress,
    RequestArrived,
    RequestFinished,
    Role,
    Woke,
)
from scheduler.profiles.profile import GpuProfile

SPEED = {"slow": 1.0, "fast": 2.0, "huge": 4.0}


def profile(gpu: str, model: str) -> GpuProfile:
    """`slow`: 1 ms per prompt token, 10 ms per decode step, whatever the batch; `fast` and `huge`: 2 and 4 times."""
    return GpuProfile(
        gpu=gpu,
        model=model,
        tensor_parallel=1,
        prefill_base_s=0.0,
        prefill_per_token_s=1e-3 / SPEED[gpu],
        prefill_per_token2_s=0.0,
        decode_base_s=1e-2 / SPEED[gpu],
        decode_per_sequence_s=0.0,
        decode_per_context_token_s=0.0,
        calibration=1.0,
        overhead_per_sequence_s=0.0,
        kv_bytes_per_token=1000,
        kv_capacity_tokens=10_000,
        kv_link_bytes_per_s=1e9,
        capability=100.0 * SPEED[gpu],
    )


def loaded_profile(gpu: str, model: str) -> GpuProfile:
    """As `profile`, with a decode step that grows by 1 ms per sequence: residents feel a newcomer."""
    return replace(profile(gpu, model), decode_per_sequence_s=1e-3 / SPEED[gpu])


def spec(name: str, gpu: str = "slow", **changes: Any) -> InstanceSpec:
    """An instance of model `m`."""
    given: dict[str, Any] = {
        "instance_id": name,
        "model": "m",
        "gpu": gpu,
        "role": Role.MIXED,
        "kv_capacity_tokens": 10_000,
        "block_tokens": 16,
        "max_num_seqs": 64,
        "max_batched_tokens": 2048,
        "kv_bytes_per_token": 1000,
        "supports_priority": True,
        "supports_replay": True,
    }
    return InstanceSpec(**{**given, **changes})


def call(name: str, **changes: Any) -> RequestArrived:
    """A call of 100 prompt tokens that puts out 10."""
    given: dict[str, Any] = {
        "event_id": f"arrived-{name}",
        "request_id": name,
        "model": "m",
        "prompt_tokens": 100,
        "max_tokens": 10,
        "run_id": f"run-{name}",
        "workflow": "w",
        "node": "n",
        "run_deadline_s": None,
        "target_deadline_s": None,
        "latest_deadline_s": None,
    }
    return RequestArrived(**{**given, **changes})


def config(median_tokens: float = 200.0, *, learns_speed: bool = False, **changes: Any) -> SchedulerConfig:
    """Lengths are certain (`median_tokens`, or the call's limit) and, by default, speeds are the profile's."""
    speeds = EstimateConfig() if learns_speed else EstimateConfig(min_correction=1.0, max_correction=1.0)
    lengths = LengthConfig(prior_median_tokens=median_tokens, prior_sigma=0.05)
    return SchedulerConfig(**{"estimate": speeds, "length": lengths, **changes})


class Cluster:
    """A scheduler with instances in it; `at` sends an event and returns the decisions without WakeAt."""

    def __init__(
        self,
        policy: str,
        *specs: InstanceSpec,
        config: SchedulerConfig | None = None,
        profiles: Any = profile,
        seed: int = 0,
        **params: Any,
    ) -> None:
        self.scheduler: Scheduler = make_scheduler(policy, config, seed, profiles=profiles, params=params)
        self.log: list[tuple[float, Event, list[Decision]]] = []
        for item in specs:
            self.at(0.0, InstanceJoined(event_id=f"joined-{item.instance_id}", instance=item))

    def every(self, now_s: float, event: Event) -> list[Decision]:
        """Send an event; all decisions."""
        decisions = self.scheduler.handle(event, now_s)
        self.log.append((now_s, event, decisions))
        self.scheduler.check_integrity()
        return decisions

    def at(self, now_s: float, event: Event) -> list[Decision]:
        """Send an event; decisions without WakeAt."""
        return [decision for decision in self.every(now_s, event) if not isinstance(decision, WakeAt)]

    def place(self, now_s: float, arrived: RequestArrived) -> Dispatch:
        """Send a call that must be dispatched."""
        (decision,) = self.at(now_s, arrived)
        assert isinstance(decision, Dispatch), decision
        return decision

    def run(self, now_s: float, arrived: RequestArrived, tokens: int = 1) -> Dispatch:
        """Send a call, and let it put out `tokens` at once."""
        placed = self.place(now_s, arrived)
        self.at(now_s, FirstToken(event_id=f"first-{arrived.request_id}", request_id=arrived.request_id))
        self.progress(now_s, arrived.request_id, tokens)
        return placed

    def progress(self, now_s: float, name: str, tokens: int) -> list[Decision]:
        """Tokens reached the gateway."""
        return self.at(now_s, Progress(event_id=f"progress-{name}-{tokens}", request_id=name, output_tokens=tokens))

    def finish(self, now_s: float, name: str, tokens: int = 10) -> list[Decision]:
        """The call ended."""
        event = RequestFinished(event_id=f"end-{name}", request_id=name, prompt_tokens=100, output_tokens=tokens)
        return self.at(now_s, event)

    def wake(self, now_s: float) -> list[Decision]:
        """The time that was asked for has come."""
        return self.at(now_s, Woke(event_id=f"woke-{now_s}"))

    def instance(self, name: str) -> dict[str, Any]:
        """What the scheduler believes of an instance."""
        return next(item for item in self.scheduler.snapshot()["instances"] if item["instance_id"] == name)


def kinds(decisions: list[Decision]) -> list[str]:
    """Names of the decisions' kinds."""
    return [type(decision).__name__ for decision in decisions]


def only_move(decisions: list[Decision]) -> Migrate:
    """The one Migrate among decisions."""
    (decision,) = decisions
    assert isinstance(decision, Migrate), decision
    return decision
