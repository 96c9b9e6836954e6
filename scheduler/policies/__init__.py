"""Which rules can place calls: one file per policy, all behind the Protocol in `scheduler.policies.policy`."""

_NAMES = ("agentserve", "goodserve", "least_requests", "round_robin")


def policy_names() -> tuple[str, ...]:
    """Names that `scheduler.core.make_scheduler` takes, sorted."""
    return _NAMES
