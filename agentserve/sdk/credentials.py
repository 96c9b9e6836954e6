"""Which API key goes to the gateway? $AGENTSERVE_API_KEY, else the file of that name in $AGENTSERVE_SECRETS_DIR.

It goes into a header, and nowhere else: no URL, log or error holds it.
"""

import os
from pathlib import Path
from typing import Final

from agentserve.errors import BadInput

VARIABLE: Final = "AGENTSERVE_API_KEY"
OUR_KEYS: Final = "Bearer ask_"
"""How a header with one of the gateway's keys begins."""
_MAX_KEY_CHARS: Final = 256


def api_key() -> str | None:
    """The key; None without one. BadInput, which does not repeat it, for what cannot be in a header."""
    text = os.environ.get(VARIABLE) or _from_file()
    if not text:
        return None
    if len(text) > _MAX_KEY_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        raise BadInput(f"{VARIABLE}: not an API key")
    return text


def authorization(key: str | None = None) -> dict[str, str]:
    """The header that carries the key given, else the one of the environment; empty without one."""
    found = key or api_key()
    return {} if found is None else {"authorization": f"Bearer {found}"}


def _from_file() -> str | None:
    folder = os.environ.get("AGENTSERVE_SECRETS_DIR")
    if not folder:
        return None
    try:
        return (Path(folder) / VARIABLE.lower()).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{VARIABLE}: its file cannot be read ({error.strerror})") from None
