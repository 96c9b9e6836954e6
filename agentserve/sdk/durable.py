"""What is known of a durable run, whichever process drives it? Who drives it, what began, and the tokens that came.

A run's record is a hash `…:durable:<run>`: what it is, its input, the token of its driver, `m:<place>` for every
execution that began and may not simply be done again (the token of the process that began it), `c:<place>` once that
execution has called a model. `…:driver:<run>` is a lease: while it lasts nobody else drives the run. `…:tokens:<run>`
holds what streams in flight have delivered. `…:durable` lists the runs that have not ended.
"""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentserve.errors import AgentServeError, Conflict, NotFound, Unavailable
from agentserve.sdk.redis_link import FENCED, NotDriver, RedisLink, Value

_log = logging.getLogger("agentserve.sdk")

LEASE_S: Final = 5.0
"""A driver that was not heard of for so long is dead."""
_RENEW_S: Final = 1.0
_BATCH_S: Final = 0.1
MAX_KEPT_BYTES: Final = 4 * 2**20
"""Of one call's stream; what comes after that is asked for again."""
_GENERATION: Final = 1000
"""Parts below the newest multiple of this are of attempts that could not be continued."""

_TAKE: Final = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  redis.call('HSET', KEYS[2], 'driver', ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  return 1
end
return 0
"""
_RENEW: Final = """
X, KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_MARK: Final = f"""
local driver = redis.call('HGET', KEYS[1], 'driver')
if driver and driver ~= ARGV[1] then return redis.error_reply('{FENCED}') end
redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[1])
return {{redis.call('HGET', KEYS[1], ARGV[2]), redis.call('HEXISTS', KEYS[1], ARGV[3])}}
"""
_LET_GO: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run is. `thread`: its LangGraph thread, `own_thread`: made for it; `before`: its last checkpoint."""

    run_id: str
    workflow: str
    app: str | None
    thread: str
    own_thread: bool
    before: str | None
    slo_s: float | None
    submitted_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A durable run that has not ended; `driven`: a process drives it now."""

    about: About
    driven: bool


class DurableRun:
    """One durable run as the process that drives it sees it."""

    def __init__(self, store: "DurableStore", about: About, driver: str, earlier: Mapping[str, "Delivered"]) -> None:
        """`earlier`: by call, what its stream delivered to processes before."""
        self.about = about
        self.driver = driver
        self.key = store.key(about.run_id)
        self.lost = False
        """Another process drives the run now."""
        self.allowed: frozenset[str] = frozenset()
        """Nodes that may be executed again in any case, as the user said."""
        self._store = store
        self._earlier = earlier
        self._called: set[str] = set()
        self._calls: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    def begin(self, place: str) -> tuple[bool, bool]:
        """Note that an execution begins: whether it began in an earlier process, and called a model there."""
        if self.lost:
            raise NotDriver(f"another process drives run {self.about.run_id} now")
        by, called = self._store.link.run(_MARK, [self.key], [self.driver, f"m:{place}", f"c:{place}"])
        return by.decode() != self.driver, bool(called)

    def calls_model(self, place: str) -> None:
        """Note, without waiting, that an execution called a model."""
        if place not in self._called:
            self._called.add(place)
            self._store.send(("HSET", self.key, f"c:{place}", 1), at_once=True)

    def stream(self, step_id: str, digest: str) -> "KeptStream":
        """What is kept of the next call of that step with that body."""
        with self._lock:
            number = self._calls[f"{step_id} {digest}"]
            self._calls[f"{step_id} {digest}"] += 1
        name = f"{step_id} {digest} {number}"
        earlier = self._earlier.get(name, Delivered([], 0))
        key = f"{self._store.link.prefix}:tokens:{self.about.run_id}"
        return KeptStream(self._store, key, name, earlier.parts, earlier.next_part)


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a call's stream delivered, a part for each connection; the number that the next part gets."""

    parts: list[bytes]
    next_part: int


@dataclass(slots=True)
class KeptStream:
    """What a stream delivered, so that the call goes on there in another process. `add` does not wait."""

    _store: "DurableStore"
    _key: str
    _name: str
    earlier: list[bytes]
    """What was delivered to processes before, a part for each connection."""
    _part: int
    _piece: int = 0
    _bytes: int = 0

    def next_part(self) -> None:
        """A new connection goes on with the stream."""
        self._part, self._piece = self._part + 1, 0

    def add(self, data: bytes) -> None:
        """Keep what came off the wire."""
        self._bytes += len(data)
        if self._bytes <= MAX_KEPT_BYTES:
            self._store.send(("HSET", self._key, f"{self._name} {self._part:04} {self._piece:08}", data))
            self._piece += 1

    def forget(self) -> None:
        """Begin anew: what is kept cannot be continued."""
        self.earlier = []
        self._part = (self._part // _GENERATION + 1) * _GENERATION


class DurableStore:
    """Records of the durable runs of one cluster; a thread of its own renews leases and writes what need not wait."""

    def __init__(self, link: RedisLink) -> None:
        self.link = link
        self._live: dict[str, DurableRun] = {}
        self._waiting: list[tuple[Value, ...]] = []
        self._changed = threading.Condition()
        self._at_once = False
        self._thread: threading.Thread | None = None

    def key(self, run_id: str) -> str:
        """The record of a run."""
        return f"{self.link.prefix}:durable:{run_id}"

    def begin(self, about: About, given: bytes) -> DurableRun:
        """Keep a new run with its input, and drive it; Conflict if another process does."""
        run = self._take(about, {})
        plain = orjson.dumps({name: getattr(about, name) for name in about.__slots__})
        key = self.key(about.run_id)
        self.link.pipeline(
            [
                ("HSET", key, "about", plain, "input", given),
                ("EXPIRE", key, self.link.ttl_s),
                ("ZADD", f"{self.link.prefix}:durable", about.submitted_s, about.run_id),
            ]
        )
        return run

    def take_over(self, run_id: str) -> tuple[DurableRun, bytes]:
        """Drive a run that another process began, and its input. NotFound; Conflict while that process lives."""
        about, given = self._read(run_id)
        stored = _pairs(self.link.command("HGETALL", f"{self.link.prefix}:tokens:{run_id}"))
        return self._take(about, _parts(stored)), given

    def find(self, run_id: str) -> About | None:
        """What a run is; None if it is not kept."""
        try:
            return self._read(run_id)[0]
        except NotFound:
            return None

    def marks(self, run: DurableRun) -> Mapping[str, bool]:
        """The executions that earlier processes began and may not simply be done again; whether they called a model."""
        stored = _pairs(self.link.command("HGETALL", run.key))
        begun = [name[2:] for name, by in stored.items() if name.startswith("m:") and by.decode() != run.driver]
        return {place: f"c:{place}" in stored for place in begun}

    def unfinished(self) -> Sequence[Unfinished]:
        """The durable runs that have not ended, the oldest first."""
        listed = f"{self.link.prefix}:durable"
        names = [name.decode() for name in self.link.command("ZRANGE", listed, 0, -1)]
        leases = self.link.pipeline([("EXISTS", f"{self.link.prefix}:driver:{name}") for name in names])
        found: list[Unfinished] = []
        for name, lease in zip(names, leases, strict=True):
            about = self.find(name)
            if about is None:  # its time has passed
                self.link.command("ZREM", listed, name)
            else:
                found.append(Unfinished(about=about, driven=bool(lease)))
        return found

    def ended(self, run: DurableRun) -> None:
        """The run has ended: nothing of it is kept but the thread that its user named."""
        self._forget(run)
        about, prefix = run.about, self.link.prefix
        gone = [run.key, f"{prefix}:driver:{about.run_id}", f"{prefix}:tokens:{about.run_id}"]
        commands: list[Sequence[Value]] = [("DEL", *gone), ("ZREM", f"{prefix}:durable", about.run_id)]
        if about.own_thread:
            commands += [("DEL", f"{prefix}:thread:{about.thread}"), ("ZREM", f"{prefix}:threads", about.thread)]
        if run.lost:
            return
        try:
            self.link.pipeline(commands)
        except Unavailable as error:
            _log.warning("run %s has ended, but its record was not deleted: %s", about.run_id, error)

    def let_go(self, run: DurableRun) -> None:
        """Drive the run no longer; another process may."""
        self._forget(run)
        try:
            self.link.run(_LET_GO, [f"{self.link.prefix}:driver:{run.about.run_id}"], [run.driver])
        except Unavailable as error:
            _log.warning("the lease on run %s was not given back: %s", run.about.run_id, error)

    def send(self, command: tuple[Value, ...], *, at_once: bool = False) -> None:
        """Have a command sent soon, in order; it is dropped if Redis is away: it only saves work."""
        with self._changed:
            self._waiting.append(command)
            self._at_once = self._at_once or at_once
            if at_once or len(self._waiting) == 1:
                self._changed.notify_all()

    # -- driving -----------------------------------------------------------------------------------------------------

    def _take(self, about: About, earlier: Mapping[str, Delivered]) -> DurableRun:
        driver = os.urandom(8).hex()
        keys = [f"{self.link.prefix}:driver:{about.run_id}", self.key(about.run_id)]
        if not self.link.run(_TAKE, keys, [driver, int(LEASE_S * 1000), self.link.ttl_s]):
            raise Conflict(
                f"run {about.run_id} is driven by another process, or was until a moment ago: wait {LEASE_S:g} s"
            )
        run = DurableRun(self, about, driver, earlier)
        with self._changed:
            self._live[about.run_id] = run
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agentserve-durable", daemon=True)
                self._thread.start()
        return run

    def _forget(self, run: DurableRun) -> None:
        with self._changed:
            self._live.pop(run.about.run_id, None)
            self._changed.notify_all()

    def _work(self) -> None:
        renewed_s = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or not self._live, _RENEW_S)
                self._changed.wait_for(lambda: self._at_once or not self._live, _BATCH_S if self._waiting else 0)
                commands, self._waiting, self._at_once = self._waiting, [], False
                live = list(self._live.values())
                if not live:
                    self._thread = None
                    return
            if time.monotonic() - renewed_s >= _RENEW_S:
                renewed_s = time.monotonic()
                self._try(self._renew, live)
            self._try(self.link.pipeline, commands)

    def _renew(self, live: Sequence[DurableRun]) -> None:
        for run in live:
            name = run.about.run_id
            keys = [f"{self.link.prefix}:driver:{name}", run.key]
            if not self.link.run(_RENEW, keys, [run.driver, int(LEASE_S * 1000)]) and name in self._live:
                run.lost = True
                _log.warning("another process drives run %s now; this one stops at its next step", name)
            self.link.pipeline(
                [("EXPIRE", key, self.link.ttl_s) for key in (run.key, f"{self.link.prefix}:tokens:{name}")]
            )

    def _try(self, act: Callable[[Sequence[Any]], object], what: Sequence[Any]) -> None:
        try:
            if what:
                act(what)
        except AgentServeError as error:
            _log.warning("durable runs: %s", error)

    def _read(self, run_id: str) -> tuple[About, bytes]:
        plain, given = self.link.command("HMGET", self.key(run_id), "about", "input")
        if plain is None or given is None:
            raise NotFound(f"no durable run {run_id} is kept: it has ended, or was not served with durable=True")
        try:
            return About(**orjson.loads(plain)), given
        except (TypeError, ValueError) as error:
            raise Unavailable(f"the record of run {run_id} cannot be read: {type(error).__name__}") from None


def _parts(stored: Mapping[str, bytes]) -> Mapping[str, Delivered]:
    """By call, what came over each connection, as far as no piece is missing."""
    found: dict[str, dict[int, list[bytes]]] = defaultdict(dict)
    for name in sorted(stored):
        call, part, piece = name.rsplit(" ", 2)
        pieces = found[call].setdefault(int(part), [])
        if int(piece) == len(pieces):
            pieces.append(stored[name])
    kept: dict[str, Delivered] = {}
    for call, parts in found.items():
        last = max(parts)
        newest = [number for number in sorted(parts) if number // _GENERATION == last // _GENERATION]
        kept[call] = Delivered([b"".join(parts[number]) for number in newest], last + 1)
    return kept


def _pairs(answer: Any) -> dict[str, bytes]:
    """The fields of a hash, which servers answer as a map or as a flat list."""
    if isinstance(answer, Mapping):
        return {name.decode(): value for name, value in answer.items()}
    return {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}
