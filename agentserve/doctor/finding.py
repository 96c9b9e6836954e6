"""What did a check find, and what is to be done about it? One line each."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import httpx

from agentserve.workers.asking import why

_MAX_CHARS: Final = 300


class Verdict(StrEnum):
    """PROBLEM: calls are or will be harmed; WARNING: it works, but not as well as it could, or not for ever."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one part. `fix`: what to do, where the verdict is not OK."""

    part: str
    check: str
    verdict: Verdict
    found: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Makes the findings of one part; texts are cut to a line of 300 characters."""

    name: str

    def ok(self, check: str, found: str) -> Finding:
        """As it should be."""
        return Finding(self.name, check, Verdict.OK, _line(found))

    def warning(self, check: str, found: str, fix: str) -> Finding:
        """It works, but not as well as it could, or not for ever."""
        return Finding(self.name, check, Verdict.WARNING, _line(found), fix)

    def problem(self, check: str, found: str, fix: str) -> Finding:
        """Calls are or will be harmed."""
        return Finding(self.name, check, Verdict.PROBLEM, _line(found), fix)


def reason(error: httpx.HTTPError | httpx.InvalidURL | TimeoutError) -> str:
    """Why an exchange came to nothing, in words."""
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return "no answer in time"
        case httpx.InvalidURL():
            return "this is no URL"
    return why(error)


def shown_url(url: str) -> str:
    """A URL without what may be a login."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _line(text: str) -> str:
    return " ".join(text.split())[:_MAX_CHARS]
