"""Agents on two real vLLM servers: deadlines, the engine's own order of service, one trace with vLLM's spans in it."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import agentserve
from tests.engines.conftest import Pair
from tests.engines.live import gateway_process
from tests.engines.servers import MODEL, running, vllm
from tests.integration.gateway_parts import until
from tests.integration.otlp_receiver import Receiver


@pytest.mark.parametrize("agent", ["researcher", "debate"])
async def test_a_catalog_agent_runs_with_deadlines_in_one_trace_with_the_engines_spans(
    agent: str, vllm_pair: Pair, spans: Receiver, tmp_path: Path
) -> None:
    async with gateway_process(*vllm_pair, folder=tmp_path, otlp_endpoint=spans.url) as url:
        ran = await agentserve(
            "run", f"workflows.catalog.{agent}:graph", "--slo", "300s", "--json", "--gateway", url,
            within_s=300, AGENTSERVE_MODEL=MODEL, AGENTSERVE_OTLP_ENDPOINT=spans.url,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        result = json.loads(ran.out)
        traced = await agentserve("trace", result["run_id"], "--json", "--gateway", url)
    steps = [step for step in json.loads(traced.out)["steps"] if step["kind"] == "llm"]
    calls = [call for step in steps for call in step["calls"]]
    assert all(step["target_deadline_s"] and step["latest_deadline_s"] for step in steps)
    assert all(call["why"]["candidates"] for call in calls)

    def story() -> list[Any]:
        run_span = next((s for s in spans.spans if _attribute(s, "agentserve.run.id") == result["run_id"]), None)
        return [] if run_span is None else [s for s in spans.spans if s.trace_id == run_span.trace_id]

    await until(lambda: sum(s.name == "llm_request" for s in story()) >= len(calls), timeout_s=60)
    found = story()
    by_id = {span.span_id: span for span in found}
    engine_spans = [span for span in found if span.name == "llm_request"]
    print(
        f"\n{agent} on two vLLM servers: {result['e2e_s']:.1f} s of {result['slo_s']:.0f} s, {len(calls)} calls; "
        f"one trace of {len(found)} spans, {len(engine_spans)} of them vLLM's own"
    )
    assert result["attained"]
    for span in engine_spans:
        assert _root_of(span, by_id).name.startswith("invoke_workflow"), "vLLM's span hangs in the run's tree"


async def test_the_engine_serves_calls_in_the_order_of_their_deadlines(tiny_model: Path, tmp_path: Path) -> None:
    slos_s = [60, 90, 120, 180, 240, 300, 400, 500]
    one_at_a_time = vllm(tiny_model, extra=("--max-num-seqs", "1"))
    async with (
        running(one_at_a_time) as (server,),
        gateway_process(server, folder=tmp_path) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=300) as client,
    ):
        ended: list[int] = []

        async def call(slo_s: int, tokens: int) -> None:
            headers = {"x-agentserve-slo-s": str(slo_s), "x-agentserve-run-id": f"run-{slo_s}"}
            body = {"model": MODEL, "prompt": f"{slo_s}", "max_tokens": tokens, "ignore_eos": True}
            answer = await client.post("/v1/completions", json=body, headers=headers)
            assert answer.is_success, answer.text
            ended.append(slo_s)

        async def load() -> float:
            page = await server.metrics()
            names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
            return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(names))

        async def loaded(calls: int) -> None:
            async def is_loaded() -> bool:
                return await load() == calls

            await until(is_loaded, timeout_s=60)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(30, 400))  # keeps the engine busy until all others wait inside it
            await loaded(1)
            shuffled = list(slos_s)
            random.Random(3).shuffle(shuffled)
            for slo_s in shuffled:
                tasks.create_task(call(slo_s, 8))
            await loaded(1 + len(slos_s))
    print(f"\npriority order on vLLM: sent {shuffled}, served {ended[1:]}")
    assert ended == [30, *slos_s]


def _attribute(span: Any, name: str) -> str | None:
    return next((one.value.string_value for one in span.attributes if one.key == name), None)


def _root_of(span: Any, by_id: dict[bytes, Any]) -> Any:
    while span.parent_span_id in by_id:
        span = by_id[span.parent_span_id]
    return span
