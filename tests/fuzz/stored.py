"""Targets: what lies in Redis, damaged or written by another version, and recorded event logs."""

import contextlib
import gzip
import io
import tempfile
from collections.abc import Coroutine, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from agentserve.cli.runs import verify_log
from agentserve.errors import AgentServeError
from agentserve.gateway.page.board import Board
from agentserve.gateway.page.explained import explained
from agentserve.journal import RunEvent
from agentserve.run_story import explain_json, run_story
from agentserve.sdk.checkpoints import RedisCheckpoints
from agentserve.sdk.durable import DurableStore
from agentserve.telemetry.metrics import MetricSink
from agentserve.telemetry.open_runs import OpenRuns
from agentserve.tracker import codec, feed
from agentserve.tracker.redis import RedisStore
from agentserve.waterfall import render_run
from tests.fuzz.mutations import case, changed_bytes
from tests.fuzz.target import Target
from tests.unit.made_up_run import whole_run
from workflows.deadlines import derive
from workflows.forecast import Forecast
from workflows.graph import Edge, Node, Workflow
from workflows.run import StepFinished, StepKind, StepStarted, StepStatus, new_run
from workflows.wire import run_to_plain

ROOT = Path(__file__).parents[2]
WORKFLOW = Workflow(
    "w",
    (Node("plan", StepKind.LLM), Node("act", StepKind.TOOL)),
    (Edge("__start__", "plan"), Edge("plan", "act"), Edge("plan", "__end__"), Edge("act", "plan")),
)
RUN = (
    new_run("run-1", "w", 100.0, slo_s=20.0)
    .apply(StepStarted(step_id="plan.1", node="plan", kind=StepKind.LLM, at_s=100.5))
    .apply(StepFinished(step_id="plan.1", status=StepStatus.SUCCEEDED, at_s=102.0))
    .apply(StepStarted(step_id="act.2", node="act", kind=StepKind.TOOL, parents=("plan.1",), at_s=102.0))
)
EVENTS = list(whole_run())
STORED_EVENTS = [orjson.loads(codec.event_bytes(event)) for event in EVENTS]
COUNTS = {"n:plan:count": 3, "d:plan:12": 2, "e:plan:act": 1, "f:plan:act:2": 1}


class _Answers:
    """In place of a connection to Redis: every command is answered with what was found there."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def command(self, *arguments: Any) -> Any:
        return self._answer

    async def pipeline(self, commands: Sequence[Any]) -> list[Any]:
        return [self._answer for _ in commands]


def _ended(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def _store(answer: Any) -> RedisStore:
    store = RedisStore("redis://127.0.0.1:1/0", "c")
    store._connection = store.modes._connection = _Answers(answer)  # type: ignore[assignment]
    return store


def _fields(given: bytes) -> dict[bytes, bytes]:
    """A hash as Redis gives it, from a JSON object; anything else is one field."""
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        return {b"run": given, b"token": b"t", b"version": b"1", b"steps": b"1"}
    return {
        name.encode("utf-8", "replace"): text.encode("utf-8", "replace")
        if isinstance(text, str)
        else orjson.dumps(text)
        for name, text in value.items()
    }


STORED_RUN: dict[str, Any] = {
    "run": {**run_to_plain(RUN), "steps": [], "version": 0},
    "version": 4,
    "token": "t-1",
    "steps": 2,
    **{f"s:{step['step_id']}": [place, step] for place, step in enumerate(run_to_plain(RUN)["steps"])},
}


def _run(given: bytes) -> None:
    fields = _fields(given)
    run = _ended(_store(fields).load("run-1"))
    orjson.dumps(run_to_plain(run))
    derive(run, WORKFLOW, Forecast.from_counts(WORKFLOW, {}), 103.0)
    codec.summary(fields.get(b"run", b""), fields.get(b"steps", b"0"))


def _journal(given: bytes) -> None:
    """One damaged event within a whole journal, as every reader of journals takes it."""
    rows = [codec.event_bytes(event) for event in EVENTS]
    rows.insert(len(rows) // 2, given)
    events: list[RunEvent] = []
    for row in rows:
        try:
            events.append(codec.event_from_bytes("run-1", row))
        except AgentServeError:
            continue
    orjson.dumps(explain_json(RUN, events), default=str)
    explained(run_story(RUN, events), 1_000_020.0, 200)
    console = Console(file=io.StringIO(), width=100)
    console.print(render_run(RUN, events, now_s=1_000_020.0))
    board, metrics, runs = Board(), MetricSink(), OpenRuns()
    runs.restore(events)
    metrics.restore(events)
    for event in events:
        fed = feed.batch_bytes([event])
        board.apply(feed.batch_events(fed))


def _counts(given: bytes) -> None:
    counts = _ended(_store(_fields(given)).counts("w"))
    Forecast.from_counts(WORKFLOW, counts).outlook_of(RUN)


def _modes(given: bytes) -> None:
    _ended(_store([given]).modes.switches())


def _mode_counts(given: bytes) -> None:
    _ended(_store(_fields(given)).modes.counts(["t"]))


def _feed(given: bytes) -> None:
    board = Board()
    board.apply(_ended(_store([(b"1-0", [b"e", given])]).facts()).events)


class _Link:
    """In place of the SDK's link to Redis."""

    prefix = "agentserve:{c}"
    address = "nowhere"
    ttl_s = 60

    def __init__(self, hash_of: dict[bytes, bytes]) -> None:
        self._hash = hash_of

    def command(self, name: str, *arguments: Any) -> Any:
        match name:
            case "HKEYS":
                return list(self._hash)
            case "HMGET":
                wanted = [field.encode() if isinstance(field, str) else field for field in arguments[1:]]
                return [self._hash.get(field) for field in wanted]
            case _:
                return dict(self._hash)


def _checkpoints(given: bytes) -> None:
    name, _, value = given.partition(b"\n")
    fields = {name: value, b'["c","","1"]': value, b'["b","","x","1"]': value}
    saver = RedisCheckpoints(_Link(fields))  # type: ignore[arg-type]
    try:
        saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}})
    finally:
        saver.close()


def _durable(given: bytes) -> None:
    DurableStore(_Link(_fields(given))).find("run-1")  # type: ignore[arg-type]


with gzip.open(ROOT / "tests" / "replay" / "data" / "agentserve.jsonl.gz", "rt") as _log:
    LOG = [orjson.loads(line) for line in islice(_log, 16)]
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-log-")


def _changed_log(draw: bytes) -> bytes:
    if draw[1] % 8 == 0:
        return changed_bytes(b"\n".join(orjson.dumps(row) for row in LOG), draw)
    place = draw[0] % len(LOG)
    row = case([LOG[place]], draw)
    return b"\n".join(row if number == place else orjson.dumps(one) for number, one in enumerate(LOG))


def _verified(given: bytes) -> None:
    path = Path(_FOLDER.name) / "log"
    path.write_bytes(given)
    with contextlib.redirect_stdout(io.StringIO()):
        verify_log(path)


CHECKPOINT = {
    "checkpoint": {"v": 4, "id": "1", "channel_versions": {"x": "1"}},
    "metadata": {"step": 1},
    "parent": None,
}
ABOUT = {
    "about": {
        "run_id": "run-1",
        "workflow": "w",
        "app": "a:graph",
        "thread": "run-1",
        "own_thread": True,
        "before": None,
        "slo_s": 20.0,
        "submitted_s": 100.0,
    },
    "input": "null",
}
MODE = {"mode": "route", "at_s": 100.0, "token": "t"}
TARGETS = (
    Target("stored-run", lambda draw: case([STORED_RUN], draw), _run, (AgentServeError,)),
    Target("stored-journal", lambda draw: case(STORED_EVENTS, draw), _journal),
    Target("stored-forecast", lambda draw: case([COUNTS], draw), _counts, (AgentServeError,)),
    Target("stored-mode", lambda draw: case([MODE], draw), _modes, (AgentServeError,)),
    Target("stored-mode-counts", lambda draw: case([COUNTS], draw), _mode_counts, (AgentServeError,)),
    Target(
        "stored-workflow",
        lambda draw: case([WORKFLOW.to_dict()], draw),
        lambda given: _ended(_store(given).get_workflow("w")),
        (AgentServeError,),
    ),
    Target("stored-feed", lambda draw: case([[feed.bare(one) for one in EVENTS[:6]]], draw), _feed, (AgentServeError,)),
    Target(
        "stored-checkpoint",
        lambda draw: (
            (b'["c","","2"]' if draw[0] % 4 else case([["w", "", "1", "t", 0]], draw).replace(b"\n", b""))
            + b"\njson\0"
            + case([CHECKPOINT], draw)
        ),
        _checkpoints,
        (AgentServeError,),
    ),
    Target("stored-durable-run", lambda draw: case([ABOUT], draw), _durable, (AgentServeError,)),
    Target("event-log", _changed_log, _verified, (AgentServeError,)),
)
