"""Which GPUs does the local cluster emulate? The fleet file, read and checked."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentserve.errors import BadInput
from agentserve.profile_files import read_profiles
from scheduler.errors import UnknownProfile
from scheduler.events import Role

MAX_FILE_BYTES: Final = 256 * 1024
MAX_WORKERS: Final = 64


class Group(BaseModel):
    """Workers of one kind. What is left out comes from the GPU's profile or the engine's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str
    count: int = Field(default=1, ge=1, le=MAX_WORKERS)
    role: Role = Role.MIXED
    max_num_seqs: int = Field(default=256, ge=1)
    max_batched_tokens: int = Field(default=8192, ge=16)
    kv_capacity_tokens: int | None = Field(default=None, gt=0)
    kv_link_bytes_per_s: float | None = Field(default=None, gt=0)


class Fleet(BaseModel):
    """A pool of emulated workers that serve one model.

    `speed`: every emulated GPU runs that many times faster than its profile, so that a demonstration need not take
    the time of the real thing. `stream_interval`: tokens per streamed chunk (vLLM's option of that name).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    speed: float = Field(default=1.0, gt=0, le=1000)
    stream_interval: int = Field(default=1, ge=1, le=1000)
    profiles: tuple[Path, ...] = ()
    """Files of users' own GPU profiles; in a fleet file relative to it."""
    workers: Annotated[tuple[Group, ...], Field(min_length=1)]

    def named(self) -> list[tuple[str, Group]]:
        """Each worker's name (`a100-80g-1`, `a100-80g-2`, `h100-1`, …) with its group, in the file's order."""
        counts: dict[str, int] = {}
        result = []
        for group in self.workers:
            for _ in range(group.count):
                counts[group.gpu] = counts.get(group.gpu, 0) + 1
                result.append((f"{group.gpu}-{counts[group.gpu]}", group))
        return result


def check_profiles(fleet: Fleet) -> None:
    """Raise BadInput for a bad profile file, UnknownProfile for a GPU that no profile is of."""
    book = read_profiles(fleet.profiles)
    for group in fleet.workers:
        book(group.gpu, fleet.model)


def default_fleet(*, speed: float = 1.0, stream_interval: int = 1) -> Fleet:
    """Two A100, an H100 and an H200 that serve Llama-3.1-8B."""
    return Fleet(
        model="llama-3.1-8b",
        speed=speed,
        stream_interval=stream_interval,
        workers=(Group(gpu="a100-80g", count=2), Group(gpu="h100"), Group(gpu="h200")),
    )


def read_fleet(path: Path, profiles: Sequence[Path] = ()) -> Fleet:
    """Read a fleet file (TOML), with `profiles` besides its own. BadInput names the file, the key and why."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"fleet file {path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"fleet file {path}: {len(raw):,} bytes, at most {MAX_FILE_BYTES:,} are read")
    try:
        fleet = Fleet.model_validate(tomllib.loads(raw.decode()))
        fleet = fleet.model_copy(update={"profiles": (*(path.parent / own for own in fleet.profiles), *profiles)})
        check_profiles(fleet)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"fleet file {path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"fleet file {path}: {where}: {first['msg']} (given: {first.get('input')!r})") from None
    except UnknownProfile as error:
        raise BadInput(f"fleet file {path}: {error}") from None
    if len(fleet.named()) > MAX_WORKERS:
        raise BadInput(f"fleet file {path}: {len(fleet.named())} workers, at most {MAX_WORKERS} fit a local cluster")
    return fleet
