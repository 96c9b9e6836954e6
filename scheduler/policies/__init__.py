"""Which rules can place calls: one file per policy, all behind the Protocol in `scheduler.policies.policy`."""

from importlib import import_module
from typing import TYPE_CHECKING

from scheduler.errors import UnknownPolicy

if TYPE_CHECKING:
    from scheduler.policies.policy import Policy

_CLASSES = {
    "agentserve": ("scheduler.policies.agentserve", "AgentServe"),
    "goodserve": ("scheduler.policies.goodserve", "GoodServe"),
    "least_requests": ("scheduler.policies.least_requests", "LeastRequests"),
    "round_robin": ("scheduler.policies.round_robin", "RoundRobin"),
}


def policy_names() -> tuple[str, ...]:
    """Names that `scheduler.core.make_scheduler` takes, sorted."""
    return tuple(sorted(_CLASSES))


def make_policy(name: str) -> "Policy":
    """The policy of that name; raises UnknownPolicy naming the known ones."""
    if name not in _CLASSES:
        raise UnknownPolicy(f"unknown policy {name!r}; known are {', '.join(policy_names())}")
    module, class_name = _CLASSES[name]
    policy: Policy = getattr(import_module(module), class_name)()
    return policy
