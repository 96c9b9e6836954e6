"""Calls through the gateway: OpenAI's shapes, moves between engines, broken engines, clients that leave."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from agentserve.emulator.config import EmulatorConfig
from tests.integration.gateway_parts import (
    MODEL,
    ForcedScheduler,
    Gateway,
    chunks,
    engine_process,
    gateway,
    said,
    until,
)

FAST = EmulatorConfig(gpu="h100", speed=50)
SLOW = EmulatorConfig(gpu="h100", speed=2)


async def test_an_answer_is_the_same_streamed_or_not() -> None:
    async with gateway(FAST) as gate:
        whole = (await gate.chat("[[reply tokens=30]] é漢🙂")).json()
        streamed = await gate.chat("[[reply tokens=30]] é漢🙂", stream=True, stream_options={"include_usage": True})
    parts = chunks(streamed.text)
    assert said(parts) == whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] == 30
    assert parts[-1]["usage"]["completion_tokens"] == 30
    assert parts[-1]["choices"] == []
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({(part["id"], part["created"], part["model"], part["object"]) for part in parts}) == 1
    reasons = [c["finish_reason"] for part in parts for c in part["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert "token_ids" not in streamed.text


async def test_usage_is_left_out_unless_asked_for() -> None:
    async with gateway(FAST) as gate:
        assert all(part["choices"] for part in chunks((await gate.chat("hi", stream=True, max_tokens=5)).text))


async def test_response_headers_name_run_step_request_instance_and_deadline() -> None:
    async with gateway(FAST) as gate:
        answer = await gate.chat("hi", {"x-agentserve-request-id": "mine", "x-agentserve-slo-s": "30"}, max_tokens=3)
    assert answer.headers["x-agentserve-request-id"] == "mine"
    assert answer.headers["x-agentserve-instance"] == "e0"
    assert answer.headers["x-agentserve-run-id"].startswith("run-")
    assert answer.headers["x-agentserve-step-id"] == "call-mine"
    assert float(answer.headers["x-agentserve-deadline"]) > 0


@pytest.mark.parametrize("seed", range(3))
async def test_a_call_that_moves_at_random_points_loses_and_doubles_no_token(seed: int) -> None:
    draw = random.Random(seed)
    moves = tuple(sorted(draw.randint(1, 180) for _ in range(3)))
    text = f"tell é漢🙂 {seed} [[reply tokens=217]]"
    body: dict[str, Any] = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    core = ForcedScheduler()
    async with gateway(SLOW, SLOW, SLOW, scheduler=core) as gate:
        expected = chunks((await gate.chat(text, **body)).text)
        core.moves = moves
        parts = chunks((await gate.chat(text, **body)).text)
    assert sum(core.moved.values()) == 3
    assert said(parts) == said(expected)
    assert _ids(parts) == _ids(expected)
    assert parts[-1]["usage"]["completion_tokens"] == expected[-1]["usage"]["completion_tokens"] == 217
    assert parts[-1]["usage"]["prompt_tokens"] == expected[-1]["usage"]["prompt_tokens"]
    assert len({part["id"] for part in parts}) == 1


async def test_a_stop_string_is_found_after_a_move() -> None:
    core = ForcedScheduler()
    async with gateway(SLOW, SLOW, scheduler=core) as gate:
        whole = (await gate.chat("x [[reply tokens=120]]")).json()["choices"][0]["message"]["content"]
        stop = whole[-40:-20]
        core.moves = (5, 30)
        answer = (await gate.chat("x [[reply tokens=120]]", stop=[stop])).json()["choices"][0]
    assert answer["message"]["content"] == whole[: whole.find(stop)]
    assert answer["finish_reason"] == "stop"


async def test_max_tokens_hold_over_a_move() -> None:
    async with gateway(SLOW, SLOW, scheduler=ForcedScheduler((5, 20))) as gate:
        answer = (await gate.chat("x [[reply tokens=120]]", max_tokens=50)).json()
    assert answer["usage"]["completion_tokens"] == 50
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_an_answer_that_ends_in_the_moment_it_is_to_move_ends_once() -> None:
    burst = EmulatorConfig(gpu="h100", speed=2000)  # the whole answer comes in a few reads
    core = ForcedScheduler((1,))
    async with gateway(burst, burst, scheduler=core) as gate:
        for number in range(20):
            parts = chunks((await gate.chat(f"{number} [[reply tokens=40]]", stream=True)).text)
            reasons = [c["finish_reason"] for part in parts for c in part["choices"] if c["finish_reason"]]
            assert reasons == ["stop"], number


async def test_a_split_call_prefills_on_one_engine_and_decodes_on_another() -> None:
    async with gateway(FAST, scheduler=ForcedScheduler()) as gate:
        expected = (await gate.chat("é [[reply tokens=40]]")).json()["choices"][0]
    async with gateway(FAST, FAST, scheduler=ForcedScheduler(split=True)) as gate:
        answer = await gate.chat("é [[reply tokens=40]]")
        events = await _journal(gate, answer.headers["x-agentserve-run-id"])
    assert answer.json()["choices"][0] == expected
    where = {event["kind"]: event["data"].get("instance") for event in events}
    assert (where["call.prefilled"], where["call.first_token"]) == ("e0", "e1")
    # What the decode engine got from the other is no prefix that it had: nothing is learned from it.
    assert [e["data"]["cached_tokens"] for e in events if e["kind"] == "call.first_token"] == [None]


async def test_a_stream_goes_on_elsewhere_when_its_engine_is_killed() -> None:
    text = "é漢 [[reply tokens=300]]"
    core = ForcedScheduler()
    async with engine_process(SLOW) as engine, gateway(SLOW, scheduler=core, urls=[engine.url]) as gate:
        core.first = 1
        expected = said(chunks((await gate.chat(text, stream=True)).text))
        core.first = 0
        call = asyncio.create_task(gate.chat(text, stream=True))
        await until(lambda: any(live.stream.output_tokens > 20 for live in gate.orchestrator.calls.values()))
        await engine.kill()
        answer = await call
        assert gate.orchestrator.instances["e0"].state == "lost"
        events = await _journal(gate, answer.headers["x-agentserve-run-id"])
    assert said(chunks(answer.text)) == expected
    moved = next(event["data"] for event in events if event["kind"] == "call.migrated")
    assert (moved["source"], moved["target"], moved["cause"]) == ("e0", "e1", "lost")


async def test_a_call_that_cannot_move_ends_with_an_error_event_when_its_engine_is_killed() -> None:
    async with engine_process(SLOW) as engine, gateway(SLOW, scheduler=ForcedScheduler(), urls=[engine.url]) as gate:
        call = asyncio.create_task(gate.chat("[[reply tokens=300]]", stream=True, logprobs=True))
        await until(lambda: any(live.stream.has_released for live in gate.orchestrator.calls.values()))
        await engine.kill()
        last = chunks((await call).text)[-1]
    assert last["error"]["code"] == "engine_failed"


async def test_a_call_that_cannot_move_begins_anew_if_nothing_was_shown() -> None:
    async with engine_process(SLOW) as engine, gateway(SLOW, scheduler=ForcedScheduler(), urls=[engine.url]) as gate:
        call = asyncio.create_task(gate.chat("[[reply tokens=200]]", logprobs=True))
        await until(lambda: any(live.stream.output_tokens > 5 for live in gate.orchestrator.calls.values()))
        await engine.kill()
        answer = await call
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 200


async def test_an_engine_that_comes_back_is_used_again() -> None:
    async with gateway(FAST) as gate:
        gate.app.state.orchestrator.on_unreachable("e0", "the test says so")
        assert gate.orchestrator.instances["e0"].state == "lost"
        await until(lambda: gate.orchestrator.instances["e0"].state == "online")
        assert (await gate.chat("hi", max_tokens=3)).status_code == 200


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_frees_its_engine(streams: bool) -> None:
    async with gateway(SLOW) as gate:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "[[reply tokens=5000]]"}], "stream": streams}
        async with httpx.AsyncClient(base_url=gate.client.base_url, trust_env=False) as leaving:
            call = asyncio.create_task(leaving.post("/v1/chat/completions", json=body))
            await until(lambda: any(live.stream.output_tokens > 2 for live in gate.orchestrator.calls.values()))
            call.cancel()
        await until(lambda: not gate.orchestrator.calls)

        async def is_idle() -> bool:
            return await gate.engine_load(0) == 0

        await until(is_idle)


async def test_a_repeated_request_id_takes_the_place_of_the_call_in_flight() -> None:
    async with gateway(SLOW) as gate:
        header = {"x-agentserve-request-id": "again", "x-agentserve-run-id": "r1"}
        first = asyncio.create_task(gate.chat("[[reply tokens=100]]", header))
        await until(lambda: "again" in gate.orchestrator.calls)
        second = await gate.chat("[[reply tokens=100]]", header)
        assert (await first).status_code == 409
        assert second.json()["usage"]["completion_tokens"] == 100
        run = (await gate.client.get("/v1/runs/r1")).json()
    assert [step["status"] for step in run["steps"]] == ["succeeded"]


async def test_a_resumed_stream_brings_only_what_follows() -> None:
    text = "é漢🙂 [[reply tokens=90]]"
    async with gateway(FAST) as gate:
        parts = chunks((await gate.chat(text, stream=True, return_token_ids=True)).text)
        ids, prompt = _ids(parts), parts[0]["prompt_token_ids"]
        whole = said(parts)
        resume = {"resume": {"prompt_token_ids": prompt, "token_ids": ids[:41]}}
        body: dict[str, Any] = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
        rest = chunks((await gate.chat(text, **body, agentserve=resume)).text)
    assert ids[:41] + _ids(rest) == ids
    assert whole.endswith(said(rest))
    assert rest[-1]["usage"]["completion_tokens"] == 90


async def test_several_choices_and_tools_are_passed_through() -> None:
    async with gateway(FAST) as gate:
        two = (await gate.chat("hi", max_tokens=4, n=2)).json()
    if "choices" in two:
        assert [choice["index"] for choice in two["choices"]] == [0, 1]
    else:  # an engine may refuse what it cannot do; its own words reach the client
        assert "n" in two["error"]["message"]


def _ids(parts: list[dict[str, Any]]) -> list[int]:
    return [token for part in parts for c in part["choices"] for token in c.get("token_ids") or ()]


async def _journal(gate: Gateway, run_id: str) -> list[dict[str, Any]]:
    """All events of a run that has ended."""
    found: list[dict[str, Any]] = []

    async def is_complete() -> bool:
        answer = await gate.client.get(f"/v1/runs/{run_id}/events")
        found[:] = answer.json().get("data", [])
        return any(event["kind"] == "run.finished" for event in found)

    await until(is_complete)
    return found
