"""Which run and step does a call belong to, and by when must the run end? Reads and checks the request's headers."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from agentserve import headers
from agentserve.gateway.errors import BadParameter

MAX_ID_CHARS: Final = 128
MAX_PARENTS: Final = 256
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@~-]{0,127}")
_ID: Final = re.compile(r"[!-+\--~]{1,128}")  # visible ASCII; the comma separates parents
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallIdentity:
    """What a call says of itself; None where it says nothing. `slo_s` relative, `deadline_s` Unix seconds."""

    run_id: str | None = None
    step_id: str | None = None
    node: str | None = None
    workflow: str | None = None
    parents: tuple[str, ...] = ()
    slo_s: float | None = None
    deadline_s: float | None = None
    request_id: str | None = None
    session_id: str | None = None
    traceparent: str | None = None


def read_identity(given: Mapping[str, str], max_slo_s: float, now_s: float) -> CallIdentity:
    """The identity that a request's headers declare; BadParameter names the header and what it may be."""
    parents = given.get(headers.PARENTS) or ""
    names = tuple(name.strip() for name in parents.split(",") if name.strip())
    if len(names) > MAX_PARENTS:
        raise BadParameter(headers.PARENTS, f"{len(names)} parents are given, {MAX_PARENTS} are allowed")
    deadline = given.get(headers.DEADLINE)
    slo = given.get(headers.SLO_S)
    return CallIdentity(
        run_id=_optional(given, headers.RUN_ID, check_run_id),
        step_id=_optional(given, headers.STEP_ID, check_id),
        node=_optional(given, headers.NODE, _header_name),
        workflow=_optional(given, headers.WORKFLOW, _header_name),
        parents=tuple(check_id(headers.PARENTS, name) for name in names),
        slo_s=None if slo is None else check_slo(headers.SLO_S, slo, max_slo_s),
        deadline_s=None if deadline is None else check_deadline(headers.DEADLINE, deadline, max_slo_s, now_s),
        request_id=_optional(given, headers.REQUEST_ID, check_id),
        session_id=_session(given),
        traceparent=given.get("traceparent"),
    )


def check_run_id(param: str, value: object) -> str:
    """A run id: letters, digits and `_.:@~-`, at most 128 characters."""
    if not isinstance(value, str) or _RUN_ID.fullmatch(value) is None:
        raise BadParameter(param, f"must be 1 to {MAX_ID_CHARS} letters, digits or _.:@~- beginning with one of those")
    return value


def check_id(param: str, value: object) -> str:
    """A step or request id: visible ASCII without comma, at most 128 characters."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise BadParameter(param, f"must be 1 to {MAX_ID_CHARS} visible ASCII characters without comma or space")
    return value


def check_name(param: str, value: object) -> str:
    """A node's or workflow's name: any text without control characters, at most 128 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or _CONTROL.search(value):
        raise BadParameter(param, f"must be 1 to {MAX_ID_CHARS} characters without control characters")
    return value


def check_number(param: str, value: object) -> float:
    """A finite number, given as a number or as its text."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadParameter(param, "must be a finite number of seconds")
    return number


def check_slo(param: str, value: object, max_slo_s: float) -> float:
    """A relative SLO in seconds: positive and at most `max_slo_s`."""
    slo_s = check_number(param, value)
    if not 0 < slo_s <= max_slo_s:
        raise BadParameter(param, f"must be more than 0 and at most {max_slo_s:g} seconds, not {slo_s:g}")
    return slo_s


def check_deadline(param: str, value: object, max_slo_s: float, now_s: float) -> float:
    """An absolute deadline in Unix seconds, at most `max_slo_s` from now. A past one is judged where a run is made."""
    deadline_s = check_number(param, value)
    if deadline_s - now_s > max_slo_s:
        raise BadParameter(param, f"must be at most {max_slo_s:g} seconds from now")
    return deadline_s


def _header_name(param: str, value: str) -> str:
    return check_name(param, unquote(value))


def _optional(given: Mapping[str, str], name: str, check: Callable[[str, str], str]) -> str | None:
    value = given.get(name)
    return None if value is None else check(name, value)


def _session(given: Mapping[str, str]) -> str | None:
    for name in (headers.SESSION_ID, *headers.SESSION_ALIASES):
        if value := given.get(name):
            return check_id(name, value)
    return None
