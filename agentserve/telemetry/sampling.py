"""Which runs' spans are sent? Every late or failed one; of the rest a share that the trace id alone decides.

The caller's word comes first: a `traceparent` that is sampled has the run sent whatever the share, one that is not has
it sent only if it is late or failed. Otherwise the last 56 bits of the trace id are compared with a threshold, the rule
of OpenTelemetry's probability sampling, so that every gateway, and a collector with that rule, decides the same.
"""

import hashlib
import re
from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags

from agentserve.telemetry.story import RunStory

_TRACEPARENT: Final = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_RANDOM: Final = 2**56 - 1


def parse_traceparent(header: str | None) -> SpanContext | None:
    """The W3C header as a remote span context; None if there is none or it is not valid."""
    match = _TRACEPARENT.match(header) if isinstance(header, str) else None
    if match is None:
        return None
    flags = TraceFlags(int(match[3], 16))
    context = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
    return context if context.is_valid else None


def trace_id_of(run_id: str, traceparent: str | None = None) -> int:
    """The trace of a run: the client's, if its `traceparent` is valid, else one derived from the run id."""
    given = parse_traceparent(traceparent)
    return given.trace_id if given is not None else derived_id(16, "run", run_id)


def derived_id(size: int, *parts: str) -> int:
    """A non-zero id of `size` bytes that only `parts` decide."""
    text = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest()) or 1


def is_sent_at_once(parent: SpanContext | None, trace_id: int, share: float) -> bool:
    """Whether a run's spans are sent however it ends; else its end decides (`is_sent_in_the_end`)."""
    if parent is not None:
        return parent.trace_flags.sampled
    return trace_id & _RANDOM >= round((1.0 - share) * (_RANDOM + 1))


def is_sent_in_the_end(run: RunStory) -> bool:
    """Whether a run that has ended missed its SLO, or failed."""
    return run.attained is False or run.status == "failed"
