"""What does a Redis URL say? Where the server is, without its password, and how its certificate is checked."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from agentserve.errors import BadInput

_SCHEMES: Final = ("redis", "rediss", "unix")


def address_of(url: str) -> str:
    """The part of a Redis URL that may be shown: host and port, or the socket's path; BadInput for another URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad_redis_url() from None
    if parts.scheme not in _SCHEMES or (parts.scheme == "unix" and not parts.path):
        raise bad_redis_url()
    return parts.path if parts.scheme == "unix" else f"{host or 'localhost'}:{port or 6379}"


def tls_options(ca_file: Path | None) -> dict[str, Any]:
    """What a client of a rediss:// server is given: certificate and name are checked, against `ca_file` if named."""
    if ca_file is not None and not ca_file.is_file():
        raise BadInput(f"AGENTSERVE_REDIS_CA_FILE={str(ca_file)!r}: no such file")
    checked = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return checked if ca_file is None else {**checked, "ssl_ca_certs": str(ca_file)}


def bad_redis_url() -> BadInput:
    """The error for a URL of another form."""
    # The URL itself is not repeated: it may hold a password.
    return BadInput(
        "the Redis URL (AGENTSERVE_REDIS_URL) must look like redis://host:6379/0, rediss://… or unix:///path"
    )
