"""How does the emulated model turn text into token ids and back, exactly?

A byte-safe vocabulary without a file: ids 0 to 15 are special, 16 to 271 single bytes, then come runs of spaces, of
newlines and of punctuation, numbers of up to three digits, and pieces of up to six ASCII letters in three cases, with
or without the space before them. A piece's id is computed from its letters, so any list of ids decodes by itself, and
ids stay below 2**31. English text has about 3.4 characters per token; a character outside ASCII takes one id per
UTF-8 byte, so streams cut inside it.
"""

import re
import string
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

END: Final = 0
SYSTEM: Final = 1
USER: Final = 2
ASSISTANT: Final = 3
TOOL: Final = 4
TOOL_CALL: Final = 5
SPECIAL_TEXT: Final = {
    END: "<|end|>",
    SYSTEM: "<|system|>",
    USER: "<|user|>",
    ASSISTANT: "<|assistant|>",
    TOOL: "<|tool|>",
    TOOL_CALL: "<|tool_call|>",
}
_FIRST_BYTE: Final = 16
_FIRST_SPACES: Final = _FIRST_BYTE + 256
_MAX_SPACES: Final = 16
_FIRST_NEWLINES: Final = _FIRST_SPACES + _MAX_SPACES + 1
_MAX_NEWLINES: Final = 4
_FIRST_NUMBER: Final = _FIRST_NEWLINES + _MAX_NEWLINES + 1
_DIGIT_OFFSETS: Final = (0, 0, 10, 110)  # where numbers of 1, 2 and 3 digits begin
_FIRST_MARKS: Final = _FIRST_NUMBER + 1110
_PUNCTUATION: Final = string.punctuation.encode()
_MARKS: Final = 32**2 + 32**3  # runs of two and of three
_FIRST_WORD: Final = _FIRST_MARKS + _MARKS
_MAX_LETTERS: Final = 6
_LETTER_OFFSETS: Final = (0, 0, 26, 702, 18_278, 475_254, 12_356_630)  # where words of 1 to 6 letters begin
_WORDS: Final = _LETTER_OFFSETS[_MAX_LETTERS] + 26**6
_FORMS: Final = 6  # (lower, Capital, UPPER), each without and with a space before
VOCABULARY_SIZE: Final = _FIRST_WORD + _FORMS * _WORDS

_PIECE: Final = re.compile(
    rb" ?(?:[a-z]{1,6}|[A-Z]{2,6}|[A-Z][a-z]{0,5})|[0-9]{1,3}|[!-/:-@\[-`{-~]{2,3}| {1,16}|\n{1,4}|[\x00-\xff]",
    re.DOTALL,
)
_CACHE_LIMIT: Final = 200_000


class _Ids(dict[bytes, int]):
    """Piece → id, computed on first sight."""

    def __missing__(self, piece: bytes) -> int:
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        self[piece] = number = _piece_id(piece)
        return number


class _Pieces(dict[int, bytes]):
    """Id → piece, computed on first sight; special tokens are empty, unknown ids a replacement character."""

    def __missing__(self, number: int) -> bytes:
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        self[number] = piece = _piece(number)
        return piece


_ids = _Ids()
_pieces = _Pieces()


def encode(text: str) -> list[int]:
    """Token ids of `text`; never special ones. `decode(encode(text)) == text` for any text without lone surrogates."""
    lookup = _ids
    return [lookup[piece] for piece in _PIECE.findall(text.encode("utf-8", "replace"))]


def decode(ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
    if skip_special:
        lookup = _pieces
        return b"".join([lookup[number] for number in ids]).decode("utf-8", "replace")
    named = (SPECIAL_TEXT.get(number, "").encode() or _pieces[number] for number in ids)
    return b"".join(named).decode("utf-8", "replace")


class StreamDecoder:
    """Turns ids into text piece by piece, holding an incomplete character back until its last byte has come.

    Like vLLM's: the text is empty while a character is incomplete, and a character begun before the first id (in a
    replayed prompt) is lost.
    """

    __slots__ = ("_decoder", "_started")

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._started = False

    def feed(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete."""
        lookup = _pieces
        data = b"".join([lookup[number] for number in ids])
        if not self._started and data:
            kept = data.lstrip(_CONTINUATION_BYTES)
            self._started = bool(kept)
            data = kept
        return self._decoder.decode(data)


_CONTINUATION_BYTES: Final = bytes(range(0x80, 0xC0))


def block_keys(ids: Sequence[int], block_tokens: int, salt: str | None = None) -> list[int]:
    """One key per full block of `ids`, each hashing everything before it: equal keys mean equal prefixes.

    Keys are the same in every process: they hash integers only. `salt` keeps tenants' prefixes apart.
    """
    key = 0 if salt is None else hash(tuple(salt.encode()))
    keys = []
    source = iter(ids)
    for _ in range(len(ids) // block_tokens):
        key = hash((key, *islice(source, block_tokens)))
        keys.append(key)
    return keys


def is_token(value: object) -> bool:
    """Whether `value` is an id of the vocabulary."""
    return type(value) is int and 0 <= value < VOCABULARY_SIZE


def _piece_id(piece: bytes) -> int:
    size = len(piece)
    first = piece[0]
    if piece.isdigit():
        return _FIRST_NUMBER + _DIGIT_OFFSETS[size] + int(piece)
    letters = piece[1:] if first == 0x20 else piece
    if letters.isalpha() and first < 0x80:
        return _FIRST_WORD + _word_form(piece, letters) * _WORDS + _word_number(letters.lower())
    if first == 0x20 and size > 1:
        return _FIRST_SPACES + size
    if first == 0x0A and size > 1:
        return _FIRST_NEWLINES + size
    if size > 1:
        return _FIRST_MARKS + _marks_number(piece)
    return _FIRST_BYTE + first


def _marks_number(piece: bytes) -> int:
    number = 0
    for mark in piece:
        number = number * 32 + _PUNCTUATION.index(mark)
    return number if len(piece) == 2 else 32**2 + number


def _word_form(piece: bytes, letters: bytes) -> int:
    case = 0 if letters.islower() else 2 if len(letters) > 1 and letters.isupper() else 1
    return case * 2 + (piece is not letters)


def _word_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 97
    return _LETTER_OFFSETS[len(letters)] + number


def _piece(number: int) -> bytes:
    if number < _FIRST_BYTE:
        return b""
    if number < _FIRST_SPACES:
        return bytes((number - _FIRST_BYTE,))
    if number < _FIRST_NEWLINES:
        return b" " * (number - _FIRST_SPACES)
    if number < _FIRST_NUMBER:
        return b"\n" * (number - _FIRST_NEWLINES)
    if number < _FIRST_MARKS:
        size = 1 if number < _FIRST_NUMBER + 10 else 2 if number < _FIRST_NUMBER + 110 else 3
        return b"%0*d" % (size, number - _FIRST_NUMBER - _DIGIT_OFFSETS[size])
    if number < _FIRST_WORD:
        return _marks(number - _FIRST_MARKS)
    if number < VOCABULARY_SIZE:
        return _word(number - _FIRST_WORD)
    return "\ufffd".encode()


def _marks(number: int) -> bytes:
    size, number = (2, number) if number < 32**2 else (3, number - 32**2)
    return bytes(_PUNCTUATION[number >> 5 * place & 31] for place in reversed(range(size)))


def _word(number: int) -> bytes:
    form, number = divmod(number, _WORDS)
    size = next(n for n in range(_MAX_LETTERS, 0, -1) if number >= _LETTER_OFFSETS[n])
    number -= _LETTER_OFFSETS[size]
    letters = bytearray()
    for _ in range(size):
        number, letter = divmod(number, 26)
        letters.append(97 + letter)
    word = bytes(reversed(letters))
    word = (word, word.capitalize(), word.upper())[form // 2]
    return b" " + word if form % 2 else word
