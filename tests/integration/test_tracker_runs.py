"""Runs in the store: nothing lost, nothing done twice, all of it bounded."""

import asyncio
from dataclasses import replace

import pytest

from agentserve.errors import BadInput, Conflict, NotFound, TooLarge
from agentserve.local.redis import RedisServer
from agentserve.tracker.redis import RedisStore
from tests.integration.tracker_servers import Connect, LossyProxy, cluster, connect, eventually, server, store
from workflows.errors import DuplicateStep, IllegalTransition
from workflows.run import (
    DeadlinesDerived,
    Run,
    RunFinished,
    RunStatus,
    StepFinished,
    StepKind,
    StepStarted,
    StepStatus,
    Transition,
)

__all__ = ["cluster", "connect", "server", "store"]


def a_run(run_id: str = "r1", *, workflow: str = "triage", submitted_s: float = 100.0) -> Run:
    return Run(run_id=run_id, workflow=workflow, submitted_s=submitted_s, slo_s=20.0, deadline_s=submitted_s + 20.0)


def started(step_id: str, *, at_s: float = 101.0, node: str = "classify", parents: tuple[str, ...] = ()) -> StepStarted:
    return StepStarted(step_id=step_id, node=node, kind=StepKind.LLM, parents=parents, at_s=at_s)


def finished(step_id: str, *, at_s: float = 102.0, status: StepStatus = StepStatus.SUCCEEDED) -> StepFinished:
    return StepFinished(step_id=step_id, status=status, at_s=at_s)


def ended(status: RunStatus = RunStatus.SUCCEEDED, *, at_s: float = 110.0) -> RunFinished:
    return RunFinished(status=status, at_s=at_s)


async def applied(store: RedisStore, run: Run, *transitions: Transition) -> Run:
    await store.create(run)
    for transition in transitions:
        run = await store.apply(run.run_id, transition)
    return run


async def test_a_created_run_is_loaded_as_it_was(store: RedisStore) -> None:
    run = a_run()
    assert await store.create(run) == (run, True)
    assert await store.load("r1") == run


async def test_creating_a_run_again_returns_the_stored_one(store: RedisStore) -> None:
    now = await applied(store, a_run(), started("s1"))
    assert await store.create(a_run(submitted_s=500.0)) == (now, False)
    assert await store.load("r1") == now


async def test_a_run_id_cannot_be_reused_for_another_workflow(store: RedisStore) -> None:
    await store.create(a_run())
    with pytest.raises(Conflict, match="run r1 is one of workflow triage, not research"):
        await store.create(a_run(workflow="research"))


async def test_each_transition_is_what_the_state_machine_says(store: RedisStore, connect: Connect) -> None:
    transitions = (
        started("s1"),
        DeadlinesDerived(deadlines={"s1": (105.0, 112.5)}),
        finished("s1"),
        started("s2", node="answer", parents=("s1",), at_s=102.5),
        finished("s2", at_s=104.0, status=StepStatus.FAILED),
        ended(RunStatus.FAILED),
    )
    expected = a_run()
    await store.create(expected)
    for transition in transitions:
        expected = expected.apply(transition)
        assert await store.apply("r1", transition) == expected
        assert await connect().load("r1") == expected
    assert expected.version == 1 + len(transitions)


async def test_a_retried_transition_changes_nothing_more(store: RedisStore, connect: Connect) -> None:
    once = await applied(store, a_run(), started("s1"), finished("s1"))
    assert await store.apply("r1", started("s1")) == once
    assert await connect().apply("r1", finished("s1")) == once
    assert await store.load("r1") == once


async def test_a_transition_whose_answer_was_lost_happens_once(server: RedisServer, connect: Connect) -> None:
    async with LossyProxy(server.url) as proxy:
        store = connect(proxy.url)
        await store.create(a_run("warm"))
        proxy.lose_answer_to("EVALSHA")
        assert await store.create(a_run()) == (a_run(), True)
        proxy.lose_answer_to("EVALSHA")
        after = await store.apply("r1", started("s1"))
        assert proxy.lost == 2
        assert after == a_run().apply(started("s1"))
        assert await connect().load("r1") == after
        await store.close()


async def test_an_unknown_run_is_not_found(store: RedisStore) -> None:
    with pytest.raises(NotFound, match="run nobody does not exist"):
        await store.load("nobody")
    with pytest.raises(NotFound, match="run nobody does not exist"):
        await store.apply("nobody", started("s1"))


async def test_a_refused_transition_changes_nothing(store: RedisStore, connect: Connect) -> None:
    now = await applied(store, a_run(), started("s1"), finished("s1"), ended())
    with pytest.raises(IllegalTransition):
        await store.apply("r1", started("s2"))
    with pytest.raises(DuplicateStep):
        await applied(store, a_run("r2"), started("s1"), started("s1", node="other"))
    assert await connect().load("r1") == now


async def test_concurrent_transitions_of_one_gateway_are_all_kept(store: RedisStore) -> None:
    await store.create(a_run())

    async def work(task: int) -> None:
        for n in range(5):
            await store.apply("r1", started(f"{task}-{n}"))
            await store.apply("r1", finished(f"{task}-{n}"))

    async with asyncio.TaskGroup() as tasks:
        for task in range(20):
            tasks.create_task(work(task))
    run = await store.load("r1")
    assert set(run.steps) == {f"{task}-{n}" for task in range(20) for n in range(5)}
    assert all(step.status is StepStatus.SUCCEEDED for step in run.steps.values())
    assert run.version == 201


async def test_concurrent_transitions_of_twenty_gateways_are_all_kept(store: RedisStore, connect: Connect) -> None:
    await store.create(a_run())

    async def work(gateway: RedisStore, task: int) -> None:
        for n in range(3):
            await gateway.apply("r1", started(f"{task}-{n}"))

    async with asyncio.TaskGroup() as tasks:
        for task in range(20):
            tasks.create_task(work(connect(), task))
    run = await store.load("r1")
    assert set(run.steps) == {f"{task}-{n}" for task in range(20) for n in range(3)}
    assert run.version == 61


async def test_only_one_of_many_creators_makes_the_run(connect: Connect) -> None:
    answers = await asyncio.gather(*(connect().create(a_run(submitted_s=100.0 + n)) for n in range(20)))
    assert [made for _, made in answers].count(True) == 1
    assert len({run.submitted_s for run, _ in answers}) == 1


async def test_a_refusal_is_not_decided_on_an_old_copy(store: RedisStore, connect: Connect) -> None:
    other = connect()
    await applied(store, a_run(), started("s1"))
    await other.apply("r1", started("s2"))
    after = await store.apply("r1", finished("s2"))
    assert after.steps["s2"].status is StepStatus.SUCCEEDED


async def test_a_run_made_anew_under_an_old_id_is_not_mixed_with_the_old_one(
    store: RedisStore, connect: Connect
) -> None:
    short = connect(run_ttl_s=1)
    await applied(store, a_run("r1"))
    old = connect()
    await old.apply("r1", started("old"))
    await short.apply("r1", started("last"))

    async def gone() -> bool:
        try:
            await short.load("r1")
        except NotFound:
            return True
        return False

    await eventually(gone)
    fresh = await applied(store, a_run("r1", submitted_s=200.0), started("a"), started("b"))
    assert fresh.version == 3
    after = await old.apply("r1", started("c"))
    assert list(after.steps) == ["a", "b", "c"]


async def test_a_restarted_gateway_goes_on_where_the_old_one_was(connect: Connect) -> None:
    old = connect()
    before = await applied(old, a_run(), started("s1"), DeadlinesDerived(deadlines={"s1": (104.0, 109.0)}))
    await old.close()
    new = connect()
    assert await new.load("r1") == before
    assert await new.apply("r1", finished("s1")) == before.apply(finished("s1"))


async def test_an_expired_run_is_gone_from_everywhere(connect: Connect) -> None:
    store = connect(run_ttl_s=1)
    await applied(store, a_run(), started("s1"))

    async def gone() -> bool:
        try:
            await store.load("r1")
        except NotFound:
            return True
        return False

    await eventually(gone)
    with pytest.raises(NotFound):
        await store.apply("r1", finished("s1"))
    assert await store.list(None, 10) == []


async def test_a_list_skips_the_runs_that_expired(store: RedisStore, connect: Connect) -> None:
    short = connect(run_ttl_s=1)
    for n in reversed(range(10)):  # the last one made refreshes the index for long
        await (short if n % 2 else store).create(a_run(f"r{n}", submitted_s=100.0 + n))

    async def skipped() -> bool:
        return [line.run_id for line in await store.list(RunStatus.RUNNING, 3)] == ["r8", "r6", "r4"]

    await eventually(skipped)
    assert [line.run_id for line in await store.list(None, 100)] == ["r8", "r6", "r4", "r2", "r0"]
    assert [line.run_id for line in await store.list(RunStatus.RUNNING, 100)] == ["r8", "r6", "r4", "r2", "r0"]


async def test_runs_are_listed_newest_first_and_by_status(store: RedisStore) -> None:
    for n in range(4):
        await store.create(a_run(f"r{n}", submitted_s=100.0 + n))
    await store.apply("r1", started("s1"))
    await store.apply("r1", ended())
    await store.apply("r3", ended(RunStatus.CANCELLED))
    assert [line.run_id for line in await store.list(None, 10)] == ["r3", "r2", "r1", "r0"]
    assert [line.run_id for line in await store.list(None, 2)] == ["r3", "r2"]
    assert [line.run_id for line in await store.list(RunStatus.RUNNING, 10)] == ["r2", "r0"]
    (line,) = await store.list(RunStatus.SUCCEEDED, 10)
    assert (line.run_id, line.workflow, line.status, line.steps) == ("r1", "triage", RunStatus.SUCCEEDED, 1)
    assert (line.submitted_s, line.finished_s, line.slo_s) == (101.0, 110.0, 20.0)
    assert await store.list(RunStatus.FAILED, 10) == []
    assert await store.list(None, 0) == []


async def test_the_list_holds_only_the_newest_runs(connect: Connect) -> None:
    store = connect(max_listed_runs=3)
    for n in range(5):
        await store.create(a_run(f"r{n}", submitted_s=100.0 + n))
    assert [line.run_id for line in await store.list(None, 10)] == ["r4", "r3", "r2"]
    assert [line.run_id for line in await store.list(RunStatus.RUNNING, 10)] == ["r4", "r3", "r2"]
    await store.apply("r0", ended())
    assert (await store.load("r0")).status is RunStatus.SUCCEEDED
    assert await store.list(RunStatus.SUCCEEDED, 10) == []


async def test_a_step_too_many_is_refused_and_changes_nothing(connect: Connect) -> None:
    store = connect(max_run_steps=2)
    now = await applied(store, a_run(), started("s1"), started("s2"))
    with pytest.raises(TooLarge, match="run r1 has 2 steps; at most 2 are allowed"):
        await store.apply("r1", started("s3"))
    assert await store.load("r1") == now
    assert (await store.apply("r1", finished("s1"))).steps["s1"].status is StepStatus.SUCCEEDED


async def test_a_step_too_large_is_refused_and_changes_nothing(store: RedisStore) -> None:
    now = await applied(store, a_run(), started("s1"))
    with pytest.raises(TooLarge, match="step s1"):
        await store.apply("r1", replace(finished("s1"), error="x" * 300_000))
    assert await store.load("r1") == now


async def test_a_step_id_that_is_not_unicode_is_refused_and_changes_nothing(store: RedisStore) -> None:
    await store.create(a_run())
    with pytest.raises(BadInput, match="valid Unicode"):
        await store.apply("r1", started("\ud800"))
    with pytest.raises(BadInput, match="cannot be kept"):
        await store.apply("r1", started("s1", node="\ud800"))
    assert await store.load("r1") == a_run()


@pytest.mark.parametrize(("run_id", "problem"), [("", "1 to 512"), ("x" * 513, "1 to 512"), ("\ud800", "Unicode")])
async def test_an_unusable_run_id_is_refused(store: RedisStore, run_id: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        await store.load(run_id)
    with pytest.raises(BadInput, match=problem):
        await store.create(a_run(run_id))


async def test_clusters_on_one_server_do_not_see_each_other(connect: Connect, cluster: str) -> None:
    ours, theirs = connect(), connect(name=f"{cluster}-other")
    await ours.create(a_run())
    with pytest.raises(NotFound):
        await theirs.load("r1")
    assert await theirs.list(None, 10) == []
    assert (await theirs.create(a_run(workflow="other")))[1]


async def test_names_may_be_in_any_script(store: RedisStore, connect: Connect) -> None:
    run_id, step_id, node = "läufe/ход:{7}\n", "שלב 🪜", "検索"
    now = await applied(store, a_run(run_id, workflow="φλοή"), started(step_id, node=node))
    assert await connect().load(run_id) == now
    assert [line.workflow for line in await store.list(None, 1)] == ["φλοή"]


async def test_a_run_of_a_thousand_steps_is_kept_in_order(store: RedisStore, connect: Connect) -> None:
    await store.create(a_run())
    for n in range(1000):
        await store.apply("r1", started(f"s{n}"))
    run = await store.apply("r1", ended(RunStatus.CANCELLED))
    loaded = await connect().load("r1")
    assert loaded == run
    assert list(loaded.steps) == [f"s{n}" for n in range(1000)]
    assert {step.status for step in loaded.steps.values()} == {StepStatus.CANCELLED}


async def test_a_large_run_can_be_created_at_once(store: RedisStore, connect: Connect) -> None:
    run = a_run()
    for n in range(2000):
        run = run.apply(started(f"s{n}"))
    await store.create(run)
    assert await connect().load("r1") == run
