"""What do the contract servers' tokens mean, and what does their "model" answer? A script, so that any slip shows.

Tokens are bytes, as in the vocabularies of real models: some hold a part of a character, some a space and such a part.
"""

END = 0
PIECES: dict[int, bytes] = dict(
    enumerate(
        [
            b"", b"the", b" caf", b"\xc3", b"\xa9", b", ", b"\xe4\xbd", b"\xa0", b" \xf0\x9f", b"\x98", b"\x80", b"!",
            "好".encode(), "们".encode(), "。".encode(), b" ok", b"WRONG",
        ]
    )
)  # fmt: skip
WRONG = 16
PROMPT = (1, 2, 5, 15)
OUTPUT = (
    1, 2, 3, 4, 5, 6, 7, 15, 8, 9, 10, 11, 15, 12, 13, 12, 13, 12, 13, 12, 13, 12, 13, 6, 7, 12, 14, 15, 8, 9, 10, 15,
)  # fmt: skip
"""the café, 你 ok 😀! ok, then Chinese without punctuation, and so on; 32 tokens."""


def text_of(ids) -> str:
    return b"".join(PIECES[one] for one in ids).decode("utf-8", "replace")


TEXT = text_of(OUTPUT)


def next_id(ids) -> int:
    """What follows: the script, as long as all that came before is exactly the script; END behind it."""
    ids = tuple(ids)
    done = ids[len(PROMPT) :]
    if ids[-1] == WRONG:
        return END
    if ids[: len(PROMPT)] != PROMPT or done != OUTPUT[: len(done)]:
        return WRONG
    return OUTPUT[len(done)] if len(done) < len(OUTPUT) else END


def tokenize(text: str) -> tuple[int, ...]:
    """The longest piece first, in bytes; ValueError for what no piece begins."""
    data, ids = text.encode(), []
    while data:
        fitting = [(len(piece), one) for one, piece in PIECES.items() if piece and data.startswith(piece)]
        if not fitting:
            raise ValueError(f"no token for {data[:4]!r}")
        size, one = max(fitting)
        ids.append(one)
        data = data[size:]
    return tuple(ids)
