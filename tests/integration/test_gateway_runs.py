"""Runs through the gateway: headers, REST, deadlines, errors, restarts and outages."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.local.redis import RedisServer
from agentserve.orchestrator.eventlog import EventLog
from agentserve.tracker import scripts
from agentserve.tracker.connection import Connection, Script
from scheduler.config import SchedulerConfig
from scheduler.core import make_scheduler
from scheduler.wire import header, replay
from tests.integration.gateway_parts import MODEL, Gateway, chunks, gateway, said, until

FAST = EmulatorConfig(gpu="h100", speed=50)
SLOW = EmulatorConfig(gpu="h100", speed=2)
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi [[reply tokens=3]]"}]}


@pytest.fixture
async def gate() -> Any:
    async with gateway(FAST, max_body_bytes=20_000, max_prompt_tokens=3000) as made:
        yield made


async def test_a_call_without_run_is_a_run_of_one_step_that_ends_with_it(gate: Gateway) -> None:
    answer = await gate.chat("hi", {"x-agentserve-slo-s": "20"}, max_tokens=3)
    run = (await gate.client.get(f"/v1/runs/{answer.headers['x-agentserve-run-id']}")).json()
    assert (run["status"], run["implicit"], run["slo_s"]) == ("succeeded", True, 20)
    assert [(step["node"], step["status"]) for step in run["steps"]] == [("call", "succeeded")]


async def test_a_run_goes_through_rest_and_calls_and_ends(gate: Gateway) -> None:
    made = await gate.client.post("/v1/runs", json={"run_id": "r", "workflow": "two", "slo_s": 30})
    again = await gate.client.post("/v1/runs", json={"run_id": "r", "workflow": "two", "slo_s": 30})
    assert (made.status_code, again.status_code) == (201, 200)
    head = {"x-agentserve-run-id": "r", "x-agentserve-step-id": "plan.1", "x-agentserve-node": "plan"}
    call = await gate.chat("hi", head, max_tokens=3)
    assert float(call.headers["x-agentserve-deadline"]) <= made.json()["deadline_s"]
    steps = [
        {"event": "finished", "step_id": "plan.1", "status": "succeeded", "at_s": time.time()},
        {"event": "started", "step_id": "look.2", "node": "look", "kind": "tool", "parents": ["plan.1"]},
        {"event": "finished", "step_id": "look.2"},
    ]
    for _ in range(2):  # a batch that is sent twice changes nothing more
        reported = await gate.client.post(
            "/v1/runs/r/steps", json={"steps": [{**s, "at_s": time.time()} for s in steps[:1]]}
        )
        assert reported.status_code == 200
    assert (await gate.client.post("/v1/runs/r/steps", json={"steps": steps[1:]})).status_code == 200
    ended = await gate.client.post("/v1/runs/r/finish", json={"status": "succeeded"})
    assert ended.json()["status"] == "succeeded"
    assert (await gate.client.post("/v1/runs/r/finish", json={"status": "succeeded"})).status_code == 200
    assert (await gate.client.post("/v1/runs/r/finish", json={"status": "failed"})).status_code == 409
    assert (await gate.chat("hi", head, max_tokens=3)).status_code == 409
    listed = (await gate.client.get("/v1/runs?status=succeeded&limit=5")).json()["data"]
    assert [(run["run_id"], run["steps"]) for run in listed] == [("r", 2)]


async def test_a_step_that_waited_for_others_ends_them(gate: Gateway) -> None:
    head = {"x-agentserve-run-id": "r", "x-agentserve-step-id": "a", "x-agentserve-node": "first"}
    await gate.chat("hi", head, max_tokens=3)
    then = {**head, "x-agentserve-step-id": "b", "x-agentserve-node": "second", "x-agentserve-parent-steps": "a"}
    await gate.chat("hi", then, max_tokens=3)
    run = (await gate.client.get("/v1/runs/r")).json()
    assert [(step["step_id"], step["status"]) for step in run["steps"]] == [("a", "succeeded"), ("b", "running")]


async def test_cancelling_a_run_stops_its_calls_and_frees_the_engine() -> None:
    async with gateway(SLOW) as gate:
        call = asyncio.create_task(gate.chat("[[reply tokens=5000]]", {"x-agentserve-run-id": "r"}, stream=True))
        await until(lambda: any(live.stream.output_tokens > 2 for live in gate.orchestrator.calls.values()))
        cancelled = await gate.client.post("/v1/runs/r/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert chunks((await call).text)[-1]["error"]["code"] == "cancelled"

        async def is_idle() -> bool:
            return await gate.engine_load(0) == 0

        await until(is_idle)
        assert (await gate.client.post("/v1/runs/r/cancel")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "what"),
    [
        ({}, {"model": "nope"}, 404, "llama-3.1-8b"),
        ({}, {"messages": []}, 400, "messages"),
        ({}, {"messages": "x"}, 400, "messages"),
        ({}, {"max_tokens": 0}, 400, "max_tokens"),
        ({}, {"stop": 3}, 400, "stop"),
        ({}, {"stream": "yes"}, 400, "stream"),
        ({}, {"agentserve": {"resume": {"prompt_token_ids": "x"}}}, 400, "agentserve.resume"),
        ({}, {"messages": [{"role": "user", "content": "x" * 30_000}]}, 413, "20000 bytes"),
        ({}, {"messages": [{"role": "user", "content": "x " * 8_000}]}, 413, "tokens"),
        ({"x-agentserve-slo-s": "0"}, {}, 400, "x-agentserve-slo-s"),
        ({"x-agentserve-slo-s": "-1"}, {}, 400, "x-agentserve-slo-s"),
        ({"x-agentserve-slo-s": "nan"}, {}, 400, "x-agentserve-slo-s"),
        ({"x-agentserve-slo-s": "soon"}, {}, 400, "x-agentserve-slo-s"),
        ({"x-agentserve-slo-s": "1e9"}, {}, 400, "86400"),
        ({"x-agentserve-deadline": "1000"}, {}, 400, "deadline"),
        ({"x-agentserve-run-id": "x" * 129}, {}, 400, "x-agentserve-run-id"),
        ({"x-agentserve-run-id": "a/b"}, {}, 400, "x-agentserve-run-id"),
        ({"x-agentserve-step-id": "a b"}, {}, 400, "x-agentserve-step-id"),
    ],
)
async def test_bad_calls_get_one_clear_message(
    gate: Gateway, headers: dict[str, str], body: dict[str, Any], status: int, what: str
) -> None:
    answer = await gate.client.post("/v1/chat/completions", json={**CHAT, **body}, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert what in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (await gate.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_bad_rest_requests_get_one_clear_message(gate: Gateway) -> None:
    client = gate.client
    answers = [
        (404, await client.get("/v1/runs/unknown")),
        (404, await client.get("/v1/runs/unknown/events")),
        (404, await client.post("/v1/runs/unknown/cancel")),
        (404, await client.post("/v1/runs/unknown/steps", json={"steps": []})),
        (404, await client.get("/v1/workflows/unknown")),
        (404, await client.get("/nothing")),
        (405, await client.put("/v1/runs")),
        (400, await client.post("/v1/runs", content=b"{")),
        (400, await client.post("/v1/runs", json=[1])),
        (400, await client.post("/v1/runs", json={"workflow": "w", "slo_s": "x"})),
        (400, await client.post("/v1/runs", json={"workflow": "w", "slo_s": 1, "deadline": 2})),
        (400, await client.post("/v1/runs", json={"workflow": "w", "deadline": time.time() - 5})),
        (400, await client.post("/v1/runs", json={"slo_s": 1})),
        (400, await client.get("/v1/runs?limit=0")),
        (400, await client.get("/v1/runs?status=odd")),
        (400, await client.put("/v1/workflows/w", json={"name": "w", "nodes": [], "edges": []})),
    ]
    for status, answer in answers:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]


async def test_a_step_id_of_another_node_is_a_conflict(gate: Gateway) -> None:
    head = {"x-agentserve-run-id": "r", "x-agentserve-step-id": "s", "x-agentserve-node": "one"}
    assert (await gate.chat("hi", head, max_tokens=3)).status_code == 200
    assert (await gate.chat("hi", {**head, "x-agentserve-node": "two"}, max_tokens=3)).status_code == 409


async def test_what_the_engine_refuses_reaches_the_client_in_its_own_words(gate: Gateway) -> None:
    answer = await gate.chat("hi", n=2)
    assert answer.status_code == 400
    assert "one choice" in answer.json()["error"]["message"]


async def test_what_an_engine_said_is_not_kept_as_it_may_quote_the_prompt(gate: Gateway) -> None:
    await gate.chat("hi", {"x-agentserve-run-id": "r", "x-agentserve-node": "n"}, n=2)
    await gate.client.post("/v1/runs/r/finish", json={"status": "failed"})

    async def kept() -> str:
        return (await gate.client.get("/v1/runs/r")).text + (await gate.client.get("/v1/runs/r/events")).text

    async def is_kept() -> bool:
        return "run.finished" in await kept()

    await until(is_kept)
    assert "engine answered 400" in await kept()
    assert "one choice" not in await kept()


async def test_a_model_can_be_looked_up_by_name(gate: Gateway) -> None:
    assert (await gate.client.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL
    unknown = await gate.client.get("/v1/models/meta/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("at_s", [0.0, 12.5, 1e12])
async def test_a_step_time_that_is_no_unix_time_is_refused(gate: Gateway, at_s: float) -> None:
    await gate.client.post("/v1/runs", json={"run_id": "r", "workflow": "w"})
    step = {"event": "started", "step_id": "s", "node": "n", "at_s": at_s}
    answer = await gate.client.post("/v1/runs/r/steps", json={"steps": [step]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "steps[0].at_s"


async def test_too_many_calls_are_told_to_come_back() -> None:
    async with gateway(SLOW, max_live_calls=1) as gate:
        first = asyncio.create_task(gate.chat("[[reply tokens=300]]"))
        await until(lambda: gate.orchestrator.calls)
        second = await gate.chat("hi")
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert (await first).status_code == 200


async def test_ready_needs_an_instance_and_the_store() -> None:
    async with gateway() as gate:
        answer = await gate.client.get("/readyz")
        assert answer.status_code == 503
        assert "no instance" in answer.json()["error"]["message"]
        assert (await gate.client.get("/healthz")).status_code == 200
    async with gateway(FAST) as gate:
        assert (await gate.client.get("/readyz")).status_code == 200
        assert [one["id"] for one in (await gate.client.get("/v1/models")).json()["data"]] == [MODEL]
        assert "agentserve_" in (await gate.client.get("/metrics")).text
        await gate.redis.stop()
        assert (await gate.client.get("/readyz")).status_code == 503


async def test_a_known_run_is_served_on_while_the_store_is_away_and_written_when_it_is_back() -> None:
    head = {"x-agentserve-run-id": "r", "x-agentserve-node": "n"}
    async with gateway(FAST) as gate:
        assert (await gate.chat("hi", head, max_tokens=3)).status_code == 200
        await gate.redis.stop()
        assert (await gate.chat("hi", head, max_tokens=3)).status_code == 200
        unknown = await gate.chat("hi", {"x-agentserve-run-id": "new"}, max_tokens=3)
        assert unknown.status_code == 503
        await gate.redis.start()
        await until(lambda: gate.app.state.runs.ledger.owed == 0)
        assert (await gate.chat("hi", {"x-agentserve-run-id": "new"}, max_tokens=3)).status_code == 200
        stored = await gate.store.load("r")
    assert [str(step.status) for step in stored.steps.values()] == ["succeeded", "succeeded"]


async def test_a_run_and_its_stream_go_on_after_the_gateway_was_lost(tmp_path: Path) -> None:
    text = "é漢🙂 [[reply tokens=300]]"
    head = {"x-agentserve-run-id": "r", "x-agentserve-request-id": "q", "x-agentserve-step-id": "s"}
    body: dict[str, Any] = {"stream": True, "return_token_ids": True}
    async with RedisServer(data_dir=tmp_path) as redis, running(SLOW) as engine:
        async with gateway(urls=[engine], redis=redis) as gate:
            await gate.client.post("/v1/runs", json={"run_id": "r", "workflow": "w", "slo_s": 600})
            whole = said(chunks((await gate.chat(text, stream=True)).text))
            seen = await _some_of(gate, text, head, body, tokens=60)
        async with gateway(urls=[engine], redis=redis) as gate:
            resume = {"resume": {"prompt_token_ids": seen["prompt"], "token_ids": seen["ids"]}}
            rest = await gate.chat(text, head, **body, agentserve=resume)
            run = (await gate.client.get("/v1/runs/r")).json()
            assert float(rest.headers["x-agentserve-deadline"]) <= run["deadline_s"]
    assert seen["text"] + said(chunks(rest.text)) == whole
    assert [(step["step_id"], step["status"]) for step in run["steps"]] == [("s", "running")]
    assert run["slo_s"] == 600


async def test_a_recorded_log_replays_to_the_same_decisions(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    config = SchedulerConfig()
    core = make_scheduler("agentserve", config, seed=0)
    log = EventLog(path, header("agentserve", config, 0))
    async with gateway(SLOW, SLOW, scheduler=core, log=log) as gate:
        await asyncio.gather(*(gate.chat(f"{i} [[reply tokens={20 + 9 * i}]]") for i in range(8)))
    lines = path.read_text().splitlines()
    assert len(lines) > 30
    assert any(json.loads(line)["decisions"] for line in lines[1:])
    assert replay(lines, make_scheduler) is None


async def _some_of(gate: Gateway, text: str, head: dict[str, str], body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Read a stream until it has brought so many tokens; then go, as if the gateway were lost."""
    content = {"model": MODEL, "messages": [{"role": "user", "content": text}], **body}
    seen: dict[str, Any] = {"ids": [], "text": ""}
    async with gate.client.stream("POST", "/v1/chat/completions", json=content, headers=head) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            part = json.loads(line[6:])
            seen["prompt"] = part.get("prompt_token_ids") or seen.get("prompt")
            choice = part["choices"][0]
            seen["text"] += choice["delta"].get("content") or ""
            seen["ids"] += choice.get("token_ids") or []
            if len(seen["ids"]) >= tokens:
                break
    return seen


async def test_a_lone_call_costs_its_run_two_writes(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await gate.chat("learn the workflow [[reply tokens=3]]")
    written: list[str] = []
    run = Connection.run

    async def counted(self: Connection, script: Script, keys: Any, arguments: Any) -> Any:
        if script is scripts.COMMIT:
            written.append(keys[0])
        return await run(self, script, keys, arguments)

    monkeypatch.setattr(Connection, "run", counted)
    answer = await gate.chat("hi [[reply tokens=3]]")
    await gate.app.state.runs.ledger.flush()
    run_id = answer.headers["x-agentserve-run-id"]
    assert [key.rpartition(":")[2] for key in written] == [run_id, run_id]
    stored = await gate.store.load(run_id)
    assert stored.status == "succeeded"
    assert [step.status for step in stored.steps.values()] == ["succeeded"]
