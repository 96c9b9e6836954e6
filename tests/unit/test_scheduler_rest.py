"""What a run has still to do, and what it loses by delay, on cases small enough to work out by hand."""

import numpy as np
import pytest

from scheduler.config import LengthConfig
from scheduler.curve import Curve
from scheduler.decisions import LengthForecast
from scheduler.latency import Demand
from scheduler.rest import _EDGES_SHARE, Ends, Rest, RestByForecast, RestBySlo, RestByVisit, RestModel
from scheduler.runs import Mark, Progress, RunFacts
from scheduler.stakes import expected_rest_s, likely_lengths, outcome, stake

TOKEN_S = 0.01
FRESH = Progress(0.0, TOKEN_S, 100.0)
ANY_SLO_S = [9.0 * 1.13**i for i in range(34)]
"""From 9 to 500 s."""


def ended(
    total_s: float, *, calls: int = 2, slo_s: float | None = None, waited_s: float = 0.0
) -> tuple[RunFacts, float]:
    """A run whose calls ended at equal distances until its end after `total_s`; it waited before its last call.

    Each call put out tokens all the time, at the pace of a lone one; as many as it would were expected, or half or
    twice as many.
    """
    facts = RunFacts(0.0, "w", slo_s)
    each_s = (total_s - waited_s) / calls
    for visit in range(1, calls + 1):
        tokens = round(each_s / TOKEN_S)
        progress = Progress((visit - 1) * each_s, TOKEN_S, tokens)
        lengths = np.array([0.5, 1.0, 2.0]) * tokens
        waited_by_then_s = 0.0 if visit < calls else waited_s
        facts.marks.append(
            Mark("n", visit, total_s * visit / calls, waited_by_then_s, progress, lengths, each_s, tokens)
        )
    facts.waited_s, facts.last_ended_s = waited_s, total_s
    facts.needed_path_s = total_s - waited_s
    return facts, total_s


def learned(*runs: tuple[RunFacts, float]) -> RestModel:
    model = RestModel(LengthConfig())
    for facts, ended_s in runs:
        model.learn(facts, ended_s)
    return model


def within(rest: Rest, left_s: float) -> float:
    return float(rest.within(np.array([left_s]))[0])


def chance(rest: Rest, left_s: float, step_s: float = TOKEN_S, lengths: tuple[float, ...] = (100.0,)) -> float:
    return float(rest.chances(np.array([left_s]), np.array([step_s]), np.array(lengths))[0])


def by_slo(
    share: float, *, done_s: float, last: float, stretch: float = 1.0, rests_s: tuple[float, ...] = (3.0,)
) -> RestBySlo:
    """An SLO of 10 s of which runs are known to take a share (to within a bucket of 4 %)."""
    cdf = np.where(share < _EDGES_SHARE, 1.0, 0.0)
    return RestBySlo(
        Curve(_EDGES_SHARE, cdf), 10.0, Progress(done_s, TOKEN_S, 100.0), Ends(last, np.array(rests_s)), stretch
    )


def test_before_five_runs_have_ended_the_forecast_is_believed() -> None:
    model = learned(*[ended(4.0)] * 4)
    assert model.rest("w", "n", 1, None, FRESH, 3.0) == RestByForecast(3.0)
    assert isinstance(learned(*[ended(4.0)] * 5).rest("w", "n", 1, None, FRESH, 3.0), RestByVisit)
    assert within(RestByForecast(0.0), 0.0) == 1.0
    assert within(RestByForecast(0.0), -0.1) == 0.0
    assert within(RestByForecast(10.0), 10.0 * np.exp(-0.5)) == pytest.approx(0.5)


def test_rests_are_learned_by_the_visit() -> None:
    model = learned(*[ended(8.0)] * 200)
    first, last = (model.rest("w", "n", visit, None, FRESH, 0.0) for visit in (1, 2))
    assert within(first, 3.0) < 0.05
    assert within(first, 5.0) > 0.95
    assert within(last, 0.0) > 0.9  # it ends the run


def test_what_later_calls_waited_is_no_part_of_a_rest() -> None:
    model = learned(*[ended(10.0, waited_s=6.0)] * 200)
    # 5 s after the first call's end, 6 of them spent waiting: nothing is left of them.
    assert within(model.rest("w", "n", 1, None, FRESH, 0.0), 0.1) > 0.9


@pytest.mark.parametrize("calls", [1, 2, 8])
def test_an_slo_that_tells_the_length_is_used(calls: int) -> None:
    totals = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    model = learned(*[ended(total, calls=calls, slo_s=2.0 * total) for total in totals * 40])
    rest = model.rest("w", "n", 1, 100.0, Progress(25.0, TOKEN_S, 500.0), 0.0)
    assert isinstance(rest, RestBySlo)
    # Half of its 100 s of SLO in all, 25 s of which are done.
    assert chance(rest, 21.0) < 0.1
    assert chance(rest, 29.0) > 0.9


def test_an_slo_that_tells_nothing_is_not_used() -> None:
    model = learned(*[ended(8.0, slo_s=slo_s) for slo_s in ANY_SLO_S] * 8)
    assert isinstance(model.rest("w", "n", 1, 100.0, FRESH, 0.0), RestByVisit)


def test_a_call_that_ends_its_run_has_the_length_that_the_slo_leaves_it() -> None:
    # 5 s in all, 1 s of them done: 4 s of tokens alone, 8 s where a token takes twice as long.
    rest = by_slo(0.5, done_s=1.0, last=1.0)
    assert [chance(rest, left_s) for left_s in (3.7, 4.4)] == [0.0, 1.0]
    assert [chance(rest, left_s, 2 * TOKEN_S) for left_s in (7.4, 8.8)] == [0.0, 1.0]
    assert within(rest, 0.0) == 1.0  # nothing comes after it


def test_a_call_that_does_not_leaves_the_remainder_to_others_at_their_own_pace() -> None:
    # Of 4 s left, 1 s are its own 100 tokens; 1000 are ruled out. At half the pace it takes 2 s, the others 3 s, or 6.
    rest, stretched = (by_slo(0.5, done_s=1.0, last=0.0, stretch=stretch) for stretch in (1.0, 2.0))
    lengths = (100.0, 1000.0)
    assert [chance(rest, left_s, 2 * TOKEN_S, lengths) for left_s in (4.7, 5.4)] == [0.0, 1.0]
    assert [chance(stretched, left_s, 2 * TOKEN_S, lengths) for left_s in (7.4, 8.8)] == [0.0, 1.0]
    assert [within(stretched, left_s) for left_s in (5.4, 6.8)] == [0.0, 1.0]


def test_where_every_expected_length_is_ruled_out_the_call_ends_its_run() -> None:
    assert [chance(by_slo(0.5, done_s=1.0, last=0.0), left_s, lengths=(1000.0,)) for left_s in (3.7, 4.4)] == [0.0, 1.0]


def test_a_run_that_has_had_more_than_any_before_is_a_coin_toss() -> None:
    rest = by_slo(0.5, done_s=9.0, last=0.0)
    assert [within(rest, left_s) for left_s in (1.0, -1.0)] == [0.5, 0.0]
    assert [chance(rest, left_s) for left_s in (1.1, 0.9)] == [0.5, 0.0]  # of 100 tokens, then who knows


def test_an_slo_tells_whether_a_call_ends_its_run() -> None:
    # 5 s in all. Runs mostly end with such a call, but of 1 s it leaves 4 s to be done; of 5 s it leaves nothing.
    short, long = by_slo(0.5, done_s=0.0, last=0.9, rests_s=(4.0,)), by_slo(0.5, done_s=4.0, last=0.1, rests_s=(40.0,))
    assert [within(short, left_s) for left_s in (3.7, 4.4)] == pytest.approx([0.0, 1.0], abs=0.02)
    assert within(long, 0.0) > 0.98
    # So the short call is not taken for one of 500 tokens, which would take 20 s at four hundredths each.
    assert chance(short, 10.0, 4 * TOKEN_S) > 0.98


def test_an_slo_unlike_any_before_says_nothing_of_whether_a_call_ends_its_run() -> None:
    assert within(by_slo(0.5, done_s=0.0, last=0.9, rests_s=(90.0,)), 0.0) == pytest.approx(0.9, abs=0.02)


def test_runs_that_are_served_slower_than_alone_stretch_the_rests_of_later_ones_with_such_slos() -> None:
    model = learned(*[ended(total, slo_s=2.0 * total) for total in (2.0, 8.0, 32.0) * 100])
    for _ in range(200):
        model.paced("w", 100.0, took_s=3.0, needed_s=1.0)
        model.paced("w", 1000.0, took_s=1.5, needed_s=1.0)

    def stretch(slo_s: float) -> float:
        rest = model.rest("w", "n", 1, slo_s, FRESH, 0.0)
        assert isinstance(rest, RestBySlo)
        return rest.stretch

    assert stretch(100.0) == stretch(70.0) == pytest.approx(3.0, abs=0.05)
    assert stretch(1000.0) == pytest.approx(1.5, abs=0.05)
    assert stretch(10.0) == pytest.approx(2.25, abs=0.05)  # of none like it: as all of the workflow


def test_workflows_are_forgotten_beyond_a_bound() -> None:
    model = RestModel(LengthConfig(max_keys=8))
    for i in range(50):
        facts, ended_s = ended(4.0)
        facts.workflow = f"w{i}"
        model.learn(facts, ended_s)
    assert len(model._workflows) == 8


def test_the_chance_is_the_share_of_lengths_that_leave_time_for_the_rest() -> None:
    found = outcome(
        RestByForecast(0.0), 1.0, np.array([0.2, 0.88]), np.array([0.01, 0.01]), np.array([10.0, 50.0, 100.0])
    )
    # 0.8 s and 0.12 s are left for 0.1, 0.5 and 1 s of tokens.
    assert found == pytest.approx([2 / 3, 1 / 3])


def test_only_a_run_between_safe_and_lost_has_a_stake() -> None:
    safe, torn, lost = (stake(RestByForecast(0.0), left_s, 0.01, 100.0) for left_s in (60.0, 1.2, 0.05))
    assert (safe, lost) == (0.0, 0.0)
    assert torn == pytest.approx(0.25 / 0.36)  # the third of four lengths, 1.15 s, misses if 0.36 s less are left
    assert stake(RestByForecast(0.0), -1.0, 0.01, 100.0) == 0.0


def test_the_expected_rest_is_cut_at_the_deadline() -> None:
    model = learned(*[ended(8.0)] * 300)
    rest = model.rest("w", "n", 1, None, FRESH, 0.0)
    assert expected_rest_s(rest, 16.0) == pytest.approx(4.0, abs=0.2)
    assert expected_rest_s(rest, 8.0) == pytest.approx(4.0, abs=0.2)
    assert expected_rest_s(rest, 2.0) == pytest.approx(2.0, abs=0.2)
    assert expected_rest_s(rest, 0.0) == 0.0


def test_likely_lengths_are_what_the_forecast_leaves_of_four_equal_parts() -> None:
    forecast = LengthForecast(p10_tokens=40.0, p50_tokens=100.0, p90_tokens=300.0, source="w")
    fresh, late = (
        Demand(
            context_tokens=500 + emitted, emitted=emitted, length=forecast, prefix_hashes=(), prefix_block_tokens=256
        )
        for emitted in (0, 90)
    )
    assert likely_lengths(fresh).tolist() == [40.0, 70.0, 200.0, 300.0]
    assert likely_lengths(late).tolist() == [1.0, 1.0, 110.0, 210.0]  # at least one token is to come


def test_the_way_that_foresees_better_of_late_is_followed() -> None:
    # While all runs take 8 s the SLO tells nothing; from then on a run takes half of its SLO.
    alike = [ended(8.0, slo_s=slo_s) for slo_s in ANY_SLO_S * 4]
    halves = [ended(0.5 * slo_s, slo_s=slo_s) for slo_s in (4.0, 9.0, 20.0, 45.0, 100.0, 220.0, 500.0) * 100]
    model = learned(*alike)
    assert isinstance(model.rest("w", "n", 1, 100.0, FRESH, 0.0), RestByVisit)
    for facts, ended_s in halves:
        model.learn(facts, ended_s)
    assert isinstance(model.rest("w", "n", 1, 100.0, FRESH, 0.0), RestBySlo)
    assert isinstance(model.rest("w", "n", 1, None, FRESH, 0.0), RestByVisit)  # without an SLO there is one way only


def test_kept_distributions_are_bounded_however_many_nodes_are_asked_about() -> None:
    model = RestModel(LengthConfig(max_keys=100))
    kept = []
    for i in range(250):
        model._by_visit("w", f"n{i}", 1)
        kept.append(len(model._kept))
    assert max(kept) == 100


def test_what_is_learned_replaces_what_was_kept() -> None:
    model = learned(*[ended(4.0)] * 5)
    before, _ = model._by_visit("w", "n", 1)
    assert model._by_visit("w", "n", 1)[0] is before
    facts, ended_s = ended(400.0)
    for _ in range(5):
        model.learn(facts, ended_s)
    after, _ = model._by_visit("w", "n", 1)
    assert within(after, 5.0) < within(before, 5.0)
