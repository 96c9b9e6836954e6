"""How is a good document made bad? A few bytes drawn by hypothesis say which example is taken and what is done to it.

One draw per case keeps a million cases affordable, and hypothesis still shrinks a case: fewer bytes are fewer changes.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st

DRAWS: Final = st.binary(min_size=2, max_size=26)
"""Two bytes choose example and way; each four after them are one change."""


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: Final[Sequence[Any]] = (
    *(None, True, False, 0, -1, 1, 2, 255, 65_536, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(10**400, 0.5, -0.0, 1e-300, 1e18, 1e300, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "0",
        "-1",
        "1e999",
        "nan",
        "²",
        "٣",
        "+1",
        "1_000",
        "\x00",
        "\n",
        "a\r\nb",
        "\ud800",
        "🙂",
        "é" * 40,
    ),
    *(
        "a" * 300,
        "a" * 5000,
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://[",
        "http://127.0.0.1:99999",
        "http://",
        "%00",
    ),
    *("run-1", "running", "llm", "http", "type", "{{7*7}}", "${HOME}", "[red]", "-", "null"),
    *(
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": None},
        {"a": {"b": {}}},
        [0] * 100,
        _nested(60),
        {"type": "x"},
        ["a", 1],
        [1.5, "b"],
    ),
)
TOKENS: Final[Sequence[bytes]] = (
    *(
        b"",
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\n",
        b"\r\n",
        b"\n\n",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"=",
        b"#",
    ),
    *(
        b"[[",
        b"]]",
        b"null",
        b"NaN",
        b"-1",
        b"0",
        b"1e999",
        b"9" * 40,
        b"data:",
        b"data: [DONE]\n\n",
        b": ping\n",
        b"true",
    ),
    *(
        b'"\\ud800"',
        b"\xef\xbb\xbf",
        b"\x1f\x8b",
        b"[" * 300,
        b"{" * 60,
        b'{"a":' * 200,
        b"inf",
        b"nan",
        b"1979-05-27",
        b'""',
    ),
    *(b"\xed\xa0\x80", b"a" * 2000, b" ", b"\t", b"-", b".", b"0x", b"event: x\n", b"e", b"\\", b"1_0"),
)


def changed(example: Any, draw: bytes) -> Any:
    """A copy of plain data with the changes that `draw` says (its first two bytes are not looked at)."""
    value = copy.deepcopy(example)
    for at in range(2, len(draw) - 3, 4):
        a, b, c, d = draw[at : at + 4]
        places = _places(value)
        if not places:
            return copy.deepcopy(HOSTILE[(c * 256 + d) % len(HOSTILE)])
        holder, key = places[(a * 256 + b) % len(places)]
        _change(holder, key, c, d, places)
    return value


def json_bytes(value: Any) -> bytes:
    """As JSON, with what JSON only nearly allows: NaN, lone surrogates, integers of any size."""
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def changed_bytes(raw: bytes, draw: bytes) -> bytes:
    """The bytes with the changes that `draw` says: insertions, deletions, repetitions, flips, a cut."""
    for at in range(2, len(draw) - 3, 4):
        a, b, c, d = draw[at : at + 4]
        place = (a * 256 + b) % (len(raw) + 1)
        match c % 6:
            case 0:
                raw = raw[:place] + TOKENS[d % len(TOKENS)] + raw[place:]
            case 1:
                raw = raw[:place] + raw[place + 1 + d % 40 :]
            case 2:
                raw = raw[: place + d] + raw[place:]
            case 3:
                raw = raw[:place] + bytes([d]) + raw[place + 1 :]
            case 4:
                raw = raw[:place]
            case _:
                token = TOKENS[d % len(TOKENS)]
                raw = raw[:place] + token + raw[place + len(token) :]
    return raw


def case(examples: Sequence[Any], draw: bytes) -> bytes:
    """A document, as JSON: three of four cases are changed as data, the fourth as bytes."""
    example = examples[draw[0] % len(examples)]
    if draw[1] % 4 < 3:
        return json_bytes(changed(example, draw))
    return changed_bytes(json_bytes(example), draw)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in plain data: the container and its key, in a fixed order."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 4000:
        holder = waiting.pop()
        keys: Any = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _change(holder: Any, key: Any, c: int, d: int, places: list[tuple[Any, Any]]) -> None:
    match c % 8:
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(HOSTILE[d % len(HOSTILE)])[:40]] = holder.pop(key)
        case 2:
            other, its_key = places[d % len(places)]
            holder[key] = copy.deepcopy(other[its_key])
        case 3:
            holder[key] = [holder[key]] * (1 + d % 3)
        case 4 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        case _:
            holder[key] = copy.deepcopy(HOSTILE[(c // 8 * 256 + d) % len(HOSTILE)])
