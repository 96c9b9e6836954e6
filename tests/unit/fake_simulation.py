"""A simulation in closed form with the real one's arguments and result: calls take their time alone, times a factor.

The factor depends on the policy, so that tests of tables, sweeps and reports know who is better.
"""

from agentserve.lab.plans import call_solo_s
from agentserve.lab.results import InstanceSample, InstanceUse, Placement, ReplayResult, SimulationResult
from agentserve.records import CallRecord, RunRecord

FACTORS = {"round_robin": 2.4, "least_requests": 1.6, "agentserve": 1.1}


def fake_simulate(workload, slos, instances, *, model, policy, params, profiles, seed, slo_rule, **more):
    factor = FACTORS.get(policy, 2.0) * (1 + 0.02 * seed)
    calls, runs, placements = [], [], []
    for number, plan in enumerate(workload.plans):
        ends = {}
        spec = instances[number % len(instances)].spec
        pace = factor * (0.5 + number % 7 / 5)
        for step in plan.steps:
            start_s = max((ends[p] for p in step.parents), default=plan.arrival_s) + step.tool_gap_s
            took_s = call_solo_s(step, profiles(spec.gpu, model)) * pace
            ends[step.step_id] = start_s + took_s
            request_id = f"{plan.run_id}.{step.step_id}"
            calls.append(
                CallRecord(
                    request_id=request_id, run_id=plan.run_id, node=step.node, arrived_s=start_s,
                    first_token_s=start_s + took_s / 4, finished_s=start_s + took_s, prompt_tokens=step.prompt_tokens,
                    output_tokens=step.output_tokens, cached_tokens=step.shared_prefix_tokens,
                    migrations=int(number % 5 == 0),
                )
            )  # fmt: skip
            placements.append(
                Placement(request_id=request_id, at_s=start_s, prefill_instance=spec.instance_id,
                          decode_instance=spec.instance_id)
            )  # fmt: skip
            if number % 5 == 0:
                other = instances[(number + 1) % len(instances)].spec.instance_id
                placements.append(
                    Placement(request_id=request_id, at_s=start_s + took_s / 2, prefill_instance=other,
                              decode_instance=other, cause="late")
                )  # fmt: skip
        runs.append(
            RunRecord(
                run_id=plan.run_id, workflow=plan.workflow, submitted_s=plan.arrival_s, finished_s=max(ends.values()),
                slo_s=slos[plan.run_id], succeeded=True,
            )
        )  # fmt: skip
    end_s = max(run.finished_s for run in runs)
    names = [instance.spec for instance in instances]
    return SimulationResult(
        replay=ReplayResult(
            policy=policy, source=workload.source, model=model, speed=1.0, seed=seed, slo=slo_rule, started_s=0.0,
            finished_s=end_s, calls=tuple(calls), runs=tuple(runs), placements=tuple(placements), notes=workload.notes,
            errors={},
        ),
        instances=tuple(
            InstanceUse(instance_id=spec.instance_id, gpu=spec.gpu, busy_s=end_s / 2, prefill_tokens=100,
                        cached_tokens=50, output_tokens=10, preemptions=1, calls=3)
            for spec in names
        ),
        samples=tuple(
            InstanceSample(at_s=end_s * i / 10, instance_id=spec.instance_id, running=i, waiting=i // 2,
                           kv_usage=i / 10)
            for i in range(10) for spec in names
        ),
        events=len(calls), wall_s=0.01,
    )  # fmt: skip


def broken_simulate(*args, **more):
    raise AssertionError("nothing was to be simulated")
