"""How a scenario's simulations are run: once each, kept at once, resumed; and what is told of them."""

import json
import random
import statistics
from dataclasses import replace

import pytest

from agentserve.errors import BadInput
from agentserve.lab.intervals import attained_share, over_seeds, t95
from agentserve.lab.outcome import Outcome, outcome_of
from agentserve.lab.plans import RunPlan, Workload
from agentserve.lab.points import cases_of, points_of, with_settings
from agentserve.lab.record_files import read_records
from agentserve.lab.results import InstanceUse, SimulationResult
from agentserve.lab.scenario import read_scenario
from agentserve.lab.sweep import ROWS_FILE, records_of, run_points, simulated
from agentserve.lab.tuned import tuned_parameters
from agentserve.records import CallRecord, RunRecord
from tests.unit.fake_simulation import broken_simulate, fake_simulate
from tests.unit.made_up_results import made_up_result

SCENARIO = """
model = "llama-3.1-8b"
seeds = [1, 2]
compare = ["round_robin", "agentserve"]
[[fleet]]
gpu = "a100"
[[fleet]]
gpu = "h100"
[workload]
generator = "catalog"
rate = 2.0
limit = 30
[sweep]
rates = [1.0, 2.0]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return read_scenario(str(path))


def settings(rows):
    return [(row.axes["workload.rate"], row.label, row.seed) for row in rows]


def test_every_point_policy_and_seed_is_one_row_in_the_scenarios_order(file):
    rows = run_points(file, jobs=1, simulate=fake_simulate)
    assert settings(rows) == [
        (rate, policy, seed) for rate in (1.0, 2.0) for policy in ("round_robin", "agentserve") for seed in (1, 2)
    ]
    assert {row.scenario for row in rows} == {"small"}
    better = [row.outcome.figures["attainment"] for row in rows if row.label == "agentserve"]
    worse = [row.outcome.figures["attainment"] for row in rows if row.label == "round_robin"]
    assert min(better) > max(worse)


def test_points_that_come_to_the_same_are_simulated_once(file):
    told = []
    twice = replace(file, raw=file.raw | {"sweep": {"slo_scales": [2.0, 1.0], "combine": "each"}})
    rows = run_points(twice, jobs=1, simulate=fake_simulate, on_row=lambda done, total, row: told.append((done, total)))
    assert len(rows) == 12
    assert told[-1] == (8, 8)


def test_processes_give_the_same_rows_as_one(file, tmp_path):
    def plain(rows):
        return [(row.axes, row.label, row.seed, row.outcome) for row in rows]

    one = run_points(file, jobs=1, simulate=fake_simulate)
    assert plain(run_points(file, jobs=2, simulate=fake_simulate)) == plain(one)


def test_what_was_simulated_is_not_simulated_again(file, tmp_path):
    first = run_points(file, out=tmp_path / "out", jobs=1, simulate=fake_simulate)
    assert run_points(file, out=tmp_path / "out", jobs=1, simulate=broken_simulate) == first


class _Interrupting:
    """Stops like Ctrl-C before the n-th simulation."""

    def __init__(self, after):
        self.left = after

    def __call__(self, *args, **more):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return fake_simulate(*args, **more)


def test_an_interrupted_sweep_keeps_what_is_done_and_goes_on_from_there(file, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_points(file, out=out, jobs=1, simulate=_Interrupting(3))
    assert len((out / ROWS_FILE).read_text().splitlines()) == 3
    told = []
    rows = run_points(
        file, out=out, jobs=1, simulate=_Interrupting(5), on_row=lambda done, total, row: told.append((done, total))
    )
    assert told == [(number, 8) for number in range(4, 9)]
    assert [row.outcome for row in rows] == [row.outcome for row in run_points(file, jobs=1, simulate=fake_simulate)]


def test_a_line_that_was_cut_off_is_made_anew(file, tmp_path):
    out = tmp_path / "out"
    first = run_points(file, out=out, jobs=1, simulate=fake_simulate)
    path = out / ROWS_FILE
    path.write_bytes(path.read_bytes()[:-40])
    again = run_points(file, out=out, jobs=1, simulate=_Interrupting(1))
    assert again == first
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 8


def test_a_file_that_is_not_the_labs_is_refused_naming_the_line(file, tmp_path):
    (tmp_path / ROWS_FILE).write_text('{"key": 1}\n')
    with pytest.raises(BadInput, match=r"rows.jsonl: line 1: not an outcome of the lab"):
        run_points(file, out=tmp_path, jobs=1, simulate=fake_simulate)


def test_only_the_scenario_as_it_stands_when_not_swept(file):
    rows = run_points(file, ["agentserve"], [7], jobs=1, simulate=fake_simulate, swept=False)
    assert [(row.axes, row.label, row.seed) for row in rows] == [({}, "agentserve", 7)]


def test_a_request_that_is_too_long_is_told_with_the_file(file):
    small = replace(file, raw=file.raw | {"fleet": [{"gpu": "h100", "kv_capacity_tokens": 500}]})
    with pytest.raises(BadInput, match=r"scenario .*small.toml: workload: call s0 of run .* holds 500"):
        run_points(small, jobs=1, simulate=broken_simulate)


def test_records_are_kept_as_parquet_and_read_back(file, tmp_path):
    rows = run_points(file, out=tmp_path / "out", jobs=1, simulate=fake_simulate)
    case = cases_of(file, points_of(file))[0]
    whole, workload = simulated(case, fake_simulate)
    outcome = rows[0].outcome
    back = read_records(records_of(tmp_path / "out", outcome.key), outcome)
    assert back.replay.runs == whole.replay.runs
    assert back.replay.calls == whole.replay.calls
    assert back.replay.placements == whole.replay.placements
    assert (back.instances, back.samples) == (whole.instances, whole.samples)
    assert back.replay.notes == workload.notes


def test_records_that_are_not_there_are_named(file, tmp_path):
    outcome = run_points(file, jobs=1, simulate=fake_simulate)[0].outcome
    with pytest.raises(BadInput, match=r"runs.parquet: cannot be read"):
        read_records(tmp_path, outcome)


# -- figures ---------------------------------------------------------------------------------------------------------


def run(number, e2e_s, slo_s=2.0, ok=True):
    return RunRecord(
        run_id=f"r{number}",
        workflow="w",
        submitted_s=float(number),
        finished_s=number + e2e_s,
        slo_s=slo_s,
        succeeded=ok,
    )


def call(ok=True):
    return CallRecord(
        request_id="c", run_id="r0", node="n", arrived_s=0.0, first_token_s=0.1, finished_s=1.0, prompt_tokens=100,
        output_tokens=10, ok=ok,
    )  # fmt: skip


def outcome(runs, calls=(), tenants=None):
    replay = replace(made_up_result(runs=0), runs=tuple(runs), calls=tuple(calls), started_s=0.0, finished_s=10.0)
    uses = tuple(
        InstanceUse(instance_id=name, gpu=gpu, busy_s=busy_s, prefill_tokens=50, cached_tokens=0, output_tokens=0,
                    preemptions=2, calls=0)
        for name, gpu, busy_s in (("a-1", "a100", 5.0), ("a-2", "a100", 1.0), ("h-1", "h100", 4.0))
    )  # fmt: skip
    result = SimulationResult(replay=replay, instances=uses, samples=(), events=1, wall_s=0.1)
    plans = [
        RunPlan(run_id=run_id, workflow="w", arrival_s=0.0, session_id="s", steps=(), tenant=tenant)
        for run_id, tenant in (tenants or {}).items()
    ]
    return outcome_of(result, key="k", params={}, code="c", workload=Workload(source="x", plans=tuple(plans)))


def test_figures_are_as_defined():
    found = outcome([run(0, 1.0), run(1, 4.0), run(2, 8.0), run(3, 1.0, ok=False)], [call(), call(), call(ok=False)])
    figures = found.figures
    assert (figures["attainment"], figures["failed_runs"], figures["preemptions"]) == (0.25, 1, 6)
    assert (figures["goodput_per_s"], figures["arrival_goodput_per_s"]) == (1 / 10, 1 / 3)
    assert (figures["missed_slowdown_p50"], figures["missed_slowdown_p99"]) == (3.0, pytest.approx(3.98))
    assert figures["prefix_hit_share"] == 0.5
    assert figures["output_tokens"] == 30
    assert found.utilisation == {"a-1": 0.5, "a-2": 0.1, "h-1": 0.4}
    assert found.gpu_utilisation == {"a100": 0.3, "h100": 0.4}
    assert found.classes == {"w": 0.25}
    assert Outcome.from_plain(json.loads(json.dumps(found.to_plain()))) == found


def test_figures_that_cannot_be_formed_are_unknown():
    figures = outcome([]).figures
    for name in (
        "attainment",
        "goodput_per_s",
        "arrival_goodput_per_s",
        "missed_slowdown_p99",
        "prefix_hit_share",
        "tenant_attainment_min",
    ):
        assert figures[name] is None
    assert outcome([]).attainment_interval is None


def test_the_worst_tenant_is_one_with_enough_runs():
    runs = [run(number, 1.0 if number % 2 else 9.0) for number in range(20)] + [run(20, 9.0)]
    tenants = {f"r{number}": "big" for number in range(20)} | {"r20": "tiny"}
    assert outcome(runs, tenants=tenants).figures["tenant_attainment_min"] == 0.5


def test_the_interval_over_seeds_is_students():
    values = [0.5, 0.6, 0.7]
    found = over_seeds(values)
    half = 4.303 * statistics.stdev(values) / 3**0.5
    assert (found.mean, found.half) == (pytest.approx(0.6), pytest.approx(half))
    assert over_seeds([0.4]).half is None


def test_students_t_falls_to_the_normal_quantile():
    values = [t95(degrees) for degrees in (1, 2, 10, 30, 31, 60, 120, 10_000)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[2]) == (12.706, 2.228)
    assert t95(60) == pytest.approx(2.0003, abs=0.002)
    assert values[-1] == pytest.approx(1.960, abs=0.001)


def test_the_bootstrap_covers_independent_runs_as_the_binomial_does():
    draw = random.Random(3)
    outcomes = [run(number, 1.0 if draw.random() < 0.6 else 9.0) for number in range(1000)]
    low, high = attained_share(outcomes)
    assert low < sum(one.attained for one in outcomes) / 1000 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.6 * 0.4 / 1000) ** 0.5, rel=0.3)
    assert attained_share(outcomes) == (low, high)


def test_runs_that_fail_together_widen_the_interval():
    apart = [run(number, 1.0 if number % 2 else 9.0) for number in range(900)]
    together = [run(number, 1.0 if number // 50 % 2 else 9.0) for number in range(900)]
    narrow, wide = (attained_share(runs) for runs in (apart, together))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_too_few_runs_have_no_interval():
    assert attained_share([run(0, 1.0)]) is None
    assert attained_share([run(0, 1.0, slo_s=None), run(1, 1.0, slo_s=None)]) is None


@pytest.mark.parametrize("name", ["goodserve-four", "tenants", "coding-bursts"])
def test_shipped_scenarios_of_every_kind_run_through(name):
    file = with_settings(read_scenario(name), {"workload.limit": 40})
    (row,) = run_points(file, ["agentserve"], [1], jobs=1, simulate=fake_simulate, swept=False)
    assert row.outcome.figures["runs"] == 40


WHOLE = """
model = "llama-3.1-8b"
[[fleet]]
gpu = "h100"
role = "prefill"
[[fleet]]
gpu = "a100"
role = "decode"
slowdown = 1.2
[[fleet]]
gpu = "h200"
kv_capacity_tokens = 60_000
[workload]
rate = 4.0
limit = 24
arrivals = "hyperexponential"
tenants = { count = 3 }
[[workload.parts]]
generator = "catalog"
[[workload.parts]]
trace = "azure-conv"
take = 200
[slo]
rule = "solo_scale_lognormal"
alpha = 3.0
[scheduler.migration]
kv_moves = true
[simulation]
report_delay_s = 0.5
faults = [{ at_s = 2.0, instance_id = "h200-1", kind = "slow", factor = 2.0 }]
[policies.goodserve]
max_moves = 1
"""


def test_the_real_simulation_takes_all_that_a_scenario_says_and_repeats_itself(tmp_path):
    (tmp_path / "whole.toml").write_text(WHOLE)
    file = read_scenario(str(tmp_path / "whole.toml"))

    def told(jobs):
        rows = run_points(file, ["goodserve", "agentserve"], [3], jobs=jobs)
        return [replace(row.outcome, wall_s=0.0) for row in rows]

    one, other = told(1), told(2)
    assert one == other
    assert [outcome.policy for outcome in one] == ["goodserve", "agentserve"]
    for outcome in one:
        assert outcome.figures["runs"] == 24
        assert outcome.figures["failed_runs"] == 0
        assert 0 < outcome.figures["utilisation"] <= 1
        assert "log-normal" in outcome.slo
    assert one[0].params == {**tuned_parameters("goodserve"), "max_moves": 1}
