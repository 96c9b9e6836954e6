"""The whole trace of a run through a real gateway, as an OTLP receiver gets it, against the run's journal.

What is expected is worked out here from the journal's events alone, without the code that makes the spans.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.telemetry import names
from agentserve.telemetry.exporter import make_span_processor
from tests.integration.gateway_parts import MODEL, ForcedScheduler, Gateway, gateway, until
from tests.integration.otlp_receiver import GrpcReceiver, Receiver

SLOW = EmulatorConfig(gpu="h100", speed=4)
FAST = EmulatorConfig(gpu="h100", speed=50)
CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(params=[Receiver, GrpcReceiver], ids=["http", "grpc"])
def receiver(request: Any) -> Iterator[Any]:
    with request.param() as one:
        yield one


@asynccontextmanager
async def traced(receiver: Any, *engines: EmulatorConfig, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway whose spans have all arrived once it is left."""
    processor = make_span_processor(receiver.url)
    async with gateway(*engines, span_processor=processor, **options) as gate:
        yield gate
    processor.shutdown()


async def report(gate: Gateway, *steps: dict[str, Any]) -> None:
    answer = await gate.client.post("/v1/runs/r/steps", json={"steps": list(steps)})
    assert answer.status_code == 200, answer.text


async def call(gate: Gateway, step: str, tokens: int, parents: str = "") -> None:
    head = {"x-agentserve-run-id": "r", "x-agentserve-step-id": step, "x-agentserve-node": step}
    answer = await gate.chat(
        "hi", head | ({"x-agentserve-parent-steps": parents} if parents else {}), max_tokens=tokens
    )
    assert answer.status_code == 200, answer.text


async def played(gate: Gateway, slo_s: float = 60.0) -> list[dict[str, Any]]:
    """plan, then search and look-up side by side, then a join; returns the journal."""
    body = {"run_id": "r", "workflow": "w", "slo_s": slo_s}
    assert (await gate.client.post("/v1/runs", json=body, headers={"traceparent": CLIENT})).status_code == 201
    await call(gate, "plan", 40)
    await report(
        gate,
        {"event": "finished", "step_id": "plan"},
        {"event": "started", "step_id": "look", "node": "look", "kind": "tool", "parents": ["plan"]},
        {"event": "started", "step_id": "search", "node": "search", "kind": "llm", "parents": ["plan"]},
    )
    await call(gate, "search", 5, parents="plan")
    await report(gate, {"event": "finished", "step_id": "look"}, {"event": "finished", "step_id": "search"})
    await call(gate, "join", 5, parents="look,search")
    await report(gate, {"event": "finished", "step_id": "join"})
    assert (await gate.client.post("/v1/runs/r/finish", json={"status": "succeeded"})).status_code == 200
    events: list[dict[str, Any]] = []

    async def is_written() -> bool:
        events[:] = (await gate.client.get("/v1/runs/r/events")).json()["data"]
        return any(one["kind"] == "run.finished" for one in events)

    await until(is_written)
    return events


class Journal:
    """Times and data of a journal's events."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events

    def all(self, kind: str, step: str | None = None) -> list[dict[str, Any]]:
        return [one for one in self._events if one["kind"] == kind and step in (None, one["step_id"])]

    def ns(self, kind: str, step: str | None = None, index: int = 0) -> int:
        return round(self.all(kind, step)[index]["at_s"] * 1e9)

    def data(self, kind: str, step: str | None = None, index: int = 0) -> dict[str, Any]:
        data: dict[str, Any] = self.all(kind, step)[index]["data"]
        return data


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def attributes(thing: Any) -> dict[str, Any]:
    return {a.key: plain(a.value) for a in thing.attributes}


def rows(receiver: Any) -> list[tuple[str, str, int, int]]:
    """Path of names from the root, and times, of every span."""
    by_id = {span.span_id: span for span in receiver.spans}
    assert len(by_id) == len(receiver.spans)

    def path(span: Any) -> str:
        step = attributes(span).get(names.STEP_ID, "")
        own = f"{span.name}[{step}]" if span.name.startswith("chat") else span.name
        above = by_id.get(span.parent_span_id)
        return own if above is None else f"{path(above)}/{own}"

    return sorted((path(span), span.start_time_unix_nano, span.end_time_unix_nano) for span in receiver.spans)


def named(receiver: Any, name: str, step: str | None = None) -> list[Any]:
    found = [span for span in receiver.spans if span.name == name]
    return [span for span in found if step in (None, attributes(span).get(names.STEP_ID))]


async def test_the_tree_and_every_time_are_the_journals(receiver: Any) -> None:
    async with traced(receiver, SLOW, SLOW, scheduler=ForcedScheduler((5,))) as gate:
        journal = Journal(await played(gate))
    ns = journal.ns
    root = "invoke_workflow w"
    expected = [(root, ns("run.submitted"), ns("run.finished"))]
    expected.append((f"{root}/execute_tool look", ns("step.started", "look"), ns("step.finished", "look")))
    for step in ("plan", "search", "join"):
        above = f"{root}/invoke_agent {step}"
        chat = f"{above}/chat {MODEL}[{step}]"
        sent, end = ns("call.decided", step), ns("call.finished", step)
        expected += [
            (above, ns("step.started", step), ns("step.finished", step)),
            (chat, ns("call.arrived", step), end),
            (f"{chat}/queue", ns("call.arrived", step), sent),
            (f"{chat}/prefill", sent, ns("call.first_token", step)),
        ]
        moves = journal.all("call.migrated", step)
        assert len(moves) == (step == "plan")
        cuts = [ns("call.first_token", step)]
        if moves:
            decided, again = ns("call.decided", step, 1), ns("call.first_token", step, 1)
            expected += [(f"{chat}/decode", cuts[0], decided), (f"{chat}/migration", decided, again)]
            cuts.append(again)
        expected.append((f"{chat}/decode", cuts[-1], end))
    assert rows(receiver) == sorted(expected)
    assert {span.trace_id.hex() for span in receiver.spans} == {CLIENT.split("-")[1]}
    (top,) = named(receiver, root)
    assert top.parent_span_id.hex() == CLIENT.split("-")[2]


async def test_the_legs_of_a_migration_are_linked(receiver: Any) -> None:
    async with traced(receiver, SLOW, SLOW, scheduler=ForcedScheduler((5,))) as gate:
        journal = Journal(await played(gate))
    (move,) = named(receiver, "migration")
    told = journal.data("call.migrated")
    assert attributes(move) == {
        names.MIGRATION_SOURCE: "e0",
        names.MIGRATION_TARGET: "e1",
        names.MIGRATION_CAUSE: "late",
        names.MIGRATION_BY: "replay",
        names.REPLAYED_TOKENS: told["replayed_tokens"],
    }
    decodes = [span for span in named(receiver, "decode") if span.parent_span_id == move.parent_span_id]
    legs = {attributes(span)[names.INSTANCE]: span for span in decodes}
    assert [(attributes(link)[names.LINK], link.span_id) for link in move.links] == [
        (names.SOURCE_LEG, legs["e0"].span_id),
        (names.TARGET_LEG, legs["e1"].span_id),
    ]
    assert [(attributes(link)[names.LINK], link.span_id) for link in legs["e1"].links] == [
        (names.CONTINUES, legs["e0"].span_id)
    ]


async def test_attributes_are_the_journals(receiver: Any) -> None:
    async with traced(receiver, FAST, FAST, policy="agentserve") as gate:
        journal = Journal(await played(gate))
    (top,) = named(receiver, "invoke_workflow w")
    submitted, ended = journal.data("run.submitted"), journal.data("run.finished")
    assert attributes(top) == {
        names.OPERATION: "invoke_workflow",
        names.AGENT_NAME: "w",
        names.RUN_ID: "r",
        names.CONVERSATION: "r",
        names.SLO_S: 60.0,
        names.DEADLINE: submitted["deadline_s"],
        names.E2E_S: ended["e2e_s"],
        names.ATTAINED: True,
        names.OUTCOME: "succeeded",
    }
    for step in ("plan", "look", "search", "join"):
        span = next(s for s in named(receiver, f"invoke_agent {step}") + named(receiver, f"execute_tool {step}"))
        first, last = journal.data("step.deadlines", step), journal.data("step.deadlines", step, -1)
        end_s = journal.all("step.finished", step)[0]["at_s"]
        begun_s, told_s = (journal.all(kind, step)[0]["at_s"] for kind in ("step.started", "step.deadlines"))
        is_tool = step == "look"
        assert attributes(span) == {
            names.OPERATION: "execute_tool" if is_tool else "invoke_agent",
            names.TOOL_NAME if is_tool else names.AGENT_NAME: step,
            names.RUN_ID: "r",
            names.CONVERSATION: "r",
            names.STEP_ID: step,
            names.STEP_PARENTS: journal.data("step.started", step)["parents"],
            names.TARGET_DEADLINE: last["target_deadline_s"],
            names.LATEST_DEADLINE: last["latest_deadline_s"],
            names.SLACK_BEFORE_S: first["slack_s"],
            names.SLACK_AFTER_S: submitted["deadline_s"] - end_s - last["downstream_s"],
            names.PREDICTED_S: told_s - begun_s + first["predicted_s"],
            names.DOWNSTREAM_S: last["downstream_s"],
            names.OUTCOME: "ok",
        }
    for step in ("plan", "search", "join"):
        (chat,) = named(receiver, f"chat {MODEL}", step)
        chat_is_the_journals(chat, journal, step)


def chat_is_the_journals(chat: Any, journal: Journal, step: str) -> None:
    known, decided, ended = attributes(chat), journal.data("call.decided", step), journal.data("call.finished", step)
    reason = decided["reason"]
    chosen, length = reason["candidates"][0], reason["length"]
    end_s = journal.all("call.finished", step)[0]["at_s"]
    told = {
        names.INPUT_TOKENS: ended["prompt_tokens"],
        names.OUTPUT_TOKENS: ended["output_tokens"],
        names.CACHED_TOKENS: ended["cached_tokens"],
        names.TTFT_S: ended["ttft_s"],
        names.E2E_S: ended["e2e_s"],
        names.LENGTH_P10: length["p10_tokens"],
        names.LENGTH_P50: length["p50_tokens"],
        names.LENGTH_P90: length["p90_tokens"],
        names.LENGTH_WITHIN: length["p10_tokens"] <= ended["output_tokens"] <= length["p90_tokens"],
        names.PREDICTED_FINISH: chosen["predicted_finish_s"],
        names.FINISH_ERROR_S: end_s - chosen["predicted_finish_s"],
        names.PREDICTED_CACHED: chosen["cached_tokens"],
        names.SLACK_BEFORE_S: chosen["slack_s"],
        names.SLACK_AFTER_S: reason["target_deadline_s"] - end_s,
        names.RULE: reason["rule"],
        names.POLICY: "agentserve",
        names.DECODE_INSTANCE: decided["decode_instance"],
        names.COST_GPU_S: pytest.approx(end_s - journal.all("call.decided", step)[0]["at_s"]),
    }
    assert {name: known.get(name) for name in told} == told
    (event,) = [one for one in chat.events if one.name == names.DECISION_EVENT]
    assert event.time_unix_nano == journal.ns("call.decided", step)
    assert [json.loads(one) for one in attributes(event)[names.CANDIDATES]] == reason["candidates"]
    assert all(candidate["verdict"] for candidate in reason["candidates"])


async def test_a_late_run_carries_its_blame(receiver: Any) -> None:
    async with traced(receiver, SLOW, scheduler=ForcedScheduler()) as gate:
        journal = Journal(await played(gate, slo_s=0.01))
    (top,) = named(receiver, "invoke_workflow w")
    said, known = journal.data("run.finished")["blame"], attributes(top)
    assert known[names.ATTAINED] is False
    assert said["lost_s"] > 0
    assert known[names.BLAME] == said["reason"]
    assert known[names.BLAME_LOST_S] == said["lost_s"]
    assert (known.get(names.BLAME_STEP), known.get(names.BLAME_NODE)) == (said["step_id"], said["node"])
