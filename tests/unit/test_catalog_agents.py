"""Each agent of the catalog works on the emulated model's scripted replies, and copes with replies it cannot use."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import orjson
import pytest

from agentserve import ChatModel
from agentserve.emulator.api import parse_call
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.render import Writer
from agentserve.emulator.replies import Model, load_script
from workflows.catalog import AGENTS, SCRIPTS

CONFIG = EmulatorConfig(gpu="h100", model="llama-3.1-8b")


def emulated(script: Path | None, lengths: list[int] | None = None) -> ChatModel:
    """A chat model whose server is the emulator's reply function, without HTTP or time."""
    replies = Model(load_script(script) if script else ())

    def answer(request: httpx.Request) -> httpx.Response:
        call = parse_call(orjson.loads(request.content), CONFIG, replies, is_chat=True)
        if lengths is not None:
            lengths.append(len(call.output_ids))
        return httpx.Response(200, content=Writer(call, "chatcmpl-1", "llama-3.1-8b").body(None))

    return ChatModel(model="llama-3.1-8b", temperature=0.0, transport=httpx.MockTransport(answer))


def run(name: str, monkeypatch: pytest.MonkeyPatch, model: ChatModel, given: Any = None) -> tuple[ModuleType, Any]:
    agent = importlib.import_module(f"workflows.catalog.{name}")
    monkeypatch.setattr(agent, "model", model)
    return agent, agent.graph.invoke(given or agent.EXAMPLE)


@pytest.fixture
def scripted() -> Iterator[ChatModel]:
    yield emulated(SCRIPTS)


def test_researcher_plans_three_searches_and_cites_what_it_found(
    monkeypatch: pytest.MonkeyPatch, scripted: ChatModel
) -> None:
    _, state = run("researcher", monkeypatch, scripted)
    assert len(state["queries"]) == 3
    assert len(state["notes"]) == 3
    assert all(note.startswith("Notes on") for note in state["notes"])
    assert "[Continuous batching]" in state["report"]


def test_researchers_ranking_puts_the_passage_about_the_query_first() -> None:
    agent = importlib.import_module("workflows.catalog.researcher")
    assert agent.rank("large model checks tokens guessed by a small model")[0][0] == "Speculative decoding"
    assert agent.rank("prefix caching for agents")[0][0] == "Prefix caching"
    assert len(agent.rank("qqqq")) == 1


def test_coder_fails_once_then_turns_its_tests_green(monkeypatch: pytest.MonkeyPatch, scripted: ChatModel) -> None:
    _, state = run("coder", monkeypatch, scripted)
    assert state["passed"] is True
    assert state["tries"] == 2
    assert "findall" in state["code"]


def test_coder_stops_code_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = importlib.import_module("workflows.catalog.coder")
    monkeypatch.setattr(agent, "TIME_LIMIT_S", 1)
    done = agent.run_tests({"code": "while True: pass", "tests": "import solution"})
    assert done["passed"] is False


def test_text_to_sql_repairs_its_query_and_answers_right(monkeypatch: pytest.MonkeyPatch, scripted: ChatModel) -> None:
    _, state = run("text_to_sql", monkeypatch, scripted)
    assert state["tries"] == 2
    assert state["rows"] == [("Rui", 36700)]
    assert "Rui" in state["answer"]
    assert "367.00 euros" in state["answer"]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT total FROM orders", "no such column: total"),
        ("DELETE FROM items", "attempt to write a readonly database"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", "interrupted"),
        ("SELECT * FROM items WHERE quantity > 99", "finds no rows"),
        ("", "no query"),
    ],
)
def test_text_to_sqls_check_says_what_is_wrong_with_a_query(sql: str, error: str) -> None:
    agent = importlib.import_module("workflows.catalog.text_to_sql")
    assert error in agent.check({"sql": sql})["error"]


@pytest.mark.parametrize(
    ("ticket", "category", "said"),
    [
        ("I was charged twice for order 10482, please refund.", "billing", "39.9 EUR"),
        ("My lamp does not turn on.", "technical", "press the switch"),
        ("The lamp made smoke! Call me.", "complaint", "case number is"),
        ("Do you ship to Norway?", "other", "thank you for your message"),
    ],
)
def test_support_triage_takes_the_branch_of_the_ticket(
    monkeypatch: pytest.MonkeyPatch, scripted: ChatModel, ticket: str, category: str, said: str
) -> None:
    _, state = run("support_triage", monkeypatch, scripted, {"ticket": ticket})
    assert state["category"] == category
    assert said in state["reply"]


def test_debate_holds_its_rounds_and_names_a_winner(monkeypatch: pytest.MonkeyPatch, scripted: ChatModel) -> None:
    _, state = run("debate", monkeypatch, scripted)
    assert sorted((number, side) for number, side, _ in state["speeches"]) == [
        (1, "against"),
        (1, "for"),
        (2, "against"),
        (2, "for"),
    ]
    assert len({text for _, _, text in state["speeches"]}) == 4
    assert state["winner"] == "against"


def test_trip_desk_calls_both_tools_before_it_answers(monkeypatch: pytest.MonkeyPatch, scripted: ChatModel) -> None:
    _, state = run("trip_desk", monkeypatch, scripted)
    assert [message.name for message in state["messages"] if message.type == "tool"] == ["find_trains", "convert"]
    assert "27.94 US dollars" in state["messages"][-1].content


@pytest.mark.parametrize("name", AGENTS)
def test_scripted_replies_have_realistic_lengths(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lengths: list[int] = []
    run(name, monkeypatch, emulated(SCRIPTS, lengths))
    assert 100 <= max(lengths) <= 450
    assert min(lengths) >= 30


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_ends_even_on_replies_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _, state = run(name, monkeypatch, emulated(None))
    assert state
