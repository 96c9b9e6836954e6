"""Whatever a scenario asks for, its runs come in order, fit their prompts and are the same again."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.lab.arrivals import Process, drawn_times
from agentserve.lab.generated import AGENTS, generated_runs
from agentserve.lab.intervals import attained_share
from agentserve.lab.loads import workload_of
from agentserve.lab.scenario import Load
from agentserve.records import RunRecord

SEEDS = st.integers(0, 2**31 - 1)


@given(st.sampled_from(list(Process)), st.integers(1, 300), st.floats(0.01, 100), st.floats(1.0, 30.0), SEEDS)
def test_drawn_arrivals_begin_at_zero_and_never_go_back(process, count, rate, cv, seed):
    times = drawn_times(process, count, rate, cv, seed)
    assert len(times) == count
    assert times[0] == 0.0
    assert times == sorted(times)


@given(st.dictionaries(st.sampled_from(AGENTS), st.floats(0.1, 10), min_size=1), st.integers(1, 20), SEEDS)
def test_generated_runs_are_graphs_whose_parents_come_first_and_whose_blocks_are_their_own(agents, count, seed):
    runs = generated_runs(agents, count, seed)
    own: set[int] = set()
    for plan in runs.plans:
        seen: set[str] = set()
        blocks: set[int] = set()
        for step in plan.steps:
            assert set(step.parents) <= seen
            seen.add(step.step_id)
            assert step.output_tokens >= 1
            assert 0 <= step.shared_prefix_tokens <= step.prompt_tokens
            assert sum(blocks for _, blocks in step.blocks) * 64 <= step.prompt_tokens
            blocks |= {block for block in step.block_ids() if block >= 1_000_000}
        assert not blocks & own
        own |= blocks


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        dict,
        generator=st.just("catalog"),
        limit=st.integers(1, 40),
        rate=st.floats(0.01, 100),
        arrivals=st.sampled_from(["own", "poisson", "gamma", "hyperexponential", "azure-code"]),
        skip=st.integers(0, 10_000),
        prompt_scale=st.floats(0.05, 4),
        tenants=st.one_of(st.none(), st.builds(dict, count=st.integers(1, 20), own_prompts=st.booleans())),
    ),
    SEEDS,
)
def test_a_workload_is_in_order_has_one_id_per_run_and_can_be_made_again(tables, seed):
    load = Load.model_validate({key: value for key, value in tables.items() if value is not None})
    workload = workload_of(load, Path(), seed)
    times = [plan.arrival_s for plan in workload.plans]
    assert times == sorted(times)
    assert len({plan.run_id for plan in workload.plans}) == len(workload.plans) == load.limit
    assert all(plan.tenant for plan in workload.plans) == (load.tenants is not None)
    assert workload_of(load, Path(), seed) == workload


@given(st.lists(st.booleans(), min_size=2, max_size=200), SEEDS)
def test_the_bootstrap_interval_lies_within_what_shares_can_be(outcomes, seed):
    runs = [
        RunRecord(
            run_id=f"r{number}", workflow="w", submitted_s=float(number), finished_s=number + (1.0 if good else 9.0),
            slo_s=2.0, succeeded=True,
        )
        for number, good in enumerate(outcomes)
    ]  # fmt: skip
    low, high = attained_share(runs, seed)
    assert 0 <= low <= high <= 1
    if all(outcomes) or not any(outcomes):
        assert low == high == sum(outcomes) / len(outcomes)
