"""Is Redis there, new enough, and will it keep what it is given?"""

import contextlib
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentserve.doctor.finding import Finding, Part
from agentserve.errors import BadInput, Unavailable
from agentserve.tracker.connection import Connection

_PART: Final = Part("redis")
_PINGS: Final = 15
_SLOW_S: Final = 0.005
_OLDEST: Final = {"Redis": (7, 0), "Valkey": (8, 0)}
_FULL: Final = 0.9


async def check_redis(url: str, cluster: str, timeout_s: float, ca_file: Path | None = None) -> list[Finding]:
    """Reach it, time it, write a key that ends at once, and read what it says of itself. Never raises."""
    try:
        connection = Connection(
            url, timeout_s=timeout_s, connect_timeout_s=timeout_s, max_connections=2, ca_file=ca_file
        )
    except BadInput as error:
        return [_PART.problem("reachable", str(error), "set AGENTSERVE_REDIS_URL")]
    try:
        latency_s = await _latency_s(connection)
        found = [_PART.ok("reachable", f"at {connection.address}"), _latency(latency_s)]
        found.append(await _writable(connection, cluster))
        return [*found, *await _settings(connection)]
    except Unavailable as error:
        fix = "give user and password in AGENTSERVE_REDIS_URL" if "password" in str(error) else (
            "start it, or set AGENTSERVE_REDIS_URL to where it is"
        )  # fmt: skip
        return [_PART.problem("reachable", str(error), fix)]
    finally:
        with contextlib.suppress(Unavailable):
            await connection.close()


async def _latency_s(connection: Connection) -> float:
    took_s = []
    for _ in range(_PINGS):
        began_s = time.perf_counter()
        await connection.command("PING")
        took_s.append(time.perf_counter() - began_s)
    return statistics.median(took_s)


def _latency(median_s: float) -> Finding:
    found = f"{median_s * 1000:.2f} ms for a round trip, median of {_PINGS}"
    if median_s <= _SLOW_S:
        return _PART.ok("latency", found)
    return _PART.warning("latency", found, "bring it nearer to the gateway: every step of a run takes two round trips")


async def _writable(connection: Connection, cluster: str) -> Finding:
    try:
        await connection.command("SET", f"agentserve:{{{cluster}}}:doctor", 1, "PX", 1)
    except Unavailable as error:
        return _PART.problem(
            "writable", str(error), "name its primary, free memory, or let the user write agentserve:*"
        )
    return _PART.ok("writable", "a key could be written")


async def _settings(connection: Connection) -> list[Finding]:
    try:
        info = await connection.command("INFO")
    except Unavailable as error:
        return [_PART.warning("settings", str(error), "allow the user INFO to have version and settings checked")]
    return [_version(info), await _persistence(connection, info), _eviction(info)]


def _version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "unknown")
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    found, oldest = f"{name} {text}", _OLDEST[name]
    if numbers >= oldest:
        return _PART.ok("version", found)
    return _PART.problem("version", found, f"use {name} {oldest[0]} or newer")


async def _persistence(connection: Connection, info: Mapping[str, Any]) -> Finding:
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        return _PART.problem("persistence", "its last write to disk failed", "see its log: disk full, or no permission")
    if info.get("aof_enabled"):
        return _PART.ok("persistence", "append-only file")
    found = "snapshots only" if await _has_snapshots(connection) else "off"
    return _PART.warning("persistence", found, "set `appendonly yes`, else a restart loses runs")


async def _has_snapshots(connection: Connection) -> bool:
    try:
        told = await connection.command("CONFIG", "GET", "save")
    except Unavailable:  # managed servers do not let one ask
        return False
    return bool(isinstance(told, dict) and (told.get("save") or told.get(b"save")))


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy") or "unknown"), int(info.get("maxmemory") or 0)
    if not limit:
        return _PART.ok("eviction", f"no memory limit (policy {policy})")
    used = int(info.get("used_memory") or 0) / limit
    found = f"{policy}, {used:.0%} of {limit // 2**20} MiB used"
    if policy != "noeviction":  # all keys of a cluster expire some day, so volatile-* would take them too
        return _PART.problem("eviction", found, "set `maxmemory-policy noeviction`: it may throw away runs that go on")
    if used > _FULL:
        return _PART.warning("eviction", found, "raise `maxmemory`, or lower AGENTSERVE_RUN_TTL_S")
    return _PART.ok("eviction", found)
