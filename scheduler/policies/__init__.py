"""Which rules can place calls? Every module in this folder is one, under its own name; a policy needs no other entry.

A module has a class `POLICY` with a default constructor. What can be set of it is either the fields of that class (a
frozen dataclass) or, for policies that are also served live, the section of that name in `SchedulerConfig`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from scheduler.config import SchedulerConfig
from scheduler.errors import InvalidConfig, UnknownPolicy

if TYPE_CHECKING:
    from scheduler.policy import Policy


@cache
def policy_names() -> tuple[str, ...]:
    """Names that `scheduler.core.make_scheduler` takes, sorted."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def policy_parameters(name: str) -> dict[str, Any]:
    """What can be set of a policy, with the defaults. Raises UnknownPolicy."""
    return {one.name: _default(one) for one in fields(_settable(name))}


def make_policy(name: str, params: Mapping[str, Any] | None = None) -> "Policy":
    """The policy of that name; raises UnknownPolicy or InvalidConfig, naming what is known."""
    return configured(name, SchedulerConfig(), params)[0]


def configured(
    name: str, config: SchedulerConfig, params: Mapping[str, Any] | None = None
) -> tuple["Policy", SchedulerConfig]:
    """The policy with `params` set, and the configuration that goes with it. Raises UnknownPolicy or InvalidConfig."""
    made: Any = _class(name)
    given = dict(params or {})
    known = policy_parameters(name)
    for key, value in given.items():
        if key not in known:
            allowed = f"known are {', '.join(known)}" if known else "it has none"
            raise InvalidConfig(f"policy {name}: unknown parameter {key!r}; {allowed}")
        if not _is_like(value, known[key]):
            raise InvalidConfig(f"policy {name}: {key} is {value!r}; expected a {type(known[key]).__name__}")
    has_fields: bool = is_dataclass(made)
    if has_fields:
        return made(**given), config
    if given:
        config = replace(config, **{name: replace(getattr(config, name), **given)})
    return made(), config


def _settable(name: str) -> Any:
    made = _class(name)
    section = getattr(SchedulerConfig(), name, None)
    if is_dataclass(made):
        return made
    return type(section) if section is not None else _Nothing


def _class(name: str) -> Any:
    if name not in policy_names():
        raise UnknownPolicy(f"unknown policy {name!r}; known are {', '.join(policy_names())}")
    return import_module(f"{__name__}.{name}").POLICY


def _default(one: Any) -> Any:
    return one.default if one.default is not MISSING else one.default_factory()


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))


@dataclass(frozen=True)
class _Nothing:
    """What a policy without parameters has."""
