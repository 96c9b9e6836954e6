"""`agentserve profile` against real vLLM on CPU: the fitted profile predicts calls that it has not seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentserve.profiler.client import EngineClient
from agentserve.profiler.points import Check, mape
from agentserve.profiler.profile import Request, profile_engine
from tests.engines.servers import EngineServer, running, vllm

BATCHED_TOKENS = 2048
BUDGET_S = 120.0
WORST_MAPE = 0.15


@pytest.fixture(scope="module")
def lone_vllm(runner, tiny_model: Path) -> Iterator[EngineServer]:
    """One server with room for eight long prompts, and nobody beside it."""
    extra = ("--num-gpu-blocks-override", "1024", "--max-num-batched-tokens", str(BATCHED_TOKENS))
    servers = running(vllm(tiny_model, extra=extra))
    (server,) = runner.run(servers.__aenter__())
    try:
        yield server
    finally:
        runner.run(servers.__aexit__(None, None, None))


@pytest.mark.timeout(900)
async def test_held_out_calls_are_predicted_solo_and_at_batch_8(lone_vllm: EngineServer) -> None:
    request = Request(gpu="cpu", budget_s=BUDGET_S, kv_bytes_per_token=1024, max_batched_tokens=BATCHED_TOKENS)
    async with EngineClient(lone_vllm.url) as client:
        result = await profile_engine(client, request)

    print(f"\np = {result.fit.prefill_s}, d = {result.fit.decode_s}, HTTP {result.points.overhead_s * 1e3:.2f} ms")
    print(
        f"fit: prefill {mape(list(result.fit.prefill_errors)):.1%}, decode {mape(list(result.fit.decode_errors)):.1%}"
    )
    found = {
        (figure, batch): mape(
            [check.error for check in result.checks if (check.figure, check.batch) == (figure, batch)]
        )
        for figure in ("TTFT", "E2E")
        for batch in (1, 8)
    }
    for (figure, batch), error in found.items():
        print(f"held-out {figure} at batch {batch}: MAPE {error:.1%}")
    print(*map(line, result.checks), sep="\n")

    assert result.notes == ()
    assert result.bounds.kv_capacity_tokens == 1024 * 32
    assert any(point.cached_tokens for point in result.points.prefill)
    assert {key: error for key, error in found.items() if error is None or error > WORST_MAPE} == {}


def line(check: Check) -> str:
    return (
        f"{check.figure:4} {check.batch} × ({check.prompt_tokens} + {check.output_tokens}) #{check.rank}: predicted "
        f"{check.predicted_s * 1e3:.1f} ms, measured {check.measured_s * 1e3:.1f} ms ({check.error:+.1%})"
    )
