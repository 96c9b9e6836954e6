"""What does the scheduler decide at each event? The dispatch table from events to decisions."""

from collections.abc import Callable
from typing import Any

from scheduler.config import SchedulerConfig
from scheduler.decisions import Decision, Dispatch, Explanation, Hold
from scheduler.errors import UnknownPolicy
from scheduler.events import Event, InstanceJoined, InstanceLost, InstanceSpec, RequestArrived, RequestFinished
from scheduler.policies import policy_names
from scheduler.profiles.profile import GpuProfile

Profiles = Callable[[str, str], GpuProfile]


class Scheduler:
    """A pure state machine: the same events at the same times give the same decisions."""

    def __init__(self, config: SchedulerConfig, policy_name: str) -> None:
        self.config = config
        self.policy_name = policy_name
        self._live: dict[str, InstanceSpec] = {}
        self._held: dict[str, RequestArrived] = {}
        self._placed = 0

    def handle(self, event: Event, now_s: float) -> list[Decision]:
        """Take in one fact and return what the driver is to do, in order."""
        match event:
            case InstanceJoined():
                self._live[event.instance.instance_id] = event.instance
                held = list(self._held.values())
                self._held.clear()
                return [d for arrived in held for d in self._place(event.event_id, arrived)]
            case InstanceLost():
                self._live.pop(event.instance_id, None)
            case RequestArrived():
                return self._place(event.event_id, event)
            case RequestFinished():
                self._held.pop(event.request_id, None)
        return []

    def _place(self, cause_id: str, arrived: RequestArrived) -> list[Decision]:
        names = sorted(i for i, spec in self._live.items() if spec.model == arrived.model)
        reason = Explanation(policy=self.policy_name, rule="the next in turn")
        if not names:
            self._held[arrived.request_id] = arrived
            return [Hold(cause_id=cause_id, request_id=arrived.request_id, reason=reason)]
        name = names[self._placed % len(names)]
        self._placed += 1
        return [
            Dispatch(
                cause_id=cause_id,
                request_id=arrived.request_id,
                attempt=1,
                prefill_instance=name,
                decode_instance=name,
                priority=0,
                reason=reason,
            )
        ]

    def snapshot(self) -> dict[str, Any]:
        """The estimated state of every instance and the count of calls, as plain JSON values."""
        return {"instances": [{"instance_id": name} for name in sorted(self._live)], "policy": self.policy_name}


def make_scheduler(
    policy_name: str, config: SchedulerConfig | None = None, seed: int = 0, profiles: Profiles | None = None
) -> Scheduler:
    """Build a scheduler; raises UnknownPolicy naming the known ones."""
    if policy_name not in policy_names():
        raise UnknownPolicy(f"unknown policy {policy_name!r}; known are {', '.join(policy_names())}")
    return Scheduler(config or SchedulerConfig(), policy_name)
