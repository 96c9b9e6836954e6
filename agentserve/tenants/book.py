"""Who is the caller with this key, now? The tenants' file in memory, read again when it changes.

A file that cannot be used leaves what was read before in force and is logged, so that a slip of the pen locks nobody
out; a key that was taken out is refused within `FOLLOW_S`.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput
from agentserve.tenants.file import TenantFile, read_tenants
from agentserve.tenants.keys import fits, key_id_of
from agentserve.tenants.tenant import Tenant

logger = logging.getLogger(__name__)

FOLLOW_S: Final = 1.0
"""How often the file is looked at."""

_Stamp = tuple[int, int, int]


class TenantBook:
    """Tenants by key. `caller` takes microseconds, so that no key has to be kept in the clear to save them."""

    def __init__(self, path: Path) -> None:
        """Read the file; BadInput if it cannot be used, or names no key: nobody could call."""
        self._path = path
        self._stamp = _stamp_of(path)
        self._read = read_tenants(path)
        if not self._read.keys:
            raise BadInput(f"tenants file {path}: it has no key; make one with `agentserve keys new TENANT`")

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """By name, as last read."""
        return self._read.tenants

    def caller(self, key: str) -> Tenant | None:
        """Whose key it is; None for nobody's."""
        key_id = key_id_of(key)
        entry = None if key_id is None else self._read.keys.get(key_id)
        if not fits(key, None if entry is None else entry.sha256) or entry is None:
            return None
        return self._read.tenants[entry.tenant]

    async def follow(self) -> None:
        """Read the file again whenever it changed, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Read the file if it is another one than the last; one that cannot be used is logged once."""
        try:
            stamp = _stamp_of(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            read = read_tenants(self._path)
        except BadInput as error:
            logger.error("%s; the tenants and keys read before hold on", error)
            return
        before, self._read = self._read, read
        _tell(before, read)


def _stamp_of(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _tell(before: TenantFile, now: TenantFile) -> None:
    logger.info(
        "tenants read anew: %d tenants, %d keys (%d new, %d revoked)",
        len(now.tenants),
        len(now.keys),
        len(now.keys.keys() - before.keys.keys()),
        len(before.keys.keys() - now.keys.keys()),
    )
