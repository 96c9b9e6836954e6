"""How much does a run stand to lose by a delay? The chance that it ends within its SLO, and how fast that falls.

With `left` the time to the run's deadline, a call that begins to put out tokens after `ready` and then takes `step` for
each of L gives its run the chance

    V = E over L of P(rest ≤ left - ready - step·L)

where `rest` is what the run has to do after the call (rest.py). L takes a few equally likely values: those of the
length distribution, or for a running call a spread around the median of what remains. What a second is worth at the
margin is (V(left) - V(left - δ))/δ, with δ three tenths of what is left: a run that is lost, or safe, loses nothing by
it. δ is wide because a run's slack must last for all the delays that are still to come, not for the next one.
"""

import numpy as np

from scheduler.alone import Alone
from scheduler.call import Call
from scheduler.estimate import Floats
from scheduler.frozen import builder
from scheduler.latency import Demand
from scheduler.rest import Rest, RestByForecast, RestModel
from scheduler.runs import Progress, Runs

_new_progress = builder(Progress)

SPREAD = (0.35, 0.75, 1.15, 1.9)
"""Equally likely multiples of the median of what a running call still puts out."""
_MIDDLES = (np.arange(32) + 0.5) / 32
_DELTA_SHARE = 0.3
_LEAST_DELTA_S = 0.2
_MOST_DELTA_S = 20.0


def rest_after(
    call: Call, runs: Runs, rests: RestModel, alone: Alone, cached_tokens: float, expected_tokens: float
) -> Rest:
    """What the call's run has to do after it; so many tokens of its prompt are cached, so many are still to come.

    Nothing, for a call that has deadlines of its own only.
    """
    arrived, facts = call.arrived, runs.of(call)
    if arrived.run_deadline_s is None:
        return RestByForecast(0.0)
    prefill_s, step_s = alone.needs(arrived, cached_tokens)
    done_s = runs.needed_before_s(call) + prefill_s + call.emitted * step_s
    progress = _new_progress(done_s, step_s, expected_tokens)
    visit = facts.visits.get(arrived.node, 1)
    return rests.rest(arrived.workflow, arrived.node, visit, facts.slo_s, progress, arrived.downstream_s)


def outcome(rest: Rest, left_s: float, ready_s: Floats, step_s: Floats, lengths: Floats) -> Floats:
    """The chance V of every placement, over equally likely lengths."""
    return rest.chances(left_s - ready_s, step_s, lengths)


def likely_lengths(demand: Demand) -> Floats:
    """Equally likely counts of the tokens that a call that has put out some still puts out, from its forecast."""
    length = demand.length
    low, high = 0.5 * (length.p10_tokens + length.p50_tokens), 0.5 * (length.p50_tokens + length.p90_tokens)
    left: Floats = np.maximum(np.array((length.p10_tokens, low, high, length.p90_tokens)) - demand.emitted, 1.0)
    return left


def expected_rest_s(rest: Rest, left_s: float) -> float:
    """E[min(rest, left)]: what the run still does, if it is given up at its deadline."""
    if left_s <= 0.0:
        return 0.0
    return float(1.0 - np.add.reduce(rest.within(_MIDDLES * left_s)) / len(_MIDDLES)) * left_s


def stake(rest: Rest, left_s: float, step_s: float, remaining_tokens: float) -> float:
    """What a running call's run loses per second of delay where it is; 0 once its deadline has passed."""
    if left_s <= 0.0:
        return 0.0
    delta_s = min(max(_DELTA_SHARE * left_s, _LEAST_DELTA_S), _MOST_DELTA_S)
    lengths = [share * remaining_tokens for share in SPREAD]
    now, later = rest.chances_here((left_s, left_s - delta_s), step_s, lengths)
    return (now - later) / delta_s
