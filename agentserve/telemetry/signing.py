"""Is this message from the worker it names? HMAC-SHA256 over topic and payload, by a key of that worker alone.

The gateway's secret makes each worker's key, so a worker that is taken over can speak for itself only, whatever the
broker lets it publish. The signature is a last line after the JSON; who knows no secret takes it off and does not look.
"""

import hashlib
import hmac
from typing import Final

_MARK: Final = b"\nsig="
_DIGEST_CHARS: Final = 64


def worker_key(secret: str, cluster: str, worker_id: str) -> str:
    """The key of one worker, made of the gateway's secret; hexadecimal."""
    return hmac.new(secret.encode(), f"worker/{cluster}/{worker_id}".encode(), hashlib.sha256).hexdigest()


def signed(payload: bytes, topic: str, key: str | None) -> bytes:
    """The payload with its signature; as it is without a key."""
    return payload if key is None else payload + _MARK + _digest(payload, topic, key)


def opened(message: bytes) -> tuple[bytes, bytes]:
    """A message's payload and its signature, which is empty if it has none."""
    at = len(message) - len(_MARK) - _DIGEST_CHARS
    if at >= 0 and message.startswith(_MARK, at):
        return message[:at], message[at + len(_MARK) :]
    return message, b""


def is_signed(payload: bytes, signature: bytes, topic: str, key: str) -> bool:
    """Whether the signature is that of this key, found in a time that tells nothing."""
    return hmac.compare_digest(_digest(payload, topic, key), signature)


def _digest(payload: bytes, topic: str, key: str) -> bytes:
    return hmac.new(key.encode(), topic.encode() + b"\0" + payload, hashlib.sha256).hexdigest().encode()
