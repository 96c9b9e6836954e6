"""Which profile serves a GPU and a model? The user's own ones first, then the shipped ones; a value, never changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.errors import BadProfile, UnknownProfile
from scheduler.profiles.loader import canonical_name, known_gpus, load_profile
from scheduler.profiles.own import OwnProfile, parse_profile, to_plain
from scheduler.profiles.profile import GpuProfile


@dataclass(frozen=True, slots=True)
class ProfileBook:
    """Looks profiles up by GPU and model, under their names or aliases; Scheduler takes it as its `profiles`."""

    own: tuple[OwnProfile, ...] = ()

    def __call__(self, gpu: str, model: str) -> GpuProfile:
        """The profile of `model` on `gpu`. Raises UnknownProfile naming the known ones."""
        for entry in self.own:
            if _same("gpu", entry.profile.gpu, gpu) and _serves(entry, model):
                return entry.profile
        try:
            return load_profile(gpu, model)
        except UnknownProfile as error:
            own = ", ".join(f"{entry.profile.gpu} × {entry.profile.model}" for entry in self.own)
            raise UnknownProfile(f"{error}; own profiles: {own}" if own else str(error)) from None

    def knows_gpu(self, gpu: str) -> bool:
        """Whether any model has a profile on it."""
        return canonical_name("gpu", gpu) in known_gpus() or any(_same("gpu", e.profile.gpu, gpu) for e in self.own)

    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs with a profile, the shipped ones first."""
        return tuple(dict.fromkeys((*known_gpus(), *(entry.profile.gpu for entry in self.own))))

    def to_plain(self) -> list[dict[str, Any]]:
        """The own profiles as JSON values, for an event log's header."""
        return [to_plain(entry) | {"source": entry.source} for entry in self.own]


def profile_book(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> ProfileBook:
    """A book of `(source, mapping)` pairs. Raises BadProfile: unsound, or two for the same GPU and model."""
    own: list[OwnProfile] = []
    for source, entry in entries:
        parsed = parse_profile(entry, source)
        for other in own:
            if _same("gpu", other.profile.gpu, parsed.profile.gpu) and _serves(other, parsed.profile.model):
                names = f"{parsed.profile.gpu} and {parsed.profile.model}"
                raise BadProfile(f"{source}: model: {other.source} is a profile of {names} already")
        own.append(parsed)
    return ProfileBook(tuple(own))


def book_from_plain(plain: Iterable[Mapping[str, Any]]) -> ProfileBook:
    """The book that `to_plain` wrote."""
    entries = [dict(entry) for entry in plain]
    return profile_book([(str(entry.pop("source", "log")), entry) for entry in entries])


def _serves(entry: OwnProfile, model: str) -> bool:
    return any(_same("model", name, model) for name in (entry.profile.model, *entry.aliases))


def _same(kind: str, one: str, other: str) -> bool:
    return canonical_name(kind, one) == canonical_name(kind, other)
