"""What is an API key, and what is kept of it? Its id, and the SHA-256 of the whole.

A key holds 256 random bits, so a fast hash is right: nobody can try them all, whatever a try costs, and no two keys
share a hash that could be looked up in a table. A slow hash (Argon2, scrypt) makes guessing dear where people choose
the secret; here it would only add milliseconds to every call, or call for a cache of keys in the clear.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

_SHAPE: Final = re.compile(r"ask_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NOBODY_S_DIGEST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: `text` is shown once and kept nowhere."""

    key_id: str
    text: str
    sha256: str


def new_key() -> NewKey:
    """`ask_<id>_<secret>`: the id is for people and lists, the prefix for scanners that look for leaked secrets."""
    key_id = secrets.token_hex(4)
    text = f"ask_{key_id}_{secrets.token_urlsafe(32)}"
    return NewKey(key_id, text, digest(text))


def digest(text: str) -> str:
    """What is kept of a key: SHA-256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_id_of(text: str) -> str | None:
    """The id that a key names; None for what has not the shape of a key."""
    found = _SHAPE.fullmatch(text)
    return None if found is None else found[1]


def fits(text: str, kept: str | None) -> bool:
    """Whether a key is the one of which this digest is kept, in a time that tells nothing; None: there is none."""
    return hmac.compare_digest(digest(text), kept or _NOBODY_S_DIGEST) and kept is not None
