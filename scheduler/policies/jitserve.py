"""What would JITServe do? Serve by density: what a run is worth in time, per second of work that it still needs.

    density = reward · min(1, SLO/(SLO + lateness))^decay / remaining work        the largest first

Remaining work is the call's and what its run is forecast to do after it: the calls of a compound request share one
density. Lateness is that of the run's predicted finish (2504.20068).
S: density by reward and remaining work, compound requests as one, reward in tokens served in time, falling with
lateness.
I: the form of the fall and `decay`; `reward` may be one per run instead; a run without SLO is never late; work is
taken as that of a call alone on the fastest instance. Grouping calls of like length in a batch is left to the engine.
I: dispatch goes to the earliest predicted finish of `choices` instances drawn at random (0: of all). The order is the
engine's priority and, under `batch_cap`, that of calls waiting at the gateway.
"""

from dataclasses import dataclass
from math import log

from scheduler.call import Call
from scheduler.config import check_bounds, check_choice
from scheduler.placement import Placement
from scheduler.policy import Wait
from scheduler.ranking import as_priority, decode_rows, decoding_at, offers, take, with_room
from scheduler.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class JitServe:
    """Goodput density."""

    name = "jitserve"

    reward: str = "tokens"
    """`tokens` of prompt and answer, or one per `run`."""
    decay: float = 1.0
    """Power with which the reward falls once the run is predicted to be late."""
    choices: int = 0
    """Instances drawn for a call; 0: all."""
    batch_cap: int = 0
    """Our calls per instance beyond which calls wait at the gateway; 0: none."""

    def __post_init__(self) -> None:
        check_choice(self, reward=("tokens", "run"))
        check_bounds(self, decay=(0.0, 100.0), choices=(0, 1_000_000), batch_cap=(0, 1_000_000))

    def place(self, call: Call, state: ClusterState, now_s: float) -> Placement | Wait | None:
        """The earliest predicted finish of the instances drawn that have room."""
        demand, options = offers(call, state, now_s)
        rows = decode_rows(options)
        if not rows:
            return None
        among = with_room(options, self.batch_cap)
        if not among.any():
            return Wait(f"every instance has {self.batch_cap} calls")
        if 0 < self.choices < len(rows):
            roomy = [row for row in rows if (among & decoding_at(options, [row])).any()]
            among = among & decoding_at(options, state.random.sample(roomy, min(self.choices, len(roomy))))
        density = self.density(call, state, now_s)
        return take(
            self.name,
            f"the earliest finish, of {options.count()}; density {density:.3g}",
            call,
            state,
            demand,
            options,
            options.own_s,
            now_s,
            among=among,
            priority=as_priority(-1e6 * log(max(density, 1e-300))),
            verdict=lambda option: f"ends {options.own_s.item(option):.3f} s from now",
        )

    def rank(self, call: Call, state: ClusterState, now_s: float) -> float:
        """The densest first."""
        return -self.density(call, state, now_s)

    def density(self, call: Call, state: ClusterState, now_s: float) -> float:
        """Reward per second of work that the call's run still needs."""
        arrived, output_tokens = call.arrived, call.forecast().p50_tokens
        own_s = state.alone.seconds(arrived.model, arrived.prompt_tokens, output_tokens)
        work_s = max(own_s + arrived.downstream_s, 1e-6)
        worth = arrived.prompt_tokens + output_tokens if self.reward == "tokens" else 1.0
        deadline_s = arrived.run_deadline_s if arrived.run_deadline_s is not None else call.latest_deadline_s
        if deadline_s is None:
            return worth / work_s
        late_s = max(now_s + work_s - deadline_s, 0.0)
        slo_s = max(deadline_s - state.runs.of(call).first_seen_s, 1e-6)
        share: float = (slo_s / (slo_s + late_s)) ** self.decay
        return worth * share / work_s


POLICY = JitServe
