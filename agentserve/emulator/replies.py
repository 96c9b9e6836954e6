"""What does the emulated model answer? A function of the prompt alone, so that any emulator goes on where one stopped.

The prompt is what stands before the last `<|assistant|>` id; the ids after it are the reply so far. In this order:
1. a directive in the last user text: `[[reply tokens=217]]` gives exactly 217 generated tokens;
2. the first rule of the script that fits;
3. generated words, of a length drawn from a hash of the prompt.
"""

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

from agentserve.emulator.tokens import ASSISTANT, END, SPECIAL_TEXT, TOOL_CALL, USER, decode, encode
from agentserve.errors import BadInput

MAX_SCRIPT_BYTES: Final = 64 * 2**20
MAX_DIRECTIVE_TOKENS: Final = 1_000_000
_DIRECTIVE: Final = re.compile(r"\[\[reply tokens=(\d{1,7})\]\]")
_REFERENCE: Final = re.compile(r"\$(?:\$|([1-9])(?!\d)|(last|user)\b)")
_WORDS: Final = """
    the a of and to in for with on by from that this step plan result search value query table join order test
    check error trace model agent graph node edge state time queue batch cache token text code file line call
    tool data index count total mean case rule note fact goal task run next then first last each every when
    where which while until after before above below within about into onto over under per as is are was be has
    have can may must should could would will do does did make take give find keep show read write open close
    start stop move
"""
_RARE: Final = ("café", "naïve", "Zürich", "→", "日本", "🙂", "µs")
_FILLER_TOKENS: Final = 64
_GENERATED_MEDIAN: Final = 120
_GENERATED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a script: when it fits, and what is answered then."""

    match: re.Pattern[str]
    on: Literal["user", "last", "conversation"]
    when_contains: tuple[str, ...]
    reply: str
    tool_calls: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole reply from its first token, and how many of its tokens the prompt already holds."""

    ids: Sequence[int]
    given: int


class Model:
    """The emulated model: `reply(prompt_ids)` is the same in every process with the same script and seed."""

    def __init__(self, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self._rules = tuple(rules)
        self._seed = seed

    def reply(self, prompt_ids: Sequence[int], minimum: int = 0) -> Reply:
        """What follows `prompt_ids`, which must hold an `<|assistant|>` id.

        A reply that is shorter goes on with generated words until `minimum` tokens follow the prompt (a client that
        ignores the end). Without a minimum at least one token follows: the end mark, where all was given.
        """
        marker = len(prompt_ids) - 1 - list(reversed(prompt_ids)).index(ASSISTANT)
        given = len(prompt_ids) - marker - 1
        context = prompt_ids[:marker]
        ids = self._whole_reply(context)
        if minimum and len(ids) < given + minimum:
            ids = [*ids, *self._filler(context, given + minimum - len(ids))]
        if len(ids) <= given:
            ids = [*ids, *[END] * (given + 1 - len(ids))]
        return Reply(ids, given)

    def _filler(self, context: Sequence[int], count: int) -> list[int]:
        """The first `count` tokens of an endless text that depends on the context only."""
        seed, ids = self._hash(context), list[int]()
        while len(ids) < count:
            ids += _generate(Random(seed + 1 + len(ids)), _FILLER_TOKENS)  # noqa: S311  # repeatable, not secret
        return ids[:count]

    def _whole_reply(self, context: Sequence[int]) -> list[int]:
        user, last = _last_texts(context)
        directive = _DIRECTIVE.search(user)
        random = Random(self._hash(context))  # noqa: S311  # repeatable, not secret
        if directive:
            return _generate(random, max(1, min(int(directive[1]), MAX_DIRECTIVE_TOKENS)))
        if self._rules:
            conversation = decode(context, skip_special=False)
            for rule in self._rules:
                ids = _answer(rule, user, last, conversation)
                if ids:
                    return ids
        length = int(random.lognormvariate(0.0, 0.7) * _GENERATED_MEDIAN)
        return _generate(random, max(8, min(length, _GENERATED_MAX)))

    def _hash(self, context: Sequence[int]) -> int:
        data = array("q", context).tobytes()
        return int.from_bytes(blake2b(data, digest_size=8, salt=self._seed.to_bytes(8, "little", signed=True)).digest())


def load_script(path: Path) -> list[Rule]:
    """Rules of a JSONL script. Raises BadInput naming the file and line.

    A line: `match` (regex, found anywhere), `on` ("user": last user text, the default; "last": last message of any
    role; "conversation": all of it, with role marks), `when_contains` (a text or a list, all of which the conversation
    must contain), `reply` and/or `tool_calls` ([{"name", "arguments"}]). In replies `$1` to `$9` are its groups,
    `$last` the last message's text, `$user` the last user text, `$$` a dollar sign; other `$` stay.
    """
    try:
        if path.stat().st_size > MAX_SCRIPT_BYTES:
            raise BadInput(f"script {str(path)!r} is larger than {MAX_SCRIPT_BYTES} bytes")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"script {str(path)!r} cannot be read: {error}") from None
    rules = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rules.append(_parse_rule(json.loads(line)))
            except (ValueError, TypeError, re.error) as error:
                raise BadInput(f"script {str(path)!r}, line {number}: {error}") from None
    return rules


def _parse_rule(entry: Any) -> Rule:
    if not isinstance(entry, dict):
        raise TypeError("a rule is a JSON object")
    unknown = set(entry) - {"match", "on", "when_contains", "reply", "tool_calls", "comment"}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    reply, calls, on = entry.get("reply", ""), entry.get("tool_calls", []), entry.get("on", "user")
    contains = entry.get("when_contains", [])
    contains = [contains] if isinstance(contains, str) else contains
    if not isinstance(entry.get("match"), str) or not isinstance(reply, str):
        raise TypeError("'match' and 'reply' are texts")
    if on not in ("user", "last", "conversation"):
        raise ValueError(f"'on' is {on!r}; known: user, last, conversation")
    if not isinstance(contains, list) or not all(isinstance(part, str) for part in contains):
        raise TypeError("'when_contains' is a text or a list of texts")
    if not isinstance(calls, list) or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise TypeError("'tool_calls' is a list of objects with a 'name'")
    if not reply and not calls:
        raise ValueError("a rule needs 'reply' or 'tool_calls'")
    return Rule(re.compile(entry["match"], re.DOTALL), on, tuple(contains), reply, tuple(calls))


def _answer(rule: Rule, user: str, last: str, conversation: str) -> list[int]:
    """The rule's reply as ids; empty where it does not fit."""
    text = {"user": user, "last": last, "conversation": conversation}[rule.on]
    match = rule.match.search(text)
    if match is None or not all(part in conversation for part in rule.when_contains):
        return []

    def resolve(reference: re.Match[str]) -> str:
        if reference[1]:
            group = int(reference[1])
            return (match[group] or "") if group <= rule.match.groups else reference[0]
        return {"last": last, "user": user}.get(reference[2], "$")

    ids = encode(_REFERENCE.sub(resolve, rule.reply))
    for call in rule.tool_calls:
        arguments = _resolve_all(call.get("arguments", {}), resolve)
        ids += [TOOL_CALL, *encode(json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False))]
    return ids


def _resolve_all(value: Any, resolve: Any) -> Any:
    """References inside every text of a JSON value."""
    if isinstance(value, str):
        return _REFERENCE.sub(resolve, value)
    if isinstance(value, list):
        return [_resolve_all(item, resolve) for item in value]
    if isinstance(value, dict):
        return {key: _resolve_all(item, resolve) for key, item in value.items()}
    return value


def _last_texts(context: Sequence[int]) -> tuple[str, str]:
    """Text of the last user message (all of a prompt without roles) and of the last message of any role."""
    last_start = user_start = user_end = None
    end = len(context)
    for position in range(len(context) - 1, -1, -1):
        if context[position] in SPECIAL_TEXT and context[position] != TOOL_CALL:
            if last_start is None:
                last_start = position + 1
            if context[position] == USER:
                user_start, user_end = position + 1, end
                break
            end = position
    last = decode(context[last_start or 0 :])
    if user_start is None:
        return (decode(context) if last_start is None else ""), last
    return decode(context[user_start:user_end]), last


def _generate(random: Random, count: int) -> list[int]:
    """Exactly `count` tokens of words, never ending inside a character."""
    ids: list[int] = []
    while len(ids) < count:
        draw = random.random()
        if draw < 0.02:
            piece = _RARE_IDS[int(random.random() * len(_RARE_IDS))]
        elif draw < 0.08:
            piece = _BREAK_IDS[int(random.random() * len(_BREAK_IDS))]
        else:
            piece = _WORD_IDS[int(random.random() * len(_WORD_IDS))]
        ids += piece if len(ids) + len(piece) <= count else _WORD_IDS[0]
    return ids


_WORD_IDS: Final = [encode(f" {word}") for word in _WORDS.split() if len(word) <= 6]
_RARE_IDS: Final = [encode(f" {word}") for word in _RARE]
_BREAK_IDS: Final = [encode(mark) for mark in (",", ".", ".\n", ";", ":")]
