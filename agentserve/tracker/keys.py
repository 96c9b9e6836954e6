"""Under which keys is what kept? One place; `docs/tracker.md` lists the same.

The cluster's name is the hash tag of every key, so all keys of a cluster are in one slot, as a script that touches
several of them needs on a sharded server.
"""

from typing import Final

from agentserve.errors import BadInput
from workflows.run import RunStatus

MAX_NAME_BYTES: Final = 512
OUTCOMES: Final = ("in_time", "missed", "no_slo")
"""What the end of a run can be, judged by its SLO."""


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        self._prefix = f"agentserve:{{{cluster}}}"
        self.runs = f"{self._prefix}:runs"
        """Sorted set: every listed run by submission time."""
        self.by_status = {status: f"{self._prefix}:runs:{status.value}" for status in RunStatus}
        """Sorted sets: the same, one for each status."""
        self.feed = f"{self._prefix}:feed"
        """Stream: the bare facts of every run's events."""
        self.ended = {outcome: f"{self._prefix}:ended:{outcome}" for outcome in OUTCOMES}
        """Sorted sets: runs by the time of their end, one for each outcome."""
        self.modes = f"{self._prefix}:modes"
        """List: switches of the mode, the newest first."""

    def lists(self, tenant: str) -> list[str]:
        """Sorted sets of runs by submission time: all, then one for each status. Empty: of all tenants, else of one."""
        if not tenant:
            return [self.runs, *self.by_status.values()]
        first = f"{self._prefix}:tenant:{_checked('tenant', tenant)}:runs"
        return [first, *(f"{first}:{status.value}" for status in RunStatus)]

    def run(self, run_id: str) -> str:
        """Hash: a run's own fields, and one field for each step."""
        return f"{self._prefix}:run:{_checked('run id', run_id)}"

    def events(self, run_id: str) -> str:
        """Stream: a run's journal."""
        return f"{self._prefix}:events:{_checked('run id', run_id)}"

    def forecast(self, workflow: str) -> str:
        """Hash: counters that a workflow's forecast is made of."""
        return f"{self._prefix}:forecast:{_checked('workflow name', workflow)}"

    def workflow(self, name: str) -> str:
        """String: a registered workflow."""
        return f"{self._prefix}:workflow:{_checked('workflow name', name)}"

    def mode(self, token: str) -> str:
        """Hash: counters of what happened since one switch of the mode."""
        return f"{self._prefix}:mode:{_checked('switch of the mode', token)}"

    def once(self, token: str) -> str:
        """String: remembers for a minute that the call with this token was done."""
        return f"{self._prefix}:once:{token}"


def _checked(what: str, name: str) -> str:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadInput(f"a {what} must be valid Unicode") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise BadInput(f"a {what} must have 1 to {MAX_NAME_BYTES} bytes, not {size}")
    return name
