"""Where does a durable run's LangGraph state lie? In plain Redis: one hash for each thread, no modules needed.

LangGraph's own checkpointer for Redis needs RedisJSON and RediSearch, which Redis 7 and Valkey do not have. Fields of a
thread's hash are named by JSON lists: `["c", ns, id]` a checkpoint, `["b", ns, channel, version]` a channel's value,
`["w", ns, id, task, index]` a write that is pending. One key holds a thread, so that it expires, is copied and is
deleted as one.
"""

import os
import time
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final, TypeVar

import orjson
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from agentserve.errors import Unavailable
from agentserve.sdk.context import active_run
from agentserve.sdk.redis_link import FENCED, RedisLink, Value

T = TypeVar("T")
Fields = list[tuple[bytes, bytes]]
_THREADS: Final = 8

# Writes fields; the first `ARGV[5]` pairs replace what is there, the others do not. Refuses a process that was fenced.
_WRITE: Final = f"""
local driver = ARGV[1] ~= '' and redis.call('HGET', KEYS[3], 'driver')
if driver and driver ~= ARGV[1] then return redis.error_reply('{FENCED}') end
for i = 6, #ARGV, 2 do
  if (i - 6) / 2 < tonumber(ARGV[5]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  else redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[4] - ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
"""


class RedisCheckpoints(BaseCheckpointSaver[str]):
    """A LangGraph checkpointer over plain Redis 7+ or Valkey 8+ commands, for synchronous and asynchronous graphs.

    A thread goes the link's `ttl_s` after its last change. Raises Unavailable where Redis cannot be reached or holds
    what cannot be read, and Conflict for a process that no longer drives the run it writes for.
    """

    def __init__(self, link: RedisLink, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self._link = link
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="agentserve-checkpoints")

    # -- reading -----------------------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the newest of its thread and namespace; None if there is none."""
        thread, ns = _place(config)
        wanted = get_checkpoint_id(config)
        names = self._names(thread)
        ids = [name[2] for name in names if name[:2] == ["c", ns] and wanted in (None, "", name[2])]
        return self._read(thread, ns, max(ids), names) if ids else None

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name for it
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints of a thread (of all threads without `config`), the newest of each first."""
        configurable = config["configurable"] if config is not None else {}
        ns, wanted = configurable.get("checkpoint_ns"), configurable.get("checkpoint_id")
        earlier_than = get_checkpoint_id(before) if before is not None else None
        left = limit
        for thread in [str(configurable["thread_id"])] if "thread_id" in configurable else self._threads():
            names = self._names(thread)
            found = [name for name in names if name[0] == "c" and ns in (None, name[1]) and wanted in (None, name[2])]
            for _, its_ns, checkpoint_id in sorted(found, key=lambda name: str(name[2]), reverse=True):
                if earlier_than is not None and checkpoint_id >= earlier_than:
                    continue
                if left is not None and left <= 0:
                    return
                one = self._read(thread, its_ns, checkpoint_id, names)
                if one is not None and _matches(one.metadata, filter):
                    left = None if left is None else left - 1
                    yield one

    # -- writing -----------------------------------------------------------------------------------------------------

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and the values that it changed."""
        thread, ns = _place(config)
        bare: dict[str, Any] = dict(checkpoint)
        values = bare.pop("channel_values")
        about: dict[str, Any] = {"checkpoint": bare, "metadata": get_checkpoint_metadata(config, metadata)}
        about["parent"] = config["configurable"].get("checkpoint_id")
        fields = [(_name("c", ns, checkpoint["id"]), self._packed(about))]
        for channel, version in new_versions.items():
            value = self._packed(values[channel]) if channel in values else b""
            fields.append((_name("b", ns, channel, version), value))
        self._write(thread, fields, [])
        return _config(thread, ns, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote; a task's own writes are kept as they came first, its errors are replaced."""
        thread, ns = _place(config)
        checkpoint_id = config["configurable"]["checkpoint_id"]
        replacing: Fields = []
        keeping: Fields = []
        for place, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, place)
            stored = self._packed([task_path, channel, value])
            (keeping if index >= 0 else replacing).append((_name("w", ns, checkpoint_id, task_id, index), stored))
        self._write(thread, replacing, keeping)

    def delete_thread(self, thread_id: str) -> None:
        """Delete all of a thread."""
        self._link.pipeline([("DEL", self._key(thread_id)), ("ZREM", self._index, thread_id)])

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all of a thread, its whole history included."""
        now = time.time()
        copy = ("COPY", self._key(source_thread_id), self._key(target_thread_id), "REPLACE")
        if self._link.command(*copy):
            self._link.command("ZADD", self._index, now, target_thread_id)

    # -- the same for asynchronous graphs ----------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`get_tuple` in a thread."""
        return await self._in_thread(lambda: self.get_tuple(config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name for it
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """`list` in a thread."""
        found = self.list(config, filter=filter, before=before, limit=limit)
        while (one := await self._in_thread(lambda: next(found, None))) is not None:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`put` in a thread."""
        return await self._in_thread(lambda: self.put(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """`put_writes` in a thread."""
        await self._in_thread(lambda: self.put_writes(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """`delete_thread` in a thread."""
        await self._in_thread(lambda: self.delete_thread(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`copy_thread` in a thread."""
        await self._in_thread(lambda: self.copy_thread(source_thread_id, target_thread_id))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The version after `current`; versions sort as text, and those of two branches of a thread differ."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{os.urandom(6).hex()}"

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    # -- how it lies there -------------------------------------------------------------------------------------------

    @property
    def _index(self) -> str:
        return f"{self._link.prefix}:threads"

    def _key(self, thread: str) -> str:
        return f"{self._link.prefix}:thread:{thread}"

    def _threads(self) -> Sequence[str]:
        return [name.decode() for name in self._link.command("ZRANGE", self._index, 0, -1)]

    def _names(self, thread: str) -> Sequence[Any]:
        try:
            names = [orjson.loads(name) for name in self._link.command("HKEYS", self._key(thread))]
        except orjson.JSONDecodeError as error:
            raise _unreadable(thread) from error
        lengths = {"c": 3, "b": 4, "w": 5}
        if not all(isinstance(name, list) and name and lengths.get(str(name[0])) == len(name) for name in names):
            raise _unreadable(thread)
        return names

    def _read(self, thread: str, ns: str, checkpoint_id: str, names: Sequence[Any]) -> CheckpointTuple | None:
        pending = [name for name in names if name[0] == "w" and name[1:3] == [ns, checkpoint_id]]
        wanted = [_name("c", ns, checkpoint_id), *(_name(*name) for name in pending)]
        stored, *written = self._link.command("HMGET", self._key(thread), *wanted)
        if stored is None:  # it went while it was read
            return None
        try:
            about = self._unpacked(stored)
            writes = [
                (*name[3:5], *self._unpacked(raw))
                for name, raw in zip(pending, written, strict=True)
                if raw is not None
            ]
            writes.sort(key=lambda each: writes_sort_key(each[2], each[0], each[1]))
            checkpoint: Checkpoint = about["checkpoint"]
            checkpoint["channel_values"] = self._values(thread, ns, checkpoint["channel_versions"])
            parent = about["parent"]
            return CheckpointTuple(
                config=_config(thread, ns, checkpoint_id),
                checkpoint=checkpoint,
                metadata=about["metadata"],
                parent_config=None if not parent else _config(thread, ns, parent),
                pending_writes=[(task, channel, value) for task, _, _, channel, value in writes],
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _unreadable(thread) from error

    def _values(self, thread: str, ns: str, versions: ChannelVersions) -> dict[str, Any]:
        if not versions:
            return {}
        fields = [_name("b", ns, channel, version) for channel, version in versions.items()]
        stored = self._link.command("HMGET", self._key(thread), *fields)
        return {
            channel: self._unpacked(raw)
            for channel, raw in zip(versions, stored, strict=True)
            if raw  # empty: no value
        }

    def _write(self, thread: str, replacing: Fields, keeping: Fields) -> None:
        if not replacing and not keeping:
            return
        run = active_run()
        durable = None if run is None else run.durable
        record = self._key(thread) if durable is None else durable.key  # without a fence it is not read
        keys = [self._key(thread), self._index, record]
        fence = "" if durable is None else durable.driver
        flat = [item for pair in (*replacing, *keeping) for item in pair]
        about: Sequence[Value] = [fence, self._link.ttl_s, thread, time.time(), len(replacing)]
        self._link.run(_WRITE, keys, [*about, *flat])

    def _packed(self, value: Any) -> bytes:
        return packed(self.serde, value)

    def _unpacked(self, stored: bytes) -> Any:
        return unpacked(self.serde, stored)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        # Threads of its own: LangGraph's synchronous nodes may fill asyncio's default ones for as long as calls last.
        return await get_running_loop().run_in_executor(self._pool, copy_context().run, act)


def packed(serde: SerializerProtocol, value: Any) -> bytes:
    """A value of a graph's state as it is kept."""
    kind, data = serde.dumps_typed(value)
    return kind.encode() + b"\0" + data


def unpacked(serde: SerializerProtocol, stored: bytes) -> Any:
    """The value that `packed` kept; ValueError if it cannot be read."""
    kind, _, data = stored.partition(b"\0")
    try:
        return serde.loads_typed((kind.decode(), data))
    except Exception as error:  # noqa: BLE001  # the users' own classes are made here: they may raise anything
        raise ValueError(type(error).__name__) from None


def _place(config: RunnableConfig) -> tuple[str, str]:
    configurable = config["configurable"]
    return str(configurable["thread_id"]), str(configurable.get("checkpoint_ns", ""))


def _config(thread: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}


def _name(*parts: Any) -> bytes:
    return orjson.dumps(parts)


def _matches(metadata: CheckpointMetadata, wanted: dict[str, Any] | None) -> bool:
    return all(metadata.get(name) == value for name, value in (wanted or {}).items())


def _unreadable(thread: str) -> Unavailable:
    return Unavailable(f"the checkpoints of {thread!r} in Redis cannot be read: written by another version, or damaged")
