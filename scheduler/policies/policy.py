"""What is a policy? Three questions that the core asks; the answers are values, and a policy keeps no state."""

from typing import Protocol

from scheduler.call import Call
from scheduler.placement import Move, Placement
from scheduler.state import ClusterState


class Policy(Protocol):
    """One set of rules. Reads calls and the cluster's state, changes neither; ties go to the smaller instance id."""

    name: str

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """Where a call is to run; None: nowhere now, hold it until an instance joins."""
        ...

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Asked every τ about a running call that is expected to miss its target deadline; None: it stays."""
        ...

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Asked every τ about a running call on a draining instance; None: it stays."""
        ...
