"""What would Autellix do? Least attained service of the program first, in multilevel queues, with locality.

    PLAS    service = that of all ended calls of the run
    ATLAS   service = max over parents of (their service + their own time): the longest chain of ended calls before it

Level k holds service below quantum · growth^k; within a level it is first come, first served. A run whose wait is
`beta` times its service is promoted to the first level. A call of at most `short_tokens` goes to the least used
instance, a longer one to the instance of its program (Luo et al., 2025).
S: both orders, the queues, promotion by waited/served, 2,048 tokens. I: number and width of levels, beta; parents are
the calls that had ended when a call arrived; service is time in prefill and decode, waiting left out; the program's
instance is where its longest prompt went. A demotion takes effect with the program's next call: what runs in an engine
that is not ours is not preempted. The order is the engine's priority and, under `batch_cap`, that of calls waiting at
the gateway.
"""

from dataclasses import dataclass
from math import floor, log

from scheduler.call import Call
from scheduler.config import check_bounds, check_choice
from scheduler.placement import Placement
from scheduler.policy import Wait
from scheduler.ranking import as_priority, at_decode, decode_rows, decoding_at, offers, take, with_room
from scheduler.state import ClusterState

_LEVEL_S = 1e7
"""Arrivals within a level are told apart for 115 days."""
_PRIORITIES = 10**8
"""Per level, hundredths of a second: 11 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Autellix:
    """Program-level attained service."""

    name = "autellix"

    order: str = "plas"
    """`plas` or `atlas`."""
    levels: int = 8
    quantum_s: float = 1.0
    """Service of the first level."""
    growth: float = 2.0
    """Service of a level against the one before."""
    beta: float = 10.0
    """Waited ÷ served from which a run is promoted."""
    short_tokens: int = 2048
    """Prompts up to this length are balanced."""
    by_speed: bool = False
    """Divide outstanding calls by the instance's capability."""
    strays: bool = False
    """A long call does not wait at the gateway for its program's instance while another has room."""
    batch_cap: int = 0
    """Our calls per instance beyond which calls wait at the gateway; 0: none."""

    def __post_init__(self) -> None:
        check_choice(self, order=("plas", "atlas"))
        check_bounds(self, levels=(1, 20), quantum_s=(1e-3, 1e6), growth=(1.01, 1e3), beta=(0.0, 1e9))
        check_bounds(self, short_tokens=(0, 2**31), batch_cap=(0, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """Short calls to the least used instance, long ones to their program's."""
        demand, options = offers(call, state, now_s)
        rows = decode_rows(options)
        if not rows:
            return None
        pool, room = options.pool, with_room(options, self.batch_cap)
        level = self.level(call, state, now_s)
        among, rule = room, "the least used instance"
        home = state.runs.of(call).home_instance
        if call.arrived.prompt_tokens > self.short_tokens and home is not None and pool.row.get(home) in rows:
            at_home = room & decoding_at(options, [pool.row[home]])
            if at_home.any():
                among, rule = at_home, "the program's instance"
            elif not self.strays:
                return Wait(f"level {level}: the program's instance has {self.batch_cap} calls")
        if not among.any():
            return Wait(f"level {level}: every instance has {self.batch_cap} calls")
        count = at_decode(options, pool.batch)
        since_s = call.arrived_s - (state.epoch_s or 0.0)
        return take(
            self.name,
            f"{rule}, of {len(rows)}; queue level {level}",
            call,
            state,
            demand,
            options,
            at_decode(options, pool.batch / pool.relative_capability) if self.by_speed else count,
            now_s,
            among=among,
            priority=as_priority(level * _PRIORITIES + min(since_s * 100.0, _PRIORITIES - 1.0)),
            verdict=lambda option: f"{count.item(option):.0f} outstanding calls",
        )

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """Lower levels first, in a level by arrival."""
        return self.level(call, state, now_s) * _LEVEL_S + call.arrived_s - (state.epoch_s or 0.0)

    def level(self, call: Call, state: ClusterState, now_s: float) -> int:
        """The call's queue: by its program's service, or the first if that waited too long."""
        facts = state.runs.of(call)
        service_s = facts.busy_s if self.order == "plas" else state.runs.busy_before_s(call)
        waited_s = facts.waited_s + now_s - call.arrived_s
        if service_s < self.quantum_s or waited_s >= self.beta * facts.busy_s:
            return 0
        return min(floor(log(service_s / self.quantum_s, self.growth)) + 1, self.levels - 1)


POLICY = Autellix
