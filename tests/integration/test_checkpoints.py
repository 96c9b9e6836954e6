"""Our checkpointer keeps LangGraph's contract on every Redis-protocol server there is, and fences dead drivers."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import END, START, StateGraph

from agentserve.errors import Conflict, Unavailable
from agentserve.local.redis import RedisServer
from agentserve.sdk.checkpoints import RedisCheckpoints
from agentserve.sdk.context import ActiveRun, running
from agentserve.sdk.durable import About, DurableStore
from agentserve.sdk.origin import origin_of
from agentserve.sdk.redis_link import RedisLink
from agentserve.sdk.steps import StepLedger
from tests.integration.tracker_servers import cluster, server
from workflows.langgraph import workflow_from_graph

__all__ = ["cluster", "server"]  # fixtures


@pytest.fixture
def link(server: RedisServer, cluster: str) -> Iterator[RedisLink]:
    made = RedisLink(server.url, cluster)
    yield made
    made.close()


@pytest.fixture
def saver(link: RedisLink) -> Iterator[RedisCheckpoints]:
    made = RedisCheckpoints(link)
    yield made
    made.close()


async def test_langgraphs_own_conformance_suite_passes(server: RedisServer, cluster: str) -> None:
    made = 0

    @checkpointer_test(name="RedisCheckpoints")
    async def fresh() -> AsyncIterator[RedisCheckpoints]:
        nonlocal made
        made += 1
        link = RedisLink(server.url, f"{cluster}-{made}")
        saver = RedisCheckpoints(link)
        yield saver
        saver.close()
        link.close()

    report = await validate(fresh)
    results = {name: (result.passed, result.failures) for name, result in report.results.items() if result.detected}
    assert {name: failures for name, (passed, failures) in results.items() if not passed} == {}
    assert report.passed_all_base()
    assert "copy_thread" in results


class State(TypedDict, total=False):
    word: str


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}


def about(run_id: str) -> About:
    return About(
        run_id=run_id,
        workflow="w",
        app=None,
        thread=run_id,
        own_thread=True,
        before=None,
        slo_s=None,
        submitted_s=1.0,
    )


def active(durable: Any) -> ActiveRun:
    graph = StateGraph(State).add_node("one", lambda state: state).add_edge(START, "one").add_edge("one", END).compile()
    ledger = StepLedger(workflow_from_graph(graph, "w"))
    gateway = "http://gateway.test"
    return ActiveRun(
        run_id=durable.about.run_id,
        workflow="w",
        gateway=gateway,
        origin=origin_of(gateway),
        slo_s=None,
        submitted_s=1.0,
        ledger=ledger,
        durable=durable,
    )


def test_a_process_that_was_given_up_writes_nothing_more(link: RedisLink, saver: RedisCheckpoints) -> None:
    first, second = DurableStore(link), DurableStore(link)
    dead = first.begin(about("r"), b"null\0")
    first.let_go(dead)
    alive, given = second.take_over("r")
    assert given == b"null\0"
    with running(active(dead)), pytest.raises(Conflict, match="another process"):
        saver.put(config("r"), empty_checkpoint(), {}, {})
    assert saver.get_tuple(config("r")) is None
    with running(active(alive)):
        saver.put(config("r"), empty_checkpoint(), {}, {})
    assert saver.get_tuple(config("r")) is not None
    second.ended(alive)
    assert saver.get_tuple(config("r")) is None
    assert second.unfinished() == []


def test_a_run_is_driven_by_one_process_at_a_time(link: RedisLink) -> None:
    first, second = DurableStore(link), DurableStore(link)
    run = first.begin(about("r"), b"null\0")
    assert [each.driven for each in second.unfinished()] == [True]
    with pytest.raises(Conflict, match="driven by another process"):
        second.take_over("r")
    first.let_go(run)
    assert [each.driven for each in second.unfinished()] == [False]


def test_damaged_checkpoints_are_one_known_error(link: RedisLink, saver: RedisCheckpoints) -> None:
    saver.put(config("t"), empty_checkpoint(), {"step": 1}, {})
    key = f"{link.prefix}:thread:t"
    (field,) = link.command("HKEYS", key)
    for damage in (b"", b"msgpack\0", b"msgpack\0\xc1", b"nothing\0x", b"\xff\xfe\0x", b"json\0{", b"msgpack\0\x80"):
        link.command("HSET", key, field, damage)
        with pytest.raises(Unavailable, match="cannot be read"):
            saver.get_tuple(config("t"))
    link.command("HSET", key, b"no json", b"x")
    with pytest.raises(Unavailable, match="cannot be read"):
        list(saver.list(config("t")))


def test_everything_that_is_kept_has_an_end(link: RedisLink, saver: RedisCheckpoints) -> None:
    store = DurableStore(link)
    run = store.begin(about("r"), b"null\0")
    run.begin("one:1")
    saver.put(config("r"), empty_checkpoint(), {}, {})
    keys = {key.decode(): link.command("PTTL", key) for key in link.command("KEYS", f"{link.prefix}:*")}
    assert len(keys) == 5
    assert [key for key, ttl_ms in keys.items() if ttl_ms <= 0] == [f"{link.prefix}:durable"]
    store.ended(run)
    assert link.command("KEYS", f"{link.prefix}:*") == []
