"""How does the SDK reach Redis? One client for each process and server, its keys, and every failure as Unavailable.

Only durable runs use it: their checkpoints and records lie beside the gateway's keys, under the same cluster's name.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agentserve.errors import BadInput, Conflict, Unavailable
from agentserve.redis_url import address_of, bad_redis_url, tls_options


class NotDriver(Conflict):
    """Another process drives the run now; this one must leave it alone."""

    code = "not_driver"


Value = str | bytes | int | float

DEFAULT_REDIS: Final = "redis://127.0.0.1:6379/0"
FENCED: Final = "FENCED"
"""What a script answers a process that no longer drives the run."""
_CLUSTER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DEFAULT_TTL_S: Final = 86_400
_RETRIES: Final = 12
"""With waits of 0.05 s doubling to 1 s: about ten seconds of a Redis that restarts."""


class RedisLink:
    """A client of the server at `url`; thread-safe. Keys begin with `agentserve:{cluster}:`."""

    def __init__(self, url: str, cluster: str, ttl_s: int = _DEFAULT_TTL_S, *, ca_file: Path | None = None) -> None:
        """`ttl_s`: what is kept goes so long after its last change. BadInput for another URL or name.

        `ca_file`: certificates that sign a rediss:// server's, which is checked in any case, its name too.
        """
        if _CLUSTER.fullmatch(cluster) is None:
            raise BadInput(f"AGENTSERVE_CLUSTER={cluster!r}: letters, digits and _.- only, at most 64")
        from redis import Redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        self.address = address_of(url)
        self.prefix = f"agentserve:{{{cluster}}}"
        self.ttl_s = ttl_s
        try:
            self._redis: Any = Redis.from_url(
                url,
                retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), _RETRIES),
                socket_timeout=5.0,
                **({} if url.startswith("unix:") else {"socket_connect_timeout": 1.0}),
                **(tls_options(ca_file) if url.startswith("rediss:") else {}),
            )
        except ValueError:
            raise bad_redis_url() from None
        self._scripts: dict[str, Any] = {}

    def command(self, *arguments: Value) -> Any:
        """Run one command that is safe to send twice; text comes back as bytes."""
        with self._translated():
            return self._redis.execute_command(*arguments)

    def pipeline(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """Run several in one round trip; their answers."""
        with self._translated(), self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute())

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Value]) -> Any:
        """Run a Lua script; NotDriver if it says that another process drives the run."""
        with self._translated():
            known = self._scripts.get(script)
            if known is None:
                known = self._scripts[script] = self._redis.register_script(script)
            return known(keys=list(keys), args=list(arguments))

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from redis import exceptions

        try:
            yield
        except exceptions.ResponseError as error:
            if FENCED in str(error):
                raise NotDriver("another process drives this run now") from None
            raise Unavailable(f"Redis at {self.address} refused a command ({type(error).__name__})") from None
        except (exceptions.RedisError, OSError) as error:
            raise Unavailable(f"Redis at {self.address}: {type(error).__name__}") from None


def link_from_environment(url: str | None = None, environ: Mapping[str, str] = os.environ) -> RedisLink:
    """The server named by `url`, else by AGENTSERVE_REDIS_URL, with the gateway's own cluster and time to live."""
    ttl = environ.get("AGENTSERVE_RUN_TTL_S") or str(_DEFAULT_TTL_S)
    if not ttl.isascii() or not ttl.isdigit() or not 0 < int(ttl) < 2**31:
        raise BadInput(f"AGENTSERVE_RUN_TTL_S={ttl!r}: give a positive number of seconds")
    given = url or environ.get("AGENTSERVE_REDIS_URL") or DEFAULT_REDIS
    cluster = environ.get("AGENTSERVE_CLUSTER") or "default"
    ca_file = environ.get("AGENTSERVE_REDIS_CA_FILE")
    return RedisLink(given, cluster, int(ttl), ca_file=Path(ca_file) if ca_file else None)
