"""How is the file of tenants read and changed? TOML: people write its tenants, `agentserve keys` its keys.

    [tenants.research]
    weight = 2.0
    rate_per_s = 20

    [[keys]]                        # written by `agentserve keys new research`
    id = "3f9c2a10"
    tenant = "research"
    sha256 = "…"
    made_at = 2026-01-31T12:00:00Z

A change replaces the whole file at once, so that nobody reads half of it, and leaves comments and order as they were.
"""

import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentserve.errors import BadInput, NotFound
from agentserve.tenants.keys import NewKey, new_key
from agentserve.tenants.tenant import Tenant, TenantName

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

MAX_FILE_BYTES: Final = 4 * 2**20
MAX_KEYS: Final = 10_000
MAX_TENANTS: Final = 1_000
_SHOWN_ERRORS: Final = 3


class KeyEntry(BaseModel):
    """One key, by its hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    tenant: TenantName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    made_at: datetime | None = None


class _Contents(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: Annotated[dict[TenantName, dict[str, Any]], Field(max_length=MAX_TENANTS)] = Field(default_factory=dict)
    keys: Annotated[tuple[KeyEntry, ...], Field(max_length=MAX_KEYS)] = ()

    @model_validator(mode="after")
    def _keys_belong_to_tenants(self) -> Self:
        seen: set[str] = set()
        for key in self.keys:
            if key.tenant not in self.tenants:
                raise ValueError(
                    f"key {key.id} is of tenant {key.tenant!r}, of whom there is no [tenants.{key.tenant}]"
                )
            if key.id in seen:
                raise ValueError(f"two keys have the id {key.id}")
            seen.add(key.id)
        return self


@dataclass(frozen=True, slots=True)
class TenantFile:
    """Tenants by name and keys by id."""

    tenants: Mapping[str, Tenant]
    keys: Mapping[str, KeyEntry]


def read_tenants(path: Path) -> TenantFile:
    """What the file says. Raises BadInput naming the file and the key that is wrong; never shows a hash."""
    text = _read(path)
    try:
        contents = _Contents.model_validate(tomllib.loads(text))
        tenants = {name: Tenant.model_validate({"name": name, **table}) for name, table in contents.tenants.items()}
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"tenants file {path}: not TOML: {error}") from None
    except ValidationError as error:
        told = "; ".join(_told(details) for details in error.errors()[:_SHOWN_ERRORS])
        raise BadInput(f"tenants file {path}: {told}") from None
    return TenantFile(tenants, {key.id: key for key in contents.keys})


def add_key(path: Path, tenant: str, *, admin: bool = False) -> NewKey:
    """Make a key of a tenant, who is added with a table of defaults if new; the file is made if there is none.

    Raises BadInput for a name that is none, and for `admin` of a tenant who exists without it.
    """
    import tomlkit

    made = new_key()
    with _changing(path) as document:
        tenants = document.setdefault("tenants", tomlkit.table(is_super_table=True))
        if tenant not in tenants:
            table = tomlkit.table()
            if admin:
                table["admin"] = True
            tenants[tenant] = table
        elif admin and tenants[tenant].get("admin") is not True:
            raise BadInput(f"tenant {tenant!r} exists and is no admin: set `admin = true` in {path}")
        entry = tomlkit.table()
        entry.update(
            {
                "id": made.key_id,
                "tenant": tenant,
                "sha256": made.sha256,
                "made_at": datetime.now(UTC).replace(microsecond=0),
            }
        )
        document.setdefault("keys", tomlkit.aot()).append(entry)
    return made


def revoke_key(path: Path, key_id: str) -> str:
    """Take a key out; whose it was. NotFound if there is none of that id."""
    with _changing(path) as document:
        keys = document.get("keys", [])
        for position, entry in enumerate(keys):
            if entry["id"] == key_id:
                tenant = str(entry["tenant"])
                del keys[position]
                return tenant
        raise NotFound(f"{path} has no key {key_id!r}")


@contextmanager
def _changing(path: Path) -> Iterator["TOMLDocument"]:
    """The file as a document to change; written back as one whole, if it is sound then. One writer at a time."""
    import fcntl

    import tomlkit

    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        document = tomlkit.parse(_read(path)) if path.exists() else tomlkit.document()
        yield document
        _replace(path, tomlkit.dumps(document))
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    made = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        read_tenants(made)  # what the gateway would refuse is not put in place
        if path.exists():
            known = path.stat()
            made.chmod(known.st_mode & 0o777)
            if (known.st_uid, known.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
                os.chown(made, known.st_uid, known.st_gid)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"tenants file {path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadInput(f"tenants file {path}: {len(content):,} bytes, at most {MAX_FILE_BYTES:,} are read")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"tenants file {path}: not UTF-8: {error.reason}") from None


def _told(details: Any) -> str:
    where = ".".join(str(part) for part in details["loc"]) or "the file"
    return f"{where}: {details['msg'].removeprefix('Value error, ')}"
