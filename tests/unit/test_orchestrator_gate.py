"""Calls held back for an engine that knows no priorities: who goes next, and what a call that leaves takes with it."""

import asyncio

from agentserve.orchestrator.gate import Gate


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_and_equals_in_the_order_they_came() -> None:
    gate, entered, leave = Gate(1), [], asyncio.Event()

    async def call(name: str, priority: int) -> None:
        async with gate.seat(priority):
            entered.append(name)
            await leave.wait()

    async with asyncio.TaskGroup() as tasks:
        for name, priority in (("first", 9), ("late", 5), ("urgent", -3), ("late too", 5)):
            tasks.create_task(call(name, priority))
            await settle()
        assert (entered, gate.waiting) == (["first"], 3)
        leave.set()
    assert entered == ["first", "urgent", "late", "late too"]


async def test_as_many_are_let_in_as_there_are_seats() -> None:
    gate, inside, leave = Gate(3), set(), asyncio.Event()

    async def call(number: int) -> None:
        async with gate.seat(0):
            inside.add(number)
            assert len(inside) <= 3
            await leave.wait()
            inside.remove(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(call(number))
        await settle()
        assert inside == {0, 1, 2}
        leave.set()
    assert (inside, gate.waiting) == (set(), 0)


async def test_a_call_that_leaves_while_it_waits_or_is_let_in_loses_no_seat() -> None:
    gate, entered = Gate(1), []

    async def call(name: str) -> None:
        async with gate.seat(0):
            entered.append(name)

    async with gate.seat(0):
        waiting, chosen, last = (asyncio.create_task(call(name)) for name in ("waiting", "chosen", "last"))
        await settle()
        waiting.cancel()
        await settle()
    chosen.cancel()  # its turn was given in the line before; it has not run yet
    await asyncio.wait_for(last, 5)
    await asyncio.gather(waiting, chosen, return_exceptions=True)
    assert entered == ["last"]
    async with asyncio.timeout(5), gate.seat(0):
        entered.append("again")
    assert gate.waiting == 0


async def test_an_attempt_that_fails_gives_its_seat_back() -> None:
    gate = Gate(1)
    try:
        async with gate.seat(0):
            raise RuntimeError("the engine broke")
    except RuntimeError:
        pass
    async with asyncio.timeout(5), gate.seat(0):
        assert gate.waiting == 0
