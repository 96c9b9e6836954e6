"""What does a client library make of an answer? One shape for all of them, so that a case is written once."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Choice:
    """One choice, put together by the library or, from its chunks, here."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    """The non-empty texts of its chunks; one for an answer that does not stream."""
    roles: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    tool_calls: dict[int, list[str]] = field(default_factory=dict)
    """By position: id, name, arguments."""
    reasoning: str = ""
    logprob_tokens: list[str] = field(default_factory=list)

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """Names of tools and their parsed arguments."""
        return [(name, json.loads(arguments)) for _, (_, name, arguments) in sorted(self.tool_calls.items())]


@dataclass(slots=True)
class Heard:
    """One answer. `usage` is prompt, completion and total tokens; None if none came."""

    choices: dict[int, Choice] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    usage: tuple[int, int, int] | None = None
    usages: int = 0

    @property
    def first(self) -> Choice:
        """The only choice, or the first."""
        return self.choices[0]

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk, or a whole answer, in OpenAI's shape."""
        if chunk.get("id"):
            self.ids.add(chunk["id"])
        if chunk.get("usage"):
            told = chunk["usage"]
            self.usages += 1
            self.usage = told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]
        for given in chunk.get("choices") or ():
            self._take_choice(self.choices.setdefault(given["index"], Choice()), given)

    def _take_choice(self, choice: Choice, given: Mapping[str, Any]) -> None:
        shown = given.get("delta") or given.get("message") or {"content": given.get("text")}
        if text := shown.get("content"):
            choice.text += text
            choice.pieces.append(text)
        if shown.get("role"):
            choice.roles.append(shown["role"])
        if given.get("finish_reason"):
            choice.finish_reasons.append(given["finish_reason"])
        choice.reasoning += shown.get("reasoning") or shown.get("reasoning_content") or ""
        for position, call in enumerate(shown.get("tool_calls") or ()):
            at = call["index"] if call.get("index") is not None else position
            told = choice.tool_calls.setdefault(at, ["", "", ""])
            function = call.get("function") or {}
            told[0] = call.get("id") or told[0]
            told[1] += function.get("name") or ""
            told[2] += function.get("arguments") or ""
        choice.logprob_tokens += _logprob_tokens(given.get("logprobs"))


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """The library raised. `name`: its exception class, or for curl what it printed."""

    status: int | None
    name: str
    code: str | None
    message: str
    retry_after: str | None = None

    @property
    def cell(self) -> str:
        """As the table says it."""
        return f"{self.status} `{self.name}`" if self.status is not None else f"`{self.name}`"


class NotApplicable(Exception):
    """The client has no such feature; the message says what it lacks."""


class Client(Protocol):
    """One client library. Every method raises Refused for what the library raises, NotApplicable for what it lacks."""

    name: str

    async def call(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        retries: int = 0,
        leave_after: int | None = None,
    ) -> Heard:
        """Chat if the body has messages, else completions; stream if it says so, and leave after so many pieces."""
        ...

    async def models(self, url: str) -> list[str]:
        """The names of the models."""
        ...

    async def embeddings(self, url: str, model: str) -> None:
        """Ask for an embedding."""
        ...

    async def responses(self, url: str, model: str) -> None:
        """Use the Responses API."""
        ...


def _logprob_tokens(given: Any) -> Iterable[str]:
    if not given:
        return ()
    if given.get("content") is not None:
        return [one["token"] for one in given["content"]]
    return given.get("tokens") or ()
