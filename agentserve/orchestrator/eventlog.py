"""How is every scheduler event and decision recorded, so that a fresh core can be made to decide the same again?

JSON lines: a header `{policy, config, seed}`, then one `{now_s, event, decisions}` per event handled, in order.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from agentserve.errors import BadInput
from scheduler.decisions import Decision
from scheduler.events import Event
from scheduler.wire import record

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 2**30
_FLUSH_EVERY_S: Final = 0.5
_MAX_FILES: Final = 1000


class EventLog:
    """Keeps records in memory and writes them in a thread; never blocks or breaks serving.

    A log starts with an empty scheduler, so it is one file from beginning to end. Where `path` exists already, because
    a gateway was restarted, the next free one of `name-2.jsonl`, `name-3.jsonl` … is written: see `path`. At
    `max_bytes` recording stops with one warning and a last line that says so, since a part of a log replays nothing.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, max_bytes: int = MAX_BYTES) -> None:
        self.path = _free(path)
        self._max_bytes = max_bytes
        self._records: list[tuple[float, Event, Sequence[Decision]]] = []
        self._written = 0
        self._open = True
        self._writing = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("xb") as file:
                self._written = file.write(orjson.dumps(header) + b"\n")
        except OSError as error:
            raise BadInput(f"event log {self.path} cannot be written: {error.strerror}") from None

    def record(self, now_s: float, event: Event, decisions: Sequence[Decision]) -> None:
        """Take one handled event; cheap, written later."""
        if self._open:
            self._records.append((now_s, event, decisions))

    async def run(self) -> None:
        """Write what has come, twice a second, until cancelled; then write the rest."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_EVERY_S)
                await asyncio.to_thread(self.flush)
        finally:
            self.flush()

    def flush(self) -> None:
        """Write everything recorded so far."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        records, self._records = self._records, []
        if not records or not self._open:
            return
        lines = b"".join(orjson.dumps(record(event, now_s, made)) + b"\n" for now_s, event, made in records)
        if self._written + len(lines) > self._max_bytes:
            self._open = False
            lines = orjson.dumps({"truncated": f"the log reached {self._max_bytes} bytes"}) + b"\n"
            logger.warning("event log %s reached %d bytes: recording stops", self.path, self._max_bytes)
        try:
            with self.path.open("ab") as file:
                self._written += file.write(lines)
        except OSError as error:
            self._open = False
            logger.warning("event log %s: %s; recording stops", self.path, error.strerror)


def _free(path: Path) -> Path:
    if not path.exists():
        return path
    for number in range(2, _MAX_FILES):
        other = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not other.exists():
            return other
    raise BadInput(f"event log {path}: there are {_MAX_FILES} of them already; remove some")
