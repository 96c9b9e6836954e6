"""The upper bound on hand-worked cases, and against every way of placing a few calls on real engine models."""

from collections.abc import Sequence
from itertools import product

import pytest

from agentserve.emulator.engine import Engine
from agentserve.emulator.sequence import EngineRequest
from agentserve.errors import BadInput
from agentserve.lab.bound_blocks import chain_cover, fresh_tokens
from agentserve.lab.bounds import upper_bound
from agentserve.lab.options import SimulatedInstance
from agentserve.lab.plans import RunPlan, StepPlan, Workload, solo_s
from scheduler.events import InstanceSpec
from scheduler.profiles import load_profile

MODEL = "llama-3.1-8b"


def instance(gpu: str = "h100", number: int = 1, slowdown: float = 1.0, speed: float = 1.0) -> SimulatedInstance:
    profile = load_profile(gpu, MODEL)
    return SimulatedInstance(
        spec=InstanceSpec(
            instance_id=f"{gpu}-{number}",
            model=MODEL,
            gpu=gpu,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            block_tokens=64,
            max_num_seqs=256,
            max_batched_tokens=8192,
            kv_bytes_per_token=profile.kv_bytes_per_token,
            speed=speed,
        ),
        slowdown=slowdown,
    )


def step(
    number: int = 0,
    prompt: int = 1000,
    output: int = 50,
    parents: Sequence[str] = (),
    gap_s: float = 0.0,
    blocks: Sequence[tuple[int, int]] = (),
) -> StepPlan:
    return StepPlan(
        step_id=f"s{number}",
        node="call",
        prompt_tokens=prompt,
        output_tokens=output,
        parents=tuple(parents),
        tool_gap_s=gap_s,
        blocks=tuple(blocks),
        block_tokens=64,
    )


def run(name: str, *steps: StepPlan, arrival_s: float = 0.0, session: str | None = None) -> RunPlan:
    return RunPlan(run_id=name, workflow="w", arrival_s=arrival_s, session_id=session or name, steps=steps)


def workload(*plans: RunPlan) -> Workload:
    return Workload(source="test", plans=plans)


def test_a_run_alone_attains_what_it_takes_alone_and_no_less() -> None:
    plan = run("a", step(0), step(1, parents=["s0"], gap_s=2.0))
    alone_s = solo_s(plan, load_profile("h100", MODEL))
    assert upper_bound(workload(plan), {"a": alone_s * 1.01}, [instance()]).at_most == 1
    short = upper_bound(workload(plan), {"a": alone_s * 0.97}, [instance()])
    assert (short.at_most, short.impossible, short.share) == (0, ("a",), 0.0)


def test_the_fastest_instance_decides_what_is_possible_alone() -> None:
    plan = run("a", step(0))
    alone_s = solo_s(plan, load_profile("h100", MODEL))
    assert upper_bound(workload(plan), {"a": alone_s * 1.01}, [instance("a100-80g")]).at_most == 0
    assert upper_bound(workload(plan), {"a": alone_s * 1.01}, [instance("a100-80g"), instance("h100")]).at_most == 1
    assert upper_bound(workload(plan), {"a": alone_s * 1.01}, [instance("h100", slowdown=1.2)]).at_most == 0
    assert upper_bound(workload(plan), {"a": alone_s / 2}, [instance("h100", speed=2.1)]).at_most == 1


def test_prefills_that_fill_the_window_go_one_by_one() -> None:
    """Three prompts of 8,000 tokens at once; time for two and a half of them: two can end."""
    prefill_s = load_profile("h100", MODEL).prefill_s(8000)
    plans = [run(name, step(0, prompt=8000, output=1)) for name in "abc"]
    slos = dict.fromkeys("abc", 2.5 * prefill_s)
    assert upper_bound(workload(*plans), slos, [instance()]).at_most == 2
    assert upper_bound(workload(*plans), slos, [instance(), instance(number=2)]).at_most == 3


def test_runs_without_an_slo_do_not_count() -> None:
    bound = upper_bound(workload(run("a", step(0)), run("b", step(0))), {"b": 100.0}, [instance()])
    assert (bound.runs, bound.at_most, bound.share) == (1, 1, 1.0)
    assert upper_bound(workload(run("a", step(0))), {}, [instance()]).share is None


def test_goodput_is_counted_from_the_first_to_the_last_arrival() -> None:
    plans = [run("a", step(0)), run("b", step(0), arrival_s=4.0)]
    assert upper_bound(workload(*plans), {"a": 99.0, "b": 99.0}, [instance()]).per_s == pytest.approx(0.5)


def test_a_fleet_without_instances_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one instance"):
        upper_bound(workload(run("a", step(0))), {"a": 1.0}, [])


def test_decodes_in_a_hurry_cannot_share_a_large_batch() -> None:
    """300 calls at once, with 1.3 times the time that one takes alone: a step may grow by 0.3, no more."""
    profile = load_profile("h100", MODEL)
    plans = [run(f"r{i}", step(0, prompt=64, output=200)) for i in range(300)]
    alone_s = solo_s(plans[0], profile)
    bound = upper_bound(workload(*plans), {plan.run_id: 1.3 * alone_s for plan in plans}, [instance()])
    growth_s = profile.decode_step_s(2, 328) - profile.decode_step_s(1, 164)
    fits = 0.3 * profile.decode_step_s(1, 164) / growth_s
    assert fits * 0.9 < bound.at_most < fits * 1.3


def test_a_block_is_charged_once_to_the_first_run_that_holds_it() -> None:
    first = run("a", step(0, prompt=640, blocks=[(0, 10)]), session="s")
    second = run("b", step(0, prompt=960, blocks=[(0, 10), (50, 5)]), arrival_s=1.0, session="s")
    apart = fresh_tokens([first, second], [0.5, 9.0])
    assert [apart[0, "s0"].charged_tokens, apart[1, "s0"].charged_tokens] == [640, 320]
    assert [apart[0, "s0"].own_tokens, apart[1, "s0"].own_tokens] == [640, 320]
    overlapping = fresh_tokens([first, second], [5.0, 9.0])
    assert overlapping[0, "s0"].charged_tokens == 640
    assert overlapping[0, "s0"].own_tokens == 1, "the second run may have computed all of it"
    assert overlapping[0, "s0"].held_tokens == 320, "half of what two may share"


def test_what_two_branches_share_is_nobodys_own() -> None:
    branches = [step(i, prompt=640, blocks=[(0, 8), (100 * i, 2)]) for i in (1, 2)]
    fresh = fresh_tokens([run("a", *branches)], [9.0])
    assert [fresh[0, f"s{i}"].charged_tokens for i in (1, 2)] == [640, 128]
    assert [fresh[0, f"s{i}"].own_tokens for i in (1, 2)] == [128, 128]


def test_a_prefix_kept_through_a_tool_call_is_counted_and_text_of_its_own_is_charged() -> None:
    plan = run(
        "a", step(0, prompt=640, blocks=[(0, 10)]), step(1, prompt=700, blocks=[(0, 10)], parents=["s0"], gap_s=1)
    )
    second = fresh_tokens([plan], [9.0])[0, "s1"]
    assert (second.kept_tokens, second.charged_tokens, second.own_tokens, second.held_tokens) == (640, 60, 60, 700)


def test_chains_cover_a_run_as_few_as_calls_can_be_alive() -> None:
    fan = [step(0), *[step(i, parents=["s0"]) for i in (1, 2, 3)], step(4, parents=["s1", "s2", "s3"])]
    assert chain_cover(fan) == 3
    assert chain_cover([step(0), step(1, parents=["s0"])]) == 1


def test_no_placement_of_a_few_calls_beats_the_bound_and_the_best_comes_close() -> None:
    plans = [run(f"r{i}", step(0, prompt=5000 + 600 * i, output=2), arrival_s=0.05 * i) for i in range(4)]
    gpus = ("a100-80g", "h100")
    for scale in (1.0, 2.0, 3.0):
        slos = {plan.run_id: scale * solo_s(plan, load_profile("h100", MODEL)) + 1e-6 for plan in plans}
        best = max(_attained(plans, slos, gpus, places) for places in product((None, 0, 1), repeat=len(plans)))
        bound = upper_bound(workload(*plans), slos, [instance(gpu) for gpu in gpus])
        assert best <= bound.at_most <= best + 1, scale


def _attained(
    plans: Sequence[RunPlan], slos: dict[str, float], gpus: Sequence[str], places: Sequence[int | None]
) -> int:
    """Runs of one call that end in time when each goes, as it comes, to the instance of its place (None: nowhere)."""
    attained = 0
    for number, gpu in enumerate(gpus):
        engine = Engine(load_profile(gpu, MODEL))
        coming = [plan for plan, place in zip(plans, places, strict=True) if place == number]
        due = {plan.run_id: plan.arrival_s + slos[plan.run_id] for plan in coming}
        now_s = 0.0
        while due:
            while coming and coming[0].arrival_s <= now_s:
                call = coming[0].steps[0]
                engine.add(
                    EngineRequest(
                        request_id=coming.pop(0).run_id,
                        prompt_tokens=call.prompt_tokens,
                        output_tokens=call.output_tokens,
                    )
                )
            result = engine.step(now_s)
            now_s = now_s + result.duration_s if result.duration_s else coming[0].arrival_s
            attained += sum(now_s <= due.pop(name) for name in result.finished)
    return attained
