"""Is this request for the gateway? Compares scheme, host and port, with all names of the loopback as one."""

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from agentserve.errors import BadInput

DEFAULT_GATEWAY: Final = "http://127.0.0.1:8080"
_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens."""

    scheme: str
    host: str
    port: int

    def covers(self, scheme: str, host: str, port: int | None) -> bool:
        """Whether a URL with these parts is served here."""
        return self == _origin(scheme, host, port)


def gateway_url(given: str | None = None) -> str:
    """The gateway's base URL: the one given, else $AGENTSERVE_GATEWAY, else the local default. Without a last slash.

    Raises BadInput if it is not an http(s) URL.
    """
    source = "gateway" if given is not None else "AGENTSERVE_GATEWAY"
    url = (given if given is not None else os.environ.get("AGENTSERVE_GATEWAY") or DEFAULT_GATEWAY).rstrip("/")
    url = url.removesuffix("/v1")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(f"{source}={url!r} is not an http:// or https:// URL")
    return url


def origin_of(url: str) -> Origin:
    """The origin of an absolute http(s) URL."""
    parts = urlsplit(url)
    return _origin(parts.scheme, parts.hostname or "", parts.port)


def _origin(scheme: str, host: str, port: int | None) -> Origin:
    host = host.lower().strip("[]")
    return Origin(scheme, "127.0.0.1" if host in _LOOPBACK else host, port or _PORTS.get(scheme, 0))
