"""The journal writer against stores that are slow, down, or picky: plain fakes, no server."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from agentserve.errors import BadInput, Unavailable
from agentserve.journal import Kind, RunEvent
from agentserve.tracker.sink import MAX_BATCH, StoreSink


class Kept:
    """An EventStore in a list. It is down until `up` is set, and refuses the events numbered in `refuses`."""

    def __init__(self, *, refuses: Sequence[float] = ()) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.tried = asyncio.Event()
        self.batches: list[list[float]] = []
        self._refuses = refuses

    @property
    def kept(self) -> list[float]:
        return [n for batch in self.batches for n in batch]

    async def append(self, events: Sequence[RunEvent]) -> None:
        self.tried.set()
        if not self.up.is_set():
            raise Unavailable("Redis at nowhere: the connection failed")
        numbers = [event.at_s for event in events]
        if set(numbers) & set(self._refuses):
            raise BadInput("an event cannot be kept")
        self.batches.append(numbers)

    async def read(self, run_id: str) -> Sequence[RunEvent]:
        return []


def record(sink: StoreSink, numbers: Sequence[int]) -> None:
    for n in numbers:
        sink.record(RunEvent(run_id="r1", kind=Kind.CALL_ARRIVED, at_s=n))


async def test_events_are_written_in_order_and_in_batches() -> None:
    store = Kept()
    async with StoreSink(store) as sink:
        record(sink, range(600))
        assert await sink.flush()
        assert store.kept == list(range(600))
    assert [len(batch) for batch in store.batches] == [MAX_BATCH, MAX_BATCH, 600 - 2 * MAX_BATCH]


async def test_recording_before_the_start_loses_nothing() -> None:
    store = Kept()
    sink = StoreSink(store)
    record(sink, range(3))
    assert sink.waiting == 3
    async with sink:
        pass
    assert store.kept == [0, 1, 2]


async def test_closing_writes_what_waits() -> None:
    store = Kept()
    async with StoreSink(store, max_delay_s=60.0) as sink:
        record(sink, range(10))
    assert (store.kept, sink.waiting, sink.dropped) == (list(range(10)), 0, 0)


async def test_events_wait_while_the_store_is_down() -> None:
    store = Kept()
    store.up.clear()
    async with StoreSink(store, max_delay_s=0.001) as sink:
        record(sink, range(10))
        await store.tried.wait()
        record(sink, range(10, 20))
        store.up.set()
        await sink.flush()
    assert (store.kept, sink.dropped) == (list(range(20)), 0)


async def test_the_oldest_are_dropped_and_counted_when_too_many_wait(caplog: pytest.LogCaptureFixture) -> None:
    store = Kept()
    sink = StoreSink(store, max_waiting=5)
    record(sink, range(12))
    assert (sink.waiting, sink.dropped) == (5, 7)
    with caplog.at_level(logging.WARNING):
        async with sink:
            pass
    assert store.kept == [7, 8, 9, 10, 11]
    assert "7 run events were dropped, 7 in all" in caplog.text


async def test_a_refused_event_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    store = Kept(refuses=[1, 3])
    with caplog.at_level(logging.WARNING):
        async with StoreSink(store) as sink:
            record(sink, range(5))
    assert (store.kept, sink.dropped) == ([0, 2, 4], 2)
    assert "an event cannot be kept" in caplog.text


async def test_closing_does_not_wait_for_a_store_that_stays_down(caplog: pytest.LogCaptureFixture) -> None:
    store = Kept()
    store.up.clear()
    sink = StoreSink(store, max_delay_s=0.001)
    sink.start()
    record(sink, range(300))
    await store.tried.wait()
    await sink.aclose(timeout_s=0.01)
    assert (sink.waiting, sink.dropped) == (0, 300)
    assert "300 run events were dropped" in caplog.text


async def test_flushing_a_sink_that_does_not_write_returns() -> None:
    sink = StoreSink(Kept())
    record(sink, range(3))
    assert not await sink.flush()
    assert sink.waiting == 3


async def test_a_flush_gives_up_while_the_store_is_down(caplog: pytest.LogCaptureFixture) -> None:
    store = Kept()
    store.up.clear()
    async with StoreSink(store, max_delay_s=0.001) as sink:
        record(sink, range(3))
        assert not await sink.flush(timeout_s=0.01)
        store.up.set()
        assert await sink.flush()
    assert caplog.text.count("run events wait: Redis at nowhere") == 1


async def test_many_can_wait_for_a_flush_at_once() -> None:
    store = Kept()
    async with StoreSink(store) as sink:
        record(sink, range(100))
        await asyncio.gather(*(sink.flush() for _ in range(10)))
        assert store.kept == list(range(100))
