"""Made-up replay results with known figures: the tests of tables and reports read them."""

import random

from agentserve.lab.results import Placement, ReplayResult
from agentserve.records import CallRecord, RunRecord

INSTANCES = ("a100-80g-1", "a100-80g-2", "h100-1", "h200-1")


def made_up_result(policy="agentserve", runs=60, pace=1.0, seed=1, slo_s=8.0):
    """`runs` runs of three calls, half a second apart; `pace` stretches their times."""
    draw = random.Random(seed)
    calls, ended, placements = [], [], []
    for index in range(runs):
        start_s = 1000.0 + index * 0.5
        at_s = start_s
        for step in range(3):
            ttft_s, tokens = draw.lognormvariate(-1.2, 0.6) * pace, draw.randint(20, 400)
            end_s = at_s + ttft_s + tokens * 0.008 * pace
            call = CallRecord(
                request_id=f"r{index}.{step}",
                run_id=f"r{index}",
                node="agent",
                arrived_s=at_s,
                first_token_s=at_s + ttft_s,
                finished_s=end_s,
                prompt_tokens=900,
                output_tokens=tokens,
                migrations=int(draw.random() < 0.05 / pace),
                split=draw.random() < 0.1 / pace,
            )
            calls.append(call)
            instance = draw.choice(INSTANCES)
            placements.append(
                Placement(request_id=call.request_id, at_s=at_s, prefill_instance=instance, decode_instance=instance)
            )
            if call.migrations:
                placements.append(
                    Placement(
                        request_id=call.request_id,
                        at_s=end_s,
                        prefill_instance="h200-1",
                        decode_instance="h200-1",
                        cause="late",
                    )
                )
            at_s = end_s + 0.3
        ended.append(
            RunRecord(
                run_id=f"r{index}",
                workflow="coding-agent",
                submitted_s=start_s,
                finished_s=at_s - 0.3,
                slo_s=slo_s,
                succeeded=index % 20 != 19,
            )
        )
    return ReplayResult(
        policy=policy,
        source="made up",
        model="llama-3.1-8b",
        speed=8.0,
        seed=seed,
        slo="2 x the run's solo time on one h100, tool times included",
        started_s=1000.0,
        finished_s=max(run.finished_s for run in ended) if ended else 1000.0,
        calls=tuple(calls),
        runs=tuple(ended),
        placements=tuple(placements),
        notes=("prompt tokens x 0.25",),
        errors={"HTTP 503: no instance <b>serves</b>": 3},
    )
