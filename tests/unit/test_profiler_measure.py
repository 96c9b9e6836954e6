"""What is planned, how a decode step is read from streams, what a profile predicts, and the file that is written."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentserve.errors import BadInput
from agentserve.profile_files import read_profiles
from agentserve.profiler.client import Reply
from agentserve.profiler.fit import Fit
from agentserve.profiler.measure import plan
from agentserve.profiler.plot import plot
from agentserve.profiler.points import Check, DecodePoint, Points, PrefillPoint
from agentserve.profiler.predict import predict
from agentserve.profiler.profile_file import (
    Subject,
    default_path,
    profile_entries,
    provenance,
    refuse_to_overwrite,
    to_toml,
    write_atomically,
)
from agentserve.profiler.tasks import Bounds, Decode, Prefill, decode_window
from scheduler.profiles import load_profile

BOUNDS = Bounds(
    max_prompt_tokens=4000, kv_capacity_tokens=20_000, max_num_seqs=16, max_batched_tokens=2048, block_tokens=16
)
POINTS = Points(
    (PrefillPoint(16, 0, (0.01,)), PrefillPoint(512, 0, (0.02,)), PrefillPoint(512, 1024, (0.025,))),
    (DecodePoint(1, 80.0, (0.008,)), DecodePoint(8, 640.0, (0.009,))),
    0.001,
)
FIT = Fit((0.005, 2e-5, 1.3e-9), (0.008, 5e-5, 5e-8), (0.01, -0.02, 0.0), (0.0, 0.03))
SUBJECT = Subject(
    gpu="my card", model="org/Model-1B", aliases=("one",), tensor_parallel=1, kv_bytes_per_token=1024,
    kv_link_bytes_per_s=None, engine="openai-compatible", engine_version="0.32.0",
)  # fmt: skip


def reply(first_s: float, steps: int, step_s: float, tokens: int = 1) -> Reply:
    times = tuple(first_s + step_s * i for i in range(steps))
    return Reply(0.0, times, (1, *[tokens] * (steps - 1)), 100, 0)


def test_every_planned_point_fits_the_engine() -> None:
    points = plan(BOUNDS)
    prefills = [point for point in points if isinstance(point, Prefill)]
    decodes = [point for point in points if isinstance(point, Decode)]
    assert max(point.new + point.cached for point in prefills) <= BOUNDS.max_prompt_tokens
    assert max(point.batch for point in decodes) <= BOUNDS.max_num_seqs
    assert max(point.batch * point.context for point in decodes) <= BOUNDS.kv_capacity_tokens
    assert len({(point.new, point.cached) for point in prefills}) == len(prefills)
    assert len({(point.batch, point.context) for point in decodes}) == len(decodes)


def test_each_kind_comes_early_in_the_plan() -> None:
    early = plan(BOUNDS)[:12]
    assert any(isinstance(point, Prefill) and point.cached for point in early)
    assert {point.batch for point in early if isinstance(point, Decode)} >= {1, 8}


def test_a_small_engine_still_has_points_to_tell_constants_apart() -> None:
    small = Bounds(
        max_prompt_tokens=200, kv_capacity_tokens=1000, max_num_seqs=4, max_batched_tokens=256, block_tokens=16
    )
    points = plan(small)
    assert len({point.new for point in points if isinstance(point, Prefill)}) >= 3
    assert len({point.batch for point in points if isinstance(point, Decode)}) >= 2


def test_a_step_is_read_where_the_whole_batch_decodes() -> None:
    early, late = reply(0.0, 40, 0.010), reply(0.2, 40, 0.010)
    context, step_s = decode_window([early, late], 100) or (0.0, 0.0)
    assert step_s == pytest.approx(0.010)
    assert context == pytest.approx(200 + (21 + 9.5) + (1 + 9.5), abs=1.0)


def test_chunks_of_several_tokens_are_as_many_steps() -> None:
    _, step_s = decode_window([reply(0.0, 20, 0.040, tokens=4)], 100) or (0.0, 0.0)
    assert step_s == pytest.approx(0.010)


def test_a_stall_and_its_burst_do_not_count() -> None:
    times = [0.01 * i for i in range(40)]
    times[20:24] = [0.235] * 4
    stalled = Reply(0.0, tuple(times), (1,) * 40, 100, 0)
    _, step_s = decode_window([stalled], 100) or (0.0, 0.0)
    assert step_s == pytest.approx(0.010)


def test_streams_that_never_overlap_tell_nothing() -> None:
    assert decode_window([reply(0.0, 10, 0.01), reply(5.0, 10, 0.01)], 100) is None


def test_a_lone_call_is_predicted_by_the_formulas() -> None:
    profile = load_profile("h100", "llama-3.1-8b")
    (call,) = predict(profile, [(0.0, 500, 20)], max_num_seqs=8, max_batched_tokens=8192, overhead_s=0.002)
    assert call.ttft_s == pytest.approx(profile.prefill_s(500) + 0.002)
    steps_s = sum(profile.decode_step_s(1, 500 + step) for step in range(1, 20))
    assert call.e2e_s == pytest.approx(profile.prefill_s(500) + steps_s + 0.002)


def test_calls_sent_together_wait_for_the_first_ones_step() -> None:
    profile = load_profile("h100", "llama-3.1-8b")
    calls = [(i * 1e-6, 500, 20) for i in range(8)]
    first, *rest = predict(profile, calls, max_num_seqs=8, max_batched_tokens=8192, overhead_s=0.0)
    assert first.ttft_s == pytest.approx(profile.prefill_s(500))
    assert all(call.ttft_s > 3 * first.ttft_s for call in rest)


def text() -> str:
    checks = [
        Check("TTFT", 1, 100, 20, 0, 0.11, 0.10, 3),
        Check("TTFT", 8, 100, 20, 0, 0.9, 1.0, 3),
        Check("E2E", 1, 100, 20, 0, 0.5, 0.5, 3),
    ]
    when = datetime(2026, 11, 24, 6, 30, tzinfo=UTC)
    return to_toml(profile_entries(SUBJECT, FIT, BOUNDS), provenance(SUBJECT, FIT, POINTS, BOUNDS, checks, when))


def test_a_written_profile_reads_back_with_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.toml"
    write_atomically(path, text().encode())

    profile = read_profiles([path])("My Card", "one")
    measured = tomllib.loads(path.read_text())["measured"]

    assert profile.prefill_s(100) == pytest.approx(0.005 + 2e-5 * 100 + 1.3e-9 * 100**2)
    assert profile.decode_step_s(8, 640) == pytest.approx(0.008 + 5e-5 * 8 + 5e-8 * 640)
    assert (profile.kv_capacity_tokens, profile.kv_link_bytes_per_s) == (20_000, 0.0)
    assert measured["at"] == "2026-11-24T06:30:00+00:00"
    assert measured["engine_version"] == "0.32.0"
    assert (measured["prefill_points"], measured["decode_points"], measured["samples"]) == (3, 2, 5)
    assert (measured["prefill_mape"], measured["decode_worst"]) == (0.01, 0.03)
    assert (measured["held_out_ttft_batch_1_mape"], measured["held_out_e2e_batch_1_mape"]) == (0.1, 0.0)
    assert [entry.name for entry in path.parent.iterdir()] == ["p.toml"]


def test_a_file_is_replaced_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    refuse_to_overwrite(path, force=False)
    path.write_text("mine")
    with pytest.raises(BadInput, match="exists: give --force"):
        refuse_to_overwrite(path, force=False)
    refuse_to_overwrite(path, force=True)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadInput, match=r"profile file .*taken/p\.toml: cannot be written"):
        write_atomically(tmp_path / "taken" / "p.toml", b"x")


def test_a_names_separators_do_not_become_folders() -> None:
    assert default_path("My/GPU", "../org/Model 1B") == Path("profiles/my-gpu--org-Model-1B.toml".lower())


def test_the_plot_is_an_svg_of_both_phases() -> None:
    picture = plot(POINTS, load_profile("h100", "llama-3.1-8b")).decode()
    assert picture.startswith("<?xml")
    assert "decode step" in picture
    assert "after 1,024 cached" in picture
