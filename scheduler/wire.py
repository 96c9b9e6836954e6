"""How do events and decisions look as plain JSON, and does a recorded log replay to the same decisions?

Every value is a dict with a `type` key and the dataclass's own field names; floats survive JSON exactly. A log is a
header line {"policy", "config", "seed"} (and "profiles", if users brought their own), and one line
{"now_s", "event", "decisions"} per handled event.
"""

import json
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

from scheduler import decisions, events
from scheduler.config import SchedulerConfig
from scheduler.decisions import Decision
from scheduler.errors import InvalidConfig, InvalidEvent
from scheduler.events import Event
from scheduler.profiles.book import ProfileBook, book_from_plain

_EVENTS: dict[str, type] = {kind.__name__: kind for kind in get_args(events.Event)}
_DECISIONS: dict[str, type] = {kind.__name__: kind for kind in get_args(decisions.Decision)}

_NAMES: dict[type, tuple[str, ...]] = {}
_HINTS: dict[type, dict[str, Any]] = {}


class _Handles(Protocol):
    def handle(self, event: Event, now_s: float) -> list[Decision]: ...


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first line of a log that did not replay: 1 is the line after the header."""

    line: int
    event: Mapping[str, Any]
    recorded: list[Any]
    replayed: list[Any]


def to_plain(value: Event | Decision) -> dict[str, Any]:
    """An event or decision as JSON values, with its kind under `type`."""
    plain: dict[str, Any] = {"type": type(value).__name__, **_plain(value)}
    return plain


def event_from_plain(plain: Mapping[str, Any]) -> Event:
    """The event that `to_plain` wrote; raises InvalidEvent naming the field that is wrong."""
    event: Event = _from_plain(plain, _EVENTS)
    return event


def decision_from_plain(plain: Mapping[str, Any]) -> Decision:
    """The decision that `to_plain` wrote; raises InvalidEvent naming the field that is wrong."""
    decision: Decision = _from_plain(plain, _DECISIONS)
    return decision


def config_to_plain(config: SchedulerConfig) -> dict[str, Any]:
    """A config as JSON values."""
    plain: dict[str, Any] = _plain(config)
    return plain


def config_from_plain(plain: Mapping[str, Any]) -> SchedulerConfig:
    """A config from JSON values; what is left out keeps its default. Raises InvalidConfig naming the field."""
    try:
        config: SchedulerConfig = _build(SchedulerConfig, plain, "config", partial=True)
    except InvalidEvent as error:
        raise InvalidConfig(str(error)) from None
    return config


def header(policy: str, config: SchedulerConfig, seed: int, profiles: ProfileBook | None = None) -> dict[str, Any]:
    """First line of a log; users' own profiles go into it, so that it replays without their files."""
    head = {"policy": policy, "config": config_to_plain(config), "seed": seed}
    return head | {"profiles": profiles.to_plain()} if profiles is not None and profiles.own else head


def record(event: Event, now_s: float, decided: Iterable[Decision]) -> dict[str, Any]:
    """One further line of a log."""
    return {"now_s": now_s, "event": to_plain(event), "decisions": [to_plain(decision) for decision in decided]}


def replay(lines: Iterable[str], make: Callable[..., _Handles]) -> Mismatch | None:
    """Feed a recorded log to a fresh scheduler, `make(policy, config, seed[, profiles])`.

    Returns the first line whose decisions differ, None if all agree.
    """
    rows = (json.loads(line) for line in lines if line.strip())
    head = next(rows, None)
    if not isinstance(head, dict) or not {"policy", "config", "seed"} <= head.keys():
        raise InvalidEvent("a log begins with a header of policy, config and seed")
    own = (book_from_plain(head["profiles"]),) if "profiles" in head else ()
    scheduler = make(head["policy"], config_from_plain(head["config"]), head["seed"], *own)
    for number, row in enumerate(rows, start=1):
        replayed = [to_plain(made) for made in scheduler.handle(event_from_plain(row["event"]), row["now_s"])]
        if replayed != row["decisions"] and replayed != _completed(row["decisions"]):
            return Mismatch(number, row["event"], row["decisions"], replayed)
    return None


def _completed(recorded: list[Any]) -> list[Any]:
    """Decisions as an older version wrote them, with the defaults of the fields that were added since."""
    return [to_plain(decision_from_plain(plain)) for plain in recorded]


def _field_names(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in fields(kind))
    return _NAMES[kind]


def _field_types(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {name: _plain(getattr(value, name)) for name in _field_names(type(value))}


def _from_plain(plain: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    if not isinstance(plain, Mapping) or plain.get("type") not in kinds:
        named = plain.get("type") if isinstance(plain, Mapping) else plain
        raise InvalidEvent(f"type is {named!r}; known are {', '.join(kinds)}")
    kind = kinds[plain["type"]]
    return _build(kind, {name: value for name, value in plain.items() if name != "type"}, kind.__name__)


def _build(kind: type, plain: Any, where: str, *, partial: bool = False) -> Any:
    """A dataclass from its plain form; every field must be known, and given unless it has a default."""
    if not isinstance(plain, Mapping):
        raise InvalidEvent(f"{where} is {plain!r}; expected an object")
    hints = _field_types(kind)
    unknown = sorted(set(plain) - set(hints))
    if unknown:
        raise InvalidEvent(f"{where} has no field {unknown[0]!r}")
    values = {name: _value(hints[name], plain[name], f"{where}.{name}", partial) for name in hints if name in plain}
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidEvent(f"{where}: {error}") from None


def _value(hint: Any, plain: Any, where: str, partial: bool) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in get_args(hint):
            return None
        (hint,) = [option for option in get_args(hint) if option is not type(None)]
        origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(plain, list | tuple):
            raise InvalidEvent(f"{where} is {plain!r}; expected a list")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]", partial) for i, item in enumerate(plain))
    if is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, plain, where, partial=partial)
    return _scalar(hint, plain, where)


def _scalar(hint: Any, plain: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(plain)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in hint)
            raise InvalidEvent(f"{where} is {plain!r}; allowed are {allowed}") from None
    accepted = (int, float) if hint is float else hint
    if not isinstance(plain, accepted) or (isinstance(plain, bool) and hint is not bool):
        raise InvalidEvent(f"{where} is {plain!r}; expected {hint.__name__}")
    return plain
