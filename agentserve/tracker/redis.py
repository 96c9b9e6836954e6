"""How is everything that must outlive a gateway kept in Redis? Runs by compare-and-set, events as streams, counters.

A change of a run is: take the run (from a small cache, or Redis), let `Run.apply` decide what happens, and have one
script store it only if nobody stored another one since. A refusal, or a change that changes nothing, counts only once
it was found on the run as Redis holds it. Every call returns within its time limit or raises Unavailable.
"""

import asyncio
import itertools
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from weakref import WeakValueDictionary

from agentserve.errors import Conflict, NotFound, TooLarge, Unavailable
from agentserve.journal import RunEvent
from agentserve.settings import Settings
from agentserve.tracker import codec, feed, scripts
from agentserve.tracker.connection import Argument, Connection
from agentserve.tracker.keys import OUTCOMES, Keys
from agentserve.tracker.modes import RedisModes
from agentserve.tracker.store import EndedRuns, RunSummary
from workflows.errors import WorkflowError
from workflows.graph import Workflow
from workflows.run import Run, RunStatus, Transition

MAX_COUNTERS: Final = 20_000
"""Most counters kept for one workflow; further ones are not begun."""
LEARNED_TTL_S: Final = 30 * 86_400
"""Workflows and what was learned of them are kept this long after their last use."""

_MAX_TRIES: Final = 64
_MAX_CACHED_RUNS: Final = 1024
_STATUSES: Final = tuple(RunStatus)
_FIRST_STATUS: Final = 1
_FIRST_OUTCOME_KEY: Final = 2
_FIRST_STREAM_KEY: Final = _FIRST_OUTCOME_KEY + len(OUTCOMES)
_FEED_PIECE: Final = 16
_LIST_PIECE: Final = 100


@dataclass(frozen=True, slots=True)
class _Stored:
    """A run as last seen in Redis, with the token of the commit that wrote it."""

    run: Run
    token: bytes


class RedisStore:
    """A `tracker.store.Store` on Redis 7+ or Valkey 8+.

    `run_ttl_s`: runs and events are kept this long after their last change. `max_run_events`: about as many events of a
    run are kept, the newest. `max_run_steps`: a step more raises TooLarge. `max_listed_runs`: the newest that `list`
    knows; older runs can still be loaded.
    """

    def __init__(
        self,
        url: str,
        cluster: str,
        *,
        run_ttl_s: int = 86_400,
        max_run_events: int = 10_000,
        max_run_steps: int = 2_000,
        max_listed_runs: int = 10_000,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 1.0,
        ca_file: Path | None = None,
    ) -> None:
        self._connection = Connection(url, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, ca_file=ca_file)
        self._keys = Keys(cluster)
        self.modes = RedisModes(self._connection, self._keys)
        self._run_ttl_s = run_ttl_s
        self._max_run_events = max_run_events
        self._max_run_steps = max_run_steps
        self._max_listed_runs = max_listed_runs
        self._cache: OrderedDict[str, _Stored] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._writer = os.urandom(8).hex()
        self._numbers = itertools.count()

    @classmethod
    async def connect(cls, settings: Settings) -> Self:
        """A store as the settings say, known to answer; Unavailable otherwise, BadInput for a malformed URL."""
        store = cls(
            settings.redis_url,
            settings.cluster,
            run_ttl_s=settings.run_ttl_s,
            max_run_events=settings.max_run_events,
            max_run_steps=settings.max_run_steps,
            max_listed_runs=settings.max_listed_runs,
            connect_timeout_s=settings.connect_timeout_s,
            ca_file=settings.redis_ca_file,
        )
        try:
            await store.ping()
        except Unavailable:
            await store.close()
            raise
        return store

    @property
    def address(self) -> str:
        """Where the server is, without user or password."""
        return self._connection.address

    async def ping(self) -> None:
        """Return if the server answers, raise Unavailable otherwise."""
        await self._connection.command("PING")

    async def close(self) -> None:
        """Close every connection."""
        await self._connection.close()

    # Runs

    async def create(self, run: Run) -> tuple[Run, bool]:
        """Store a new run; returns the stored one and whether this call made it. Conflict if it differs in workflow."""
        async with self._lock(run.run_id):
            found = await self._commit(None, run)
            if found is None:
                return run, True
        if found.run.workflow != run.workflow:
            raise Conflict(f"run {run.run_id} is one of workflow {found.run.workflow}, not {run.workflow}")
        return found.run, False

    async def apply(self, run_id: str, transition: Transition) -> Run:
        """Apply atomically and return the new run.

        NotFound, IllegalTransition, DuplicateStep and TooLarge (one step more than a run may have) change nothing.
        """
        async with self._lock(run_id):
            known = self._cache.get(run_id)
            current = known is None
            known = known or await self._read(run_id)
            for _ in range(_MAX_TRIES):
                after = self._outcome(known.run, transition)
                if isinstance(after, Run) and after is not known.run:
                    newer = await self._commit(known, after)
                else:
                    newer = None if current else await self._newer(known)
                if newer is None:
                    return _or_raise(after)
                known, current = newer, True
        raise Unavailable(f"run {run_id} is being changed by too many writers at once")

    async def load(self, run_id: str) -> Run:
        """The run as stored; NotFound if it does not exist or its time to live has passed."""
        return (await self._read(run_id)).run

    async def list(self, status: RunStatus | None, limit: int, tenant: str | None = None) -> Sequence[RunSummary]:
        """The newest runs first, at most `limit`, of one tenant if named; runs that are gone leave the index here."""
        index = self._keys.lists(tenant or "")[0 if status is None else _STATUSES.index(status) + _FIRST_STATUS]
        limit = min(limit, self._max_listed_runs)
        found: list[RunSummary] = []
        skip = 0
        while len(found) < limit:
            wanted = min(limit - len(found), _LIST_PIECE)  # a long list is no long pause for others
            ids = await self._connection.command("ZREVRANGE", index, skip, skip + wanted - 1)
            if not ids:
                break
            names = [run_id.decode() for run_id in ids]
            rows = await self._connection.pipeline([("HMGET", self._keys.run(name), "run", "steps") for name in names])
            kept = [codec.summary(run, steps) for run, steps in rows if run is not None]
            found += (line for line in kept if status is None or line.status is status)
            expired = [name for name, (run, _) in zip(names, rows, strict=True) if run is None]
            await self._forget(expired, tenant or "")
            skip += len(names) - len(expired)
        return found

    def _outcome(self, run: Run, transition: Transition) -> Run | Exception:
        """What the transition makes of this run: another run, the same one, or a refusal."""
        try:
            after = run.apply(transition)
        except WorkflowError as refusal:
            return refusal
        if len(after.steps) > max(self._max_run_steps, len(run.steps)):
            return TooLarge(f"run {run.run_id} has {len(run.steps)} steps; at most {self._max_run_steps} are allowed")
        return after

    async def _newer(self, known: _Stored) -> _Stored | None:
        """The run as stored if it is another one than `known`, else None; cheap in that case."""
        run_id = known.run.run_id
        token = await self._connection.command("HGET", self._keys.run(run_id), "token")
        return None if token == known.token else await self._read(run_id)

    async def _read(self, run_id: str) -> _Stored:
        fields = codec.pairs(await self._connection.command("HGETALL", self._keys.run(run_id)))
        return self._seen(run_id, fields)

    async def _commit(self, before: _Stored | None, after: Run) -> _Stored | None:
        """Write what differs; None if it was stored, else what another writer had stored instead."""
        token = self._token()
        status_moved = before is None or before.run.status is not after.status
        answer = await self._connection.run(
            scripts.COMMIT,
            [self._keys.run(after.run_id), *self._lists(after.tenant)],
            [
                b"" if before is None else before.token,
                token,
                self._run_ttl_s,
                after.run_id,
                after.submitted_s,
                _STATUSES.index(after.status) + _FIRST_STATUS if status_moved else 0,
                self._max_listed_runs,
                *codec.changes(None if before is None else before.run, after),
            ],
        )
        if answer == scripts.COMMITTED:
            self._remember(_Stored(after, token))
            return None
        return self._seen(after.run_id, codec.pairs(answer))

    def _seen(self, run_id: str, fields: Mapping[bytes, bytes]) -> _Stored:
        if not fields:
            self._cache.pop(run_id, None)
            raise NotFound(f"run {run_id} does not exist, or its time to live has passed")
        stored = _Stored(codec.run_from_fields(fields), fields.get(b"token", b""))
        self._remember(stored)
        return stored

    def _remember(self, stored: _Stored) -> None:
        run = stored.run
        self._cache.pop(run.run_id, None)
        if run.status is RunStatus.RUNNING:
            self._cache[run.run_id] = stored
            if len(self._cache) > _MAX_CACHED_RUNS:
                self._cache.popitem(last=False)

    def _lists(self, tenant: str) -> Sequence[str]:
        """The indexes that a run is in: those of all runs, and its tenant's."""
        return (*self._keys.lists(""), *(self._keys.lists(tenant) if tenant else ()))

    async def _forget(self, run_ids: Sequence[str], tenant: str) -> None:
        if run_ids:
            await self._connection.pipeline([("ZREM", index, *run_ids) for index in self._lists(tenant)])

    def _lock(self, run_id: str) -> asyncio.Lock:
        # Changes of one run in this process wait for each other instead of racing to Redis and losing.
        lock = self._locks.get(run_id)
        if lock is None:
            lock = self._locks[run_id] = asyncio.Lock()
        return lock

    def _token(self) -> bytes:
        return f"{self._writer}-{next(self._numbers)}".encode()

    # Events

    async def append(self, events: Sequence[RunEvent]) -> None:
        """Add events in order, in one round trip; unknown runs are accepted. Equal events are read back as one."""
        if not events:
            return
        place: dict[str, int] = {}
        placed: list[Argument] = []
        ends: list[Argument] = []
        for event in events:
            key = self._keys.events(event.run_id)
            placed += (place.setdefault(key, len(place) + _FIRST_STREAM_KEY), codec.event_bytes(event))
            outcome = feed.outcome_of(event)
            if outcome is not None:
                ends += (OUTCOMES.index(outcome) + _FIRST_OUTCOME_KEY, event.at_s, event.run_id)
        fixed: list[Argument] = [self._run_ttl_s, self._max_run_events, feed.MAX_FEED_BATCHES, feed.batch_bytes(events)]
        fixed += [feed.ENDED_KEPT_S, feed.MAX_ENDED, len(ends) // 3]
        keys = [self._keys.feed, *self._keys.ended.values(), *place]
        await self._connection.run(scripts.APPEND, keys, [*fixed, *ends, *placed])

    async def read(self, run_id: str) -> Sequence[RunEvent]:
        """All kept events of a run, oldest first; empty if there are none."""
        events, _ = await self.tail(run_id)
        return events

    async def tail(self, run_id: str, after: str = "-") -> tuple[Sequence[RunEvent], str]:
        """The events after a position, and the position to go on from; `-` is before the first. Never waits."""
        start = "-" if after == "-" else f"({after}"
        entries = await self._connection.command("XRANGE", self._keys.events(run_id), start, "+")
        # A batch whose answer was lost is sent again: the same event twice is one event.
        stored = dict.fromkeys(_event_of(fields) for _, fields in entries)
        events = [codec.event_from_bytes(run_id, event) for event in stored]
        return events, entries[-1][0].decode() if entries else after

    # The whole cluster

    async def facts(self, after: str | None = None) -> feed.Facts:
        """What the feed tells after a position, a bounded piece at a time; None: from the oldest kept. Never waits."""
        rows = await self._connection.command(
            "XRANGE", self._keys.feed, "-" if after is None else after, "+", "COUNT", _FEED_PIECE
        )
        found = [(position.decode(), _event_of(fields)) for position, fields in rows]
        is_gap = after is not None and bool(found) and found[0][0] != after
        fresh = [stored for position, stored in found if position != after]
        events = [event for stored in fresh for event in feed.batch_events(stored)]
        # Without an entry, `0` is before whatever comes, and is no gap since nothing was missed.
        position = found[-1][0] if found else after or "0"
        return feed.Facts(events, position, is_gap and after != "0", len(rows) < _FEED_PIECE)

    async def ended(self, spans: Sequence[tuple[float, float]]) -> Sequence[EndedRuns]:
        """How many runs ended from each span's begin until before its end (Unix seconds), by outcome."""
        counts = await self._connection.pipeline(
            [("ZCOUNT", key, begin_s, f"({end_s}") for begin_s, end_s in spans for key in self._keys.ended.values()]
        )
        return [EndedRuns(*counts[i : i + len(OUTCOMES)]) for i in range(0, len(counts), len(OUTCOMES))]

    # What was learned, and workflows

    async def add(self, workflow: str, increments: Mapping[str, int]) -> None:
        """Add to a workflow's counters atomically, and drop those that fell to zero.

        What a call adds is added once even if its answer is lost; a second call adds again. Past `MAX_COUNTERS`
        counters no new one begins. `workflows.forecast.admit` bounds and decays before that.
        """
        if not increments:
            return
        token = self._token().decode()
        flat: list[Argument] = [item for pair in increments.items() for item in pair]
        await self._connection.run(
            scripts.COUNT,
            [self._keys.forecast(workflow), self._keys.once(token)],
            [LEARNED_TTL_S, MAX_COUNTERS, *flat],
        )

    async def counts(self, workflow: str) -> Mapping[str, int]:
        """All counters of a workflow; empty if nothing was learned."""
        return codec.counters(await self._connection.command("HGETALL", self._keys.forecast(workflow)))

    async def put_workflow(self, workflow: Workflow) -> None:
        """Register or replace a workflow; TooLarge past `codec.MAX_WORKFLOW_BYTES`."""
        stored = codec.workflow_bytes(workflow)
        await self._connection.command("SET", self._keys.workflow(workflow.name), stored, "EX", LEARNED_TTL_S)

    async def get_workflow(self, name: str) -> Workflow | None:
        """The workflow of that name, None if it was never registered or not used for `LEARNED_TTL_S`."""
        stored = await self._connection.command("GETEX", self._keys.workflow(name), "EX", LEARNED_TTL_S)
        return None if stored is None else codec.workflow_from_bytes(stored)


def _or_raise(outcome: Run | Exception) -> Run:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _event_of(fields: Any) -> bytes:
    return codec.pairs(fields)[b"e"]
