"""What does one page get, when, and what of a page that takes nothing or of one too many?"""

import asyncio
from types import SimpleNamespace

import orjson
import pytest

from agentserve.errors import Unavailable
from agentserve.gateway.errors import Overloaded
from agentserve.gateway.page import watch as watching
from agentserve.gateway.page.board import View
from agentserve.gateway.page.stream import LiveStream, Reader
from agentserve.gateway.page.watch import Watch
from agentserve.journal import Kind, RunEvent
from agentserve.orchestrator.instances import Instance
from agentserve.tracker.feed import Facts
from agentserve.tracker.store import EndedRuns, RunSummary
from scheduler.events import InstanceSpec
from workflows.run import RunStatus

NOW_S = 6000.0


class Store:
    """A store with one listed run and what is put into `feed`; it fails while `down`, and tells of a gap once."""

    def __init__(self):
        self.listed = [RunSummary("listed", "coder", RunStatus.RUNNING, NOW_S - 5, None, 10.0, 2)]
        self.feed = []
        self.down = False
        self.gap = False
        self.lists = 0

    async def list(self, status, limit):
        self._answer()
        self.lists += 1
        return self.listed

    async def facts(self, after=None):
        self._answer()
        gap, self.gap = self.gap and after is not None, False
        events = self.feed[int(after or 0) :]
        return Facts(events, str(len(self.feed)), gap)

    async def ended(self, spans):
        self._answer()
        return [EndedRuns(1, 2, 3) if begin == NOW_S - 60 else EndedRuns(0, 0, 0) for begin, _ in spans]

    def _answer(self):
        if self.down:
            raise Unavailable("Redis at secret-host:6379: the connection failed")


def spec(name):
    facts = {"kv_capacity_tokens": 1000, "block_tokens": 16, "max_num_seqs": 8, "max_batched_tokens": 512}
    return InstanceSpec(instance_id=name, model="m", gpu="h100", kv_bytes_per_token=1, **facts)


def make_watch(store=None, max_readers=4, **instances):
    orchestrator = SimpleNamespace(
        accepting=True,
        calls={},
        scheduler=SimpleNamespace(snapshot=lambda: {"instances": []}),
        instances={name: Instance(spec(name), "http://e", "vllm", None, **state) for name, state in instances.items()},
    )
    return Watch(store or Store(), orchestrator, max_readers, lambda: NOW_S)


async def read(watch):
    """What the background does in one turn."""
    watch.look()
    await watch._begin()
    await watch._read_feed(None)
    await watch.count(watching.MINUTES)
    watch.problem = None


def submitted(run_id, at_s=NOW_S):
    data = {"workflow": "coder", "slo_s": 5.0, "deadline_s": at_s + 5.0}
    return RunEvent(run_id=run_id, kind=Kind.RUN_SUBMITTED, at_s=at_s, data=data)


async def test_the_first_message_tells_all_and_the_next_only_what_changed():
    store = Store()
    watch = make_watch(store, e1={"reported": {"running": 2, "kv_usage": 0.51234}}, e2={"state": "lost"})
    await read(watch)
    reader = Reader(watch, View())
    first = reader.news()
    assert [one["instance_id"] for one in first["instances"]] == ["e1", "e2"]
    assert (first["instances"][0]["running"], first["instances"][0]["kv_usage"]) == (2, 0.512)
    assert (NOW_S - 60, 1, 2, 3) in first["minutes"]
    assert len(first["minutes"]) == watching.MINUTES
    assert (first["order"], first["matching"], first["problem"]) == (["listed"], 1, None)
    assert first["totals"] == {"live": 1, "late": 0, "known": 1, "calls": 0}
    assert reader.news() == {}

    watch.orchestrator.instances["e1"].reported = {"running": 3}
    watch.board.apply([submitted("new")])
    watch.look()
    news = reader.news()
    assert [one["running"] for one in news["instances"]] == [3]
    assert ([row["run_id"] for row in news["runs"]], news["order"]) == (["new"], ["new", "listed"])
    assert "minutes" not in news


async def test_a_reader_is_told_only_of_the_rows_in_its_view_and_of_the_run_it_follows():
    watch = make_watch()
    watch.board.apply([submitted(f"r{n}", NOW_S + n) for n in range(50)])
    reader = Reader(watch, View(first=10, rows=3), "r1")
    news = reader.news()
    assert news["order"] == [row["run_id"] for row in news["runs"]] == ["r39", "r38", "r37"]
    assert (news["matching"], news["followed"]["run_id"]) == (50, "r1")
    watch.board.apply([RunEvent(run_id="r5", kind=Kind.RUN_FINISHED, at_s=NOW_S, data={"attained": True})])
    assert set(reader.news()) == {"totals"}
    watch.board.apply([RunEvent(run_id="r1", kind=Kind.RUN_FINISHED, at_s=NOW_S, data={"attained": True})])
    assert reader.news()["followed"]["status"] == "succeeded"


async def test_a_gap_in_the_feed_makes_the_board_anew_with_newer_versions():
    store = Store()
    watch = make_watch(store)
    await read(watch)
    reader = Reader(watch, View())
    reader.news()
    store.gap, store.listed = True, [*store.listed, RunSummary("missed", "w", RunStatus.RUNNING, NOW_S, None, None, 0)]
    assert await watch._read_feed("0") is None
    await watch._begin()
    assert {row["run_id"] for row in reader.news()["runs"]} == {"listed", "missed"}


async def others():
    """Let all other tasks do what they can do now."""
    for _ in range(20):
        await asyncio.sleep(0)


async def turn(watch):
    """Until the background has told its readers something twice."""
    for _ in range(2):
        await watch.ticked()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(watching, "PERIOD_S", 0.0)
    monkeypatch.setattr(watching, "_RETRY_S", 0.0)


@pytest.mark.usefixtures("fast")
async def test_nothing_is_read_while_nobody_looks_and_it_begins_again_for_the_next():
    store = Store()
    watch = make_watch(store)
    running = asyncio.create_task(watch.run())
    try:
        for looks in (1, 2):
            with watch.reading():
                while watch.problem is not None or store.lists < 2 * looks:
                    await turn(watch)
                assert Reader(watch, View()).news()["order"] == ["listed"]
            await others()
            assert store.lists == 2 * looks
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.usefixtures("fast")
async def test_a_store_that_is_away_is_said_without_its_address_and_instances_go_on():
    store = Store()
    store.down = True
    watch = make_watch(store, e1={})
    running = asyncio.create_task(watch.run())
    try:
        with watch.reading():
            reader = Reader(watch, View())
            await turn(watch)
            assert [one["instance_id"] for one in reader.news()["instances"]] == ["e1"]
            while "does not answer" not in (watch.problem or ""):
                await turn(watch)
            assert "secret-host" not in watch.problem
            store.down = False
            while watch.problem is not None:
                await turn(watch)
            assert reader.news()["order"] == ["listed"]
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_one_reader_too_many_is_refused_and_a_place_is_free_again_after():
    watch = make_watch(max_readers=1)
    with watch.reading(), pytest.raises(Overloaded, match="1 pages are open"):
        watch.check_room()
    watch.check_room()


class Client:
    """An ASGI client: keeps what is sent, leaves when told, takes nothing after `stuck_after` messages."""

    def __init__(self, stuck_after=None):
        self.sent = []
        self.left = asyncio.Event()
        self.stuck_after = stuck_after

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.stuck_after is not None and len(self.sent) >= self.stuck_after:
            await asyncio.Event().wait()
        self.sent.append(message)


async def test_a_stream_ends_when_its_page_leaves():
    watch, client = make_watch(), Client()
    stream = asyncio.create_task(LiveStream(watch, Reader(watch, View()))({}, client.receive, client.send))
    await others()
    assert len(client.sent) == 2
    watch.look()
    watch._announce()
    await others()
    told = orjson.loads(client.sent[2]["body"].removeprefix(b"data: "))
    assert (told["now_s"], told.get("order", [])) == (NOW_S, [])
    assert watch.readers == 1
    client.left.set()
    await stream
    assert watch.readers == 0


async def test_a_page_that_takes_nothing_is_dropped_and_its_place_is_free():
    watch, client = make_watch(), Client(stuck_after=1)
    await LiveStream(watch, Reader(watch, View()), send_timeout_s=0.0)({}, client.receive, client.send)
    assert watch.readers == 0


async def test_a_stream_says_goodbye_when_the_gateway_stops():
    watch, client = make_watch(), Client()
    watch.orchestrator.accepting = False
    await LiveStream(watch, Reader(watch, View()))({}, client.receive, client.send)
    assert (client.sent[-1]["body"], client.sent[-1]["more_body"]) == (b"event: bye\ndata: {}\n\n", False)
