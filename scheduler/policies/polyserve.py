"""What would PolyServe do? The most loaded instance on which the call still meets its SLO: a gradient of load.

Load packed at one end leaves instances at the other end free, for tight calls or to be given back (Zhu et al., 2025);
`highest=False` turns the gradient round: the least loaded of those that meet the SLO.
S: the gradient; an instance admits a call if, by its profile, the call and those that run there stay within their SLOs.
I: the measure of load, `margin` on predictions; residents are looked at by their own predicted finish, in order of the
gradient; a call that fits nowhere goes where it ends first, and so does one without deadline. The paper's bins per TPOT
tier and its scaling of the pool are left out: runs have one deadline, and the fleet is given.
"""

from dataclasses import dataclass

from scheduler.call import Call, CallState
from scheduler.config import check_bounds, check_choice
from scheduler.estimate import Floats
from scheduler.placement import Options, Placement
from scheduler.ranking import at_decode, decoding_at, offers, take
from scheduler.selection import best_rows
from scheduler.state import ClusterState

_LOADS = ("calls", "kv", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolyServe:
    """A load gradient under SLOs."""

    name = "polyserve"

    highest: bool = True
    """The most loaded that will do; else the least loaded."""
    load: str = "calls"
    """`calls` there, share of `kv` in use, or how much longer a `step` takes than on an idle instance."""
    margin: float = 1.0
    """Predicted times are multiplied by this before they are held against the deadline."""
    protects: bool = True
    """Pass over instances where a resident that is in time would be late."""

    def __post_init__(self) -> None:
        check_bounds(self, margin=(0.01, 100.0))
        check_choice(self, load=_LOADS)

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | None:
        """The first along the gradient that keeps the call and its residents in time."""
        demand, options = offers(call, state, now_s)
        load = at_decode(options, self._load(options))
        price, among, rule = options.own_s, None, "no deadline: earliest finish"
        if call.target_deadline_s is not None:
            meets = options.allowed & (self.margin * options.own_s <= call.target_deadline_s - now_s)
            gradient = -load if self.highest else load
            option = self._first(options, best_rows(gradient, meets, int(meets.sum())), state, now_s)
            rule = "no instance keeps all in time: earliest finish"
            if option is not None:
                row = options.pair(option)[1]
                among, price = meets & decoding_at(options, [row]), options.own_s
                rule = f"{'most' if self.highest else 'least'} loaded of {int(meets.sum())} that meet the deadline"
        return take(
            self.name,
            f"{rule}, of {options.count()}",
            call,
            state,
            demand,
            options,
            price,
            now_s,
            among=among,
            verdict=lambda option: f"load {load.item(option):.2f}, finish in {options.own_s.item(option):.3f} s",
        )

    def _load(self, options: Options) -> Floats:
        pool = options.pool
        if self.load == "calls":
            return pool.batch
        return pool.kv_used / pool.kv_capacity if self.load == "kv" else pool.step_base_s / pool.d0

    def _first(self, options: Options, order: list[int], state: ClusterState, now_s: float) -> int | None:
        """The first placement whose residents stay in time; each instance is looked at once."""
        if not self.protects:
            return order[0] if order else None
        seen: set[int] = set()
        for option in order:
            row = options.pair(option)[1]
            if row not in seen and self._spares(options, row, state, now_s):
                return option
            seen.add(row)
        return None

    def _spares(self, options: Options, row: int, state: ClusterState, now_s: float) -> bool:
        pool = options.pool
        before_s = pool.step_s(row)
        after_s = self.margin * (before_s + options.terms.marginal_s.item(row))
        for name in pool.residents[pool.ids[row]]:
            resident = state.calls[name]
            seat, deadline_s = resident.seat, resident.target_deadline_s
            if resident.state is CallState.RUNNING and seat is not None and deadline_s is not None:
                left_s = deadline_s - now_s
                if seat.remaining * before_s <= left_s < seat.remaining * after_s:
                    return False
        return True


POLICY = PolyServe
