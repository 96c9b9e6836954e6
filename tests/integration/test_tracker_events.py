"""Journals, forecasts and workflows in the store, and the writer that never holds up the gateway."""

import asyncio
from types import MappingProxyType

import pytest

from agentserve.errors import BadInput, TooLarge
from agentserve.journal import Kind, RunEvent
from agentserve.local.redis import RedisServer
from agentserve.tracker.codec import MAX_EVENT_BYTES
from agentserve.tracker.redis import MAX_COUNTERS, RedisStore
from agentserve.tracker.sink import StoreSink
from tests.integration.tracker_servers import Connect, LossyProxy, cluster, connect, eventually, server, store
from workflows.graph import END, START, Edge, Node, Workflow
from workflows.run import StepKind

__all__ = ["cluster", "connect", "server", "store"]


def event(n: int = 0, *, run_id: str = "r1", **data: object) -> RunEvent:
    return RunEvent(
        run_id=run_id, kind=Kind.CALL_DECIDED, at_s=100.0 + n, step_id="s1", request_id=f"q{n}", data={"n": n, **data}
    )


async def test_events_are_read_in_the_order_they_were_appended(store: RedisStore, connect: Connect) -> None:
    events = [event(n) for n in range(50)]
    await store.append(events[:20])
    await store.append([])
    await store.append(events[20:])
    assert await connect().read("r1") == events
    assert await store.read("another") == []


async def test_one_append_serves_several_runs(store: RedisStore) -> None:
    await store.append([event(n, run_id=f"r{n % 2}") for n in range(6)])
    assert [found.at_s for found in await store.read("r0")] == [100.0, 102.0, 104.0]
    assert [found.at_s for found in await store.read("r1")] == [101.0, 103.0, 105.0]


async def test_an_event_keeps_its_nested_data(store: RedisStore) -> None:
    data = {"candidates": [{"instance": "h100-0", "finish_s": 1.5, "why": None}], "ünïcode": "✓", "none": None}
    bare = RunEvent(run_id="r1", kind=Kind.RUN_SUBMITTED, at_s=1.0, data=MappingProxyType(data))
    await store.append([bare])
    (found,) = await store.read("r1")
    assert (found.data, found.step_id, found.request_id) == (data, None, None)


async def test_a_batch_whose_answer_was_lost_is_read_once(server: RedisServer, connect: Connect) -> None:
    async with LossyProxy(server.url) as proxy:
        store = connect(proxy.url)
        await store.append([event(run_id="before")])
        proxy.lose_answer_to("EVALSHA")
        await store.append([event(n) for n in range(5)])
        assert proxy.lost == 1
        assert await store.read("r1") == [event(n) for n in range(5)]
        await store.close()


async def test_a_journal_keeps_about_the_newest_events(connect: Connect) -> None:
    store = connect(max_run_events=100)
    await store.append([event(n) for n in range(1000)])
    kept = [found.data["n"] for found in await store.read("r1")]
    assert 100 <= len(kept) <= 300  # the server trims whole nodes of its tree
    assert kept == list(range(1000 - len(kept), 1000))


async def test_a_journal_expires(connect: Connect) -> None:
    store = connect(run_ttl_s=1)
    await store.append([event()])
    assert await store.read("r1") == [event()]

    async def gone() -> bool:
        return not await store.read("r1")

    await eventually(gone)


async def test_an_event_too_large_keeps_what_fits(store: RedisStore) -> None:
    await store.append([event(candidates=["x" * 1000] * 100, policy="agentserve")])
    (found,) = await store.read("r1")
    assert found.data == {"n": 0, "policy": "agentserve", "omitted": ["candidates"]}


async def test_an_event_that_cannot_be_kept_is_refused(store: RedisStore) -> None:
    with pytest.raises(BadInput, match=r"a call.decided event of run r1 cannot be kept"):
        await store.append([event(text="\ud800")])
    with pytest.raises(TooLarge, match=f"at most {MAX_EVENT_BYTES} are kept"):
        await store.append([RunEvent(run_id="r1", kind=Kind.RUN_FINISHED, at_s=1.0, step_id="x" * 70_000)])
    assert await store.read("r1") == []


async def test_tail_goes_on_where_it_was(store: RedisStore) -> None:
    assert await store.tail("r1") == ([], "-")
    await store.append([event(0), event(1)])
    first, position = await store.tail("r1")
    assert first == [event(0), event(1)]
    assert await store.tail("r1", position) == ([], position)
    await store.append([event(2)])
    assert (await store.tail("r1", position))[0] == [event(2)]


async def test_journals_of_clusters_are_apart(connect: Connect, cluster: str) -> None:
    await connect().append([event()])
    assert await connect(name=f"{cluster}-other").read("r1") == []


async def test_counters_add_up_over_gateways(store: RedisStore, connect: Connect) -> None:
    other = connect()
    await asyncio.gather(*(gateway.add("triage", {"a": 2, "b|ü": 1}) for gateway in (store, other) for _ in range(10)))
    await store.add("triage", {})
    assert await other.counts("triage") == {"a": 40, "b|ü": 20}
    assert await store.counts("another") == {}


async def test_counters_may_be_reduced_and_never_fall_below_zero(store: RedisStore) -> None:
    await store.add("triage", {"a": 1000, "b": 3, "c": 1})
    await store.add("triage", {"a": -500, "b": -3, "c": -2, "d": -1})
    assert await store.counts("triage") == {"a": 500}


async def test_increments_whose_answer_was_lost_count_once(server: RedisServer, connect: Connect) -> None:
    async with LossyProxy(server.url) as proxy:
        store = connect(proxy.url)
        await store.add("triage", {"a": 1})
        proxy.lose_answer_to("EVALSHA")
        await store.add("triage", {"a": 1})
        assert proxy.lost == 1
        assert await store.counts("triage") == {"a": 2}
        await store.close()


async def test_no_more_counters_begin_past_the_limit(store: RedisStore) -> None:
    for start in range(0, MAX_COUNTERS + 1000, 1000):
        await store.add("triage", {f"c{n}": 1 for n in range(start, start + 1000)})
    await store.add("triage", {"c5": 1, "new": 1})
    counts = await store.counts("triage")
    assert len(counts) == MAX_COUNTERS
    assert counts["c5"] == 2
    assert "new" not in counts


def a_workflow(name: str = "triage", *, node: str = "classify") -> Workflow:
    return Workflow(name=name, nodes=(Node(node, StepKind.LLM),), edges=(Edge(START, node), Edge(node, END)))


async def test_a_workflow_is_kept_and_replaced(store: RedisStore, connect: Connect) -> None:
    assert await store.get_workflow("triage") is None
    await store.put_workflow(a_workflow())
    assert await connect().get_workflow("triage") == a_workflow()
    await store.put_workflow(a_workflow(node="other"))
    assert await connect().get_workflow("triage") == a_workflow(node="other")


async def test_a_workflow_too_large_is_refused(store: RedisStore) -> None:
    with pytest.raises(TooLarge, match="workflow triage has"):
        await store.put_workflow(a_workflow(node="x" * 2**20))
    assert await store.get_workflow("triage") is None


async def test_recorded_events_reach_the_store(store: RedisStore) -> None:
    async with StoreSink(store) as sink:
        for n in range(1000):
            sink.record(event(n))
        await sink.flush()
        assert await store.read("r1") == [event(n) for n in range(1000)]
        sink.record(event(1000))
    assert len(await store.read("r1")) == 1001
    assert sink.dropped == 0


async def test_events_wait_for_a_server_that_is_down(server: RedisServer, cluster: str) -> None:
    own = RedisServer(binary=server.binary)
    await own.start()
    store = RedisStore(own.url, cluster)
    try:
        async with StoreSink(store) as sink:
            await own.kill()
            for n in range(10):
                sink.record(event(n))
            await own.start()
            await sink.flush()
            assert await store.read("r1") == [event(n) for n in range(10)]
        assert sink.dropped == 0
    finally:
        await store.close()
        await own.stop()


async def test_the_feed_tells_the_bare_facts_of_all_runs_and_goes_on_where_it_was(store: RedisStore) -> None:
    empty = await store.facts()
    assert (empty.events, empty.is_gap) == ([], False)
    secret = {"type": "dispatch", "decode_instance": "h100-0", "reason": {"rule": "why"}, "prompt": "secret"}
    await store.append([event(0, run_id="r1", **secret), event(1, run_id="r2", **secret)])
    told = await store.facts(empty.position)
    assert [(one.run_id, one.at_s, one.request_id) for one in told.events] == [("r1", 100.0, "q0"), ("r2", 101.0, "q1")]
    assert all(dict(one.data) == {"type": "dispatch", "decode_instance": "h100-0"} for one in told.events)
    assert not told.is_gap
    assert (await store.facts(told.position)).events == []
    await store.append([event(2, type="hold")])
    more = await store.facts(told.position)
    assert ([one.at_s for one in more.events], more.is_gap) == ([102.0], False)


async def test_a_watcher_that_fell_behind_the_feed_is_told_so(store: RedisStore, server: RedisServer) -> None:
    await store.append([event(0)])
    seen = await store.facts()
    await store._connection.command("DEL", store._keys.feed)
    await store.append([event(1)])
    assert (await store.facts(seen.position)).is_gap


async def test_ends_of_runs_are_counted_once_by_outcome_and_time(store: RedisStore) -> None:
    def ended(run_id: str, at_s: float, attained: bool | None) -> RunEvent:
        data = {"status": "succeeded", "attained": attained}
        return RunEvent(run_id=run_id, kind=Kind.RUN_FINISHED, at_s=at_s, data=data)

    batch = [ended("a", 100.0, True), ended("b", 119.9, False), ended("c", 130.0, None), ended("d", 180.0, True)]
    await store.append(batch)
    await store.append(batch)  # as when the first answer was lost
    first, second, third = await store.ended([(60.0, 120.0), (120.0, 180.0), (180.0, 240.0)])
    assert (first.in_time, first.missed, first.no_slo) == (1, 1, 0)
    assert (second.in_time, second.missed, second.no_slo) == (0, 0, 1)
    assert (third.in_time, third.missed, third.no_slo) == (1, 0, 0)
