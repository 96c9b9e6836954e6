"""No policy beats the upper bound, and the bound only grows with SLOs and fleet."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentserve.lab.bounds import upper_bound
from agentserve.lab.options import SimulatedInstance
from agentserve.lab.plans import RunPlan, StepPlan, Workload, solo_s
from agentserve.lab.simulation import simulate
from scheduler.events import InstanceSpec
from scheduler.policies import policy_names
from scheduler.profiles import load_profile
from workflows.graph import single_step

MODEL = "llama-3.1-8b"
GPUS = ("a100-80g", "h100", "h200")
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def steps(draw: st.DrawFn) -> tuple[StepPlan, ...]:
    """A chain or a small DAG whose calls share a growing prefix."""
    made: list[StepPlan] = []
    blocks = draw(st.integers(0, 60))
    for number in range(draw(st.integers(1, 4))):
        blocks += draw(st.integers(0, 20))
        before = [one.step_id for one in made]
        parents = draw(st.lists(st.sampled_from(before), min_size=1, max_size=2, unique=True)) if before else []
        made.append(
            StepPlan(
                step_id=f"s{number}",
                node="call",
                prompt_tokens=max(1, blocks * 64 + draw(st.integers(-32, 200))),
                output_tokens=draw(st.integers(1, 150)),
                parents=tuple(parents),
                tool_gap_s=draw(st.sampled_from([0.0, 0.5])) if parents else 0.0,
                blocks=((0, blocks),) if blocks else (),
                block_tokens=64,
                block_space=draw(st.sampled_from(["shared", "also shared"])),
            )
        )
    return tuple(made)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """A burst of runs, more than a GPU or two can serve in time."""
    shapes = draw(st.lists(steps(), min_size=1, max_size=4))
    count = draw(st.integers(1, 30))
    spread_s = draw(st.sampled_from([0.0, 0.3, 3.0]))
    plans = tuple(
        RunPlan(
            run_id=f"r{number}",
            workflow="w",
            arrival_s=spread_s * number / count,
            session_id=f"session{number % 5}",
            steps=shapes[number % len(shapes)],
        )
        for number in range(count)
    )
    return Workload(source="drawn", plans=plans, workflows={"w": single_step("w")})


fleets = st.lists(st.sampled_from(GPUS), min_size=1, max_size=3)


def instances(gpus: list[str], kv_share: float = 1.0) -> list[SimulatedInstance]:
    return [
        SimulatedInstance(
            spec=InstanceSpec(
                instance_id=f"{gpu}-{number}",
                model=MODEL,
                gpu=gpu,
                kv_capacity_tokens=int(kv_share * load_profile(gpu, MODEL).kv_capacity_tokens),
                block_tokens=64,
                max_num_seqs=256,
                max_batched_tokens=8192,
                kv_bytes_per_token=131_072,
                supports_priority=True,
                supports_replay=True,
            )
        )
        for number, gpu in enumerate(gpus)
    ]


def scaled(workload: Workload, scale: float) -> dict[str, float]:
    return {plan.run_id: scale * solo_s(plan, load_profile("h100", MODEL)) for plan in workload.plans}


@quick
@given(workloads(), fleets, st.floats(0.6, 6.0), st.sampled_from(policy_names()), st.sampled_from([1.0, 0.03]))
def test_no_policy_attains_more_than_the_bound(
    workload: Workload, gpus: list[str], scale: float, policy: str, kv_share: float
) -> None:
    slos, fleet = scaled(workload, scale), instances(gpus, kv_share)
    bound = upper_bound(workload, slos, fleet)
    result = simulate(workload, slos, fleet, model=MODEL, policy=policy)
    assert sum(run.attained is True for run in result.replay.runs) <= bound.at_most


@quick
@given(workloads(), fleets, st.floats(0.5, 4.0), st.floats(1.0, 2.0))
def test_looser_slos_never_lower_the_bound(workload: Workload, gpus: list[str], scale: float, looser: float) -> None:
    fleet = instances(gpus)
    tight = upper_bound(workload, scaled(workload, scale), fleet)
    loose = upper_bound(workload, scaled(workload, scale * looser), fleet)
    assert tight.at_most <= loose.at_most


@quick
@given(workloads(), fleets, st.sampled_from(GPUS), st.floats(0.5, 4.0))
def test_one_instance_more_never_lowers_the_bound(workload: Workload, gpus: list[str], more: str, scale: float) -> None:
    slos = scaled(workload, scale)
    assert (
        upper_bound(workload, slos, instances(gpus)).at_most
        <= upper_bound(workload, slos, instances([*gpus, more])).at_most
    )
