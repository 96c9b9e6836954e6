"""What is a policy? One question that the core asks of every rule, and five more of those that answer them.

Policies keep no state: what they need to know of the past is in `ClusterState`. They read calls and the cluster, change
neither, and break ties by instance id.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scheduler.call import Call
from scheduler.placement import Move, Placement
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True)
class Wait:
    """A policy's answer: not now, although it could be served. The call stays at the gateway and is asked about again.

    It is asked about whenever capacity may have come free, and at every Woke, in the order of the policy's `rank`.
    """

    rule: str
    gives_way: bool = False
    """It is likely to be told so for long: a `Patient` policy is asked in short from now on."""


class Policy(Protocol):
    """Where is a call to run?"""

    name: str

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The placement; Wait: it is to stay at the gateway for now; None: no open instance can serve it."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """In which order are waiting calls asked about?"""

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """Smaller goes first; of equals the one that came first. Without it: first come, first served."""
        ...


@runtime_checkable
class Patient(Protocol):
    """Is a waiting call that gives way certain to be told to wait again?"""

    def still_waits(self, call: Call, state: ClusterState, now_s: float) -> bool:
        """True only where `place` would answer Wait; False: ask it. Without it `place` is asked each time."""
        ...


@runtime_checkable
class Rectifier(Protocol):
    """Where does a late call go on?"""

    def rectify(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Asked every τ about a running call that is expected to miss its target deadline; None: it stays."""
        ...


@runtime_checkable
class Evacuator(Protocol):
    """Where does a call on a draining instance go on?"""

    def evacuate(self, call: Call, state: ClusterState, now_s: float) -> Move | None:
        """Asked every τ about a running call on a draining instance; None: it stays."""
        ...


@runtime_checkable
class Balancer(Protocol):
    """Which running calls go elsewhere for the balance of the cluster?"""

    def rebalance(self, state: ClusterState, now_s: float) -> Iterable[tuple[Call, Move]]:
        """Asked at every Woke; each call at most once, and only running ones that may move."""
        ...
