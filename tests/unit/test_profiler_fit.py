"""The fit: constants come back from times made of them, through outliers, chunks and missing terms."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.errors import BadInput
from agentserve.profiler.fit import fit, least_squares, prefill_row
from agentserve.profiler.points import DecodePoint, Points, PrefillPoint

PREFILL = (0.005, 2e-5, 1.3e-9)
DECODE = (0.008, 5e-5, 5e-8)
OVERHEAD_S = 0.002
LENGTHS = ((16, 0), (64, 0), (256, 0), (1024, 0), (4096, 0), (16_384, 0), (256, 4096), (1024, 16_384))
BATCHES = tuple((batch, batch * each) for batch in (1, 4, 16, 64) for each in (64, 512, 4096))


def dot(row: tuple[float, ...], constants: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(row, constants, strict=True))


def points(prefill: tuple[float, ...] = PREFILL, decode: tuple[float, ...] = DECODE, batched: int = 8192) -> Points:
    prefills = [PrefillPoint(new, cached, (0.0,)) for new, cached in LENGTHS]
    return Points(
        tuple(
            PrefillPoint(p.new_tokens, p.cached_tokens, (dot(prefill_row(p, batched), prefill) + OVERHEAD_S,))
            for p in prefills
        ),
        tuple(DecodePoint(b, context, (dot((1.0, b, context), decode),)) for b, context in BATCHES),
        OVERHEAD_S,
    )


def test_constants_come_back_from_their_own_times() -> None:
    fitted = fit(points(), 8192)
    assert fitted.prefill_s == pytest.approx(PREFILL)
    assert fitted.decode_s == pytest.approx(DECODE)
    assert max(map(abs, (*fitted.prefill_errors, *fitted.decode_errors))) < 1e-6


def test_the_base_is_paid_once_per_chunk() -> None:
    assert prefill_row(PrefillPoint(4097, 0, ()), 2048) == (3.0, 4097.0, 4097.0**2)
    assert fit(points(batched=2048), 2048).prefill_s == pytest.approx(PREFILL)
    assert fit(points(batched=2048), 8192).prefill_s != pytest.approx(PREFILL, rel=0.01)


def test_a_cached_prefix_costs_attention_only() -> None:
    assert prefill_row(PrefillPoint(10, 100, ()), 2048) == (1.0, 10.0, 10.0**2 + 2 * 100 * 10)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3).filter(lambda kept: kept[0] + kept[1] > 0))
def test_terms_that_an_engine_lacks_come_out_as_nothing(kept: list[float]) -> None:
    wanted = tuple(keep * value for keep, value in zip(kept, PREFILL, strict=True))
    found = fit(points(prefill=wanted), 8192).prefill_s
    assert found == pytest.approx(wanted, abs=1e-12, rel=1e-6)


def test_constants_are_never_negative() -> None:
    rows = [(1.0, float(n), 0.0) for n in (1, 2, 3, 4)]
    assert least_squares(rows, [4.0, 3.0, 2.0, 1.0])[1] == 0.0


def test_a_disturbed_point_bends_the_rest_little() -> None:
    given_points = points()
    disturbed = PrefillPoint(1024, 0, (given_points.prefill[3].ttft_s * 3,))
    prefill = (*given_points.prefill[:3], disturbed, *given_points.prefill[4:])
    fitted = fit(Points(prefill, given_points.decode, OVERHEAD_S), 8192)
    for row in [prefill_row(p, 8192) for p in given_points.prefill]:
        assert dot(row, fitted.prefill_s) == pytest.approx(dot(row, PREFILL), rel=0.03)


def test_noise_of_a_few_percent_leaves_predictions_within_as_much() -> None:
    random = Random(7)
    clean = points()
    noisy = Points(
        tuple(PrefillPoint(p.new_tokens, p.cached_tokens, (p.ttft_s * random.gauss(1, 0.03),)) for p in clean.prefill),
        tuple(DecodePoint(p.batch, p.context_tokens, (p.step_s * random.gauss(1, 0.03),)) for p in clean.decode),
        OVERHEAD_S,
    )
    fitted = fit(noisy, 8192)
    for point in clean.decode:
        row = (1.0, point.batch, point.context_tokens)
        assert dot(row, fitted.decode_s) == pytest.approx(dot(row, DECODE), rel=0.05)


def test_too_few_points_are_refused() -> None:
    full = points()
    with pytest.raises(BadInput, match="fewer than 3 prompt lengths"):
        fit(Points(full.prefill[:2], full.decode, 0.0), 8192)
    with pytest.raises(BadInput, match="fewer than 2 batch sizes"):
        fit(Points(full.prefill, full.decode[:3], 0.0), 8192)


def test_repeats_count_by_their_lower_quartile_and_their_median() -> None:
    assert PrefillPoint(1, 0, (9.0, 1.0, 2.0, 3.0, 8.0)).ttft_s == 2.0
    assert PrefillPoint(1, 0, (5.0,)).ttft_s == 5.0
    assert DecodePoint(1, 1.0, (9.0, 1.0, 2.0)).step_s == 2.0
