"""When runs come, whose they are, which part of a trace is used, and how tight their SLOs are."""

import json
import statistics
from itertools import pairwise

import pytest

from agentserve.errors import BadInput
from agentserve.lab.arrivals import Process, drawn_times, servegen_weights, with_tenants, zipf_weights
from agentserve.lab.generated import generated_runs
from agentserve.lab.plans import ClassSlo, FixedSlo, RunPlan, SoloScaleSlo, SpreadSlo, StepPlan, solo_s
from agentserve.lab.workloads import BUNDLED, WorkloadOptions, load_workload, read_arrivals, trace_path
from scheduler.profiles import load_profile, profile_book


def cv_of(times):
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return statistics.pstdev(gaps) / statistics.mean(gaps)


@pytest.mark.parametrize("process", [Process.GAMMA, Process.HYPEREXPONENTIAL])
@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_drawn_arrivals_have_the_rate_and_the_burstiness_asked_for(process, cv):
    times = drawn_times(process, 40_000, 2.0, cv, seed=5)
    assert len(times) == 40_000
    assert times == sorted(times)
    assert times[0] == 0.0
    assert cv_of(times) == pytest.approx(cv, rel=0.1)
    assert len(times) / times[-1] == pytest.approx(2.0, rel=0.1)


def test_a_poisson_process_has_a_cv_of_one_whatever_is_said():
    assert cv_of(drawn_times(Process.POISSON, 20_000, 1.0, 7.0, seed=1)) == pytest.approx(1.0, rel=0.05)


def test_one_seed_gives_one_process():
    draw = [drawn_times(Process.GAMMA, 20, 1.0, 3.0, seed) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize(("process", "cv"), [(Process.HYPEREXPONENTIAL, 0.5), (Process.GAMMA, 1000.0)])
def test_a_burstiness_that_a_process_cannot_have_is_refused(process, cv):
    with pytest.raises(BadInput, match=f"cv is {cv:g}; a {process} process can have"):
        drawn_times(process, 5, 1.0, cv, 0)


def test_the_bundled_code_arrivals_are_bursty_and_the_conversation_ones_are_not():
    assert cv_of(read_arrivals(BUNDLED["azure-code"], 5000)) > 10
    assert cv_of(read_arrivals(BUNDLED["azure-conv"], 5000)) < 2


def test_drawn_arrivals_take_the_place_of_the_traces_own(tmp_path):
    def loaded(**more):
        options = WorkloadOptions(limit=500, rate_per_s=3.0, **more)
        return load_workload(BUNDLED["mooncake-conversation"], options)

    drawn, own = loaded(process=Process.GAMMA, cv=5.0), loaded()
    assert [plan.steps for plan in drawn.plans] == [plan.steps for plan in own.plans]
    assert [plan.arrival_s for plan in drawn.plans] != [plan.arrival_s for plan in own.plans]
    assert "Gamma arrivals (CV 5), 3 runs/s" in drawn.notes
    assert drawn.plans[-1].arrival_s == pytest.approx(499 / 3)
    with pytest.raises(BadInput, match="not from both"):
        loaded(process=Process.GAMMA, arrivals=BUNDLED["azure-code"])


def test_skip_and_take_give_disjoint_parts_of_sessions():
    def sessions(**part):
        return {plan.session_id for plan in load_workload(BUNDLED["coding-agent"], WorkloadOptions(**part)).plans}

    tuning, evaluation = sessions(take=30), sessions(skip=30)
    assert tuning
    assert evaluation
    assert not tuning & evaluation
    assert tuning | evaluation == sessions()


def test_skip_and_take_give_disjoint_rows_that_begin_at_zero():
    def rows(**part):
        return load_workload(BUNDLED["mooncake-conversation"], WorkloadOptions(**part)).plans

    first, second = rows(take=100), rows(skip=100, limit=50)
    assert len(first) == 100
    assert {plan.run_id for plan in first}.isdisjoint(plan.run_id for plan in second)
    assert second[0].arrival_s == 0.0
    assert [p.run_id for p in second] == [p.run_id for p in rows()[100:150]]


def test_the_two_bundled_session_files_are_disjoint():
    one, other = (
        {plan.session_id for plan in load_workload(BUNDLED[name]).plans} for name in ("coding-agent", "coding-agent-2")
    )
    assert not one & other


def test_a_drawn_start_gives_each_seed_rows_of_its_own():
    def rows(seed):
        options = WorkloadOptions(limit=200, drawn_start=True, seed=seed)
        return [plan.run_id for plan in load_workload(BUNDLED["mooncake-conversation"], options).plans]

    assert len(rows(1)) == 200
    assert rows(1) == rows(1) != rows(2)


def test_a_repeated_trace_has_other_sessions_and_shares_no_text():
    plans = []
    for repeats in (1, 3):
        path = trace_path("mooncake-conversation")
        plans.append(load_workload(path, WorkloadOptions(take=4, repeats=repeats)).plans)
    assert len(plans[1]) == 12
    assert len({plan.run_id for plan in plans[1]}) == 12
    assert len({plan.steps[0].block_space for plan in plans[1]}) == 3


def test_a_trace_is_named_or_a_path_relative_to_the_scenario(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"x": 1}))
    assert trace_path("servegen") == BUNDLED["servegen"]
    assert trace_path("mine.jsonl", tmp_path) == tmp_path / "mine.jsonl"
    with pytest.raises(BadInput, match=r"no trace 'azure'.*azure-code, azure-conv, servegen"):
        trace_path("azure", tmp_path)


def test_the_bundled_slices_stay_small():
    assert sum(path.stat().st_size for path in BUNDLED.values()) < 1_500_000


# -- tenants ---------------------------------------------------------------------------------------------------------


def test_sessions_go_to_tenants_by_weight():
    plans = generated_runs({"coder": 1.0}, 4000, 0).plans
    given = with_tenants(plans, zipf_weights(4, 1.0), seed=3)
    counts = [sum(plan.tenant == name for plan in given) / 4000 for name in ("t1", "t2", "t3", "t4")]
    assert counts == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.03)
    assert given == with_tenants(plans, zipf_weights(4, 1.0), seed=3)


def test_turns_of_a_session_have_one_tenant():
    plans = load_workload(BUNDLED["coding-agent"]).plans
    tenants = {}
    for plan in with_tenants(plans, zipf_weights(10, 1.0), seed=0):
        tenants.setdefault(plan.session_id, set()).add(plan.tenant)
    assert all(len(found) == 1 for found in tenants.values())
    assert len(set.union(*tenants.values())) > 3


def test_tenants_with_prompts_of_their_own_share_only_within_themselves():
    given = with_tenants(generated_runs({"coder": 1.0}, 50, 0).plans, zipf_weights(2, 0.0), 0, own_prompts=True)
    spaces = {plan.tenant: plan.steps[0].block_space for plan in given}
    assert len(set(spaces.values())) == 2
    assert all(plan.steps[0].block_space == spaces[plan.tenant] for plan in given)


def test_weights_of_tenants_are_the_mean_rates_of_servegens_clients():
    weights = list(servegen_weights(BUNDLED["servegen"]).values())
    assert weights == sorted(weights, reverse=True)
    assert sum(weights[:3]) > 0.5 * sum(weights)
    with pytest.raises(BadInput, match="ServeGen client windows"):
        servegen_weights(BUNDLED["azure-conv"])


def test_servegen_runs_are_their_clients():
    plans = load_workload(BUNDLED["servegen"], WorkloadOptions(limit=300)).plans
    assert len({plan.tenant for plan in plans}) > 3
    assert all(plan.tenant == plan.session_id for plan in plans)


# -- SLOs ------------------------------------------------------------------------------------------------------------


def run_of(run_id="r", workflow="w", out=100):
    step = StepPlan(step_id="s0", node="n", prompt_tokens=1000, output_tokens=out)
    return RunPlan(run_id=run_id, workflow=workflow, arrival_s=0.0, session_id="s", steps=(step,))


def test_an_slo_per_class_does_not_tell_how_long_a_run_is():
    rule = ClassSlo(by_workflow={"coder": 30.0}, default_s=9.0)
    assert [rule.slo_s(run_of(workflow=name, out=out)) for name, out in (("coder", 1), ("coder", 999), ("x", 5))] == [
        30.0, 30.0, 9.0,
    ]  # fmt: skip
    assert rule.describe() == "fixed: coder 30 s, others 9 s"


def test_a_class_without_an_slo_is_named():
    with pytest.raises(BadInput, match="no SLO for the workflow 'w'; there are some for coder"):
        ClassSlo(by_workflow={"coder": 30.0}).slo_s(run_of())
    with pytest.raises(BadInput, match="SLO of coder must be a positive"):
        ClassSlo(by_workflow={"coder": 0.0})


def test_a_spread_slo_is_log_normal_around_its_rule_and_the_same_for_every_policy():
    rule = SpreadSlo(rule=FixedSlo(10.0), sigma=0.5, seed=4)
    drawn = [rule.slo_s(run_of(f"r{i}")) for i in range(4000)]
    assert drawn[:50] == [rule.slo_s(run_of(f"r{i}")) for i in range(50)]
    assert statistics.median(drawn) == pytest.approx(10.0, rel=0.05)
    assert statistics.quantiles(drawn, n=100)[83] == pytest.approx(10.0 * 2.718281828**0.5, rel=0.07)
    assert SpreadSlo(rule=FixedSlo(10.0), seed=5).slo_s(run_of("r0")) != drawn[0]
    assert SpreadSlo(rule=FixedSlo(10.0), sigma=0.0).slo_s(run_of("r0")) == 10.0


def test_a_solo_time_may_be_of_a_users_own_gpu():
    entry = {
        "gpu": "l4", "model": "tiny", "prefill_s": [0.01, 1e-4, 0.0], "decode_s": [0.02, 0.0, 0.0],
        "kv_bytes_per_token": 1000, "kv_capacity_tokens": 50_000,
    }  # fmt: skip
    book = profile_book([("here", entry)])
    rule = SoloScaleSlo(2.0, gpu="l4", model="tiny", profiles=book)
    assert rule.slo_s(run_of()) == pytest.approx(2 * (0.01 + 0.1 + 99 * 0.02))
    assert SoloScaleSlo(1.0, model="llama-3.1-8b").slo_s(run_of()) == solo_s(
        run_of(), load_profile("h100", "llama-3.1-8b")
    )
