"""What can an engine do? Found out by having it do it, with answers of one token, through the adapter that calls use.

The prompts are ours and mean nothing. A refusal means no; a failure or silence means that it is not known.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

import httpx

from agentserve.engines.adapter import Delta, EngineAdapter, EngineCall
from agentserve.engines.bodies import CHAT, COMPLETIONS
from agentserve.engines.http import EngineRefused
from agentserve.errors import EngineFailed
from agentserve.workers.asking import Answer, post, why

_MESSAGES: Final = [{"role": "user", "content": "ping"}]
_SCHEMA: Final = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
_FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "pong", "schema": _SCHEMA}}
_TOOL: Final = {"type": "function", "function": {"name": "pong", "description": "Answers.", "parameters": _SCHEMA}}
_MAX_DELTAS: Final = 64


class Skill(StrEnum):
    """What is tried out, in the words of a report."""

    TOKENS_OUT = "token ids out"
    TOKENS_IN = "token ids in"
    CHAT_IDS = "token ids in chat streams"
    PRIORITY = "priorities"
    KV_TRANSFER = "KV transfer"
    CACHED_TOKENS = "report of cached tokens"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    GUIDED = "guided decoding"
    TOOLS = "tool parser"
    REASONING = "reasoning parser"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether an engine has a skill (None: not known), and how that was found out."""

    found: bool | None
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine on trial. `ids`: some token ids of its own, once it has given any; `timeout_s`: for each trial."""

    adapter: EngineAdapter
    client: httpx.AsyncClient
    kind: str
    model: str
    block_tokens: int
    timeout_s: float
    ids: tuple[int, ...] = ()


async def try_token_ids(subject: Subject) -> tuple[Finding, Finding, tuple[int, ...]]:
    """Whether it gives token ids and takes them back, and the ids of prompt and output that it gave."""
    deltas, problem = await _stream(subject, _call(subject, COMPLETIONS, {"prompt": "ping"}))
    if problem is not None:
        return problem, Finding(None, "not tried: there are no ids to give"), ()
    ids = _ids(deltas)
    if not ids:
        return Finding(False, "none came with a completion"), Finding(None, "not tried: there are no ids to give"), ()
    back = _call(subject, COMPLETIONS, {"prompt": "ping"}, replay_ids=ids, max_tokens=1)
    deltas, problem = await _stream(subject, back)
    taken = problem or (
        Finding(True, "a completion went on from them") if deltas else Finding(False, "nothing came of them")
    )
    return Finding(True, "they came with a completion"), taken, ids


async def try_chat_ids(subject: Subject) -> Finding:
    """Whether chat streams carry the ids of prompt and output, so that a chat can move while it is streamed."""
    deltas, problem = await _stream(subject, _call(subject, CHAT, {"messages": _MESSAGES}))
    if problem is not None:
        return Finding(None, f"no chat: {problem.how}")
    return Finding(True, "they came with a chat") if _ids(deltas) else Finding(False, "none came with a chat")


async def try_priority(subject: Subject) -> Finding:
    """Whether it takes a call with a priority. The adapter must have been opened for priorities."""
    if subject.adapter.capabilities.priority is None:
        return Finding(False, "this kind of engine has none")
    _, problem = await _stream(subject, replace(_call(subject, COMPLETIONS, {"prompt": "ping"}), priority=1))
    return problem or Finding(True, "a call with one was served")


async def try_cached_tokens(subject: Subject) -> Finding:
    """Whether the second of two equal prompts is reported as cached."""
    call = _call(subject, COMPLETIONS, {"prompt": "ping " * (2 * subject.block_tokens + 1)})
    if subject.ids:
        call = replace(call, replay_ids=_blocks(subject, 2), max_tokens=1)
    await _stream(subject, call)
    deltas, problem = await _stream(subject, replace(call, request_id=_name()))
    if problem is not None:
        return replace(problem, found=None)
    cached = next((tokens for d in reversed(deltas) if (tokens := _cached(d.usage)) is not None), None)
    if cached is None:
        return Finding(False, "the usage of a repeated prompt does not name them")
    return Finding(True, f"{cached} of a repeated prompt" if cached else "named, but a repeated prompt was not cached")


async def try_tokenize(subject: Subject) -> Finding:
    """Whether `/tokenize` turns text into ids."""
    body = {"content": "ping"} if subject.kind == "llamacpp" else {"model": subject.model, "prompt": "ping"}
    answer = await _post(subject, "/tokenize", body)
    if isinstance(answer, Finding):
        return answer
    tokens = (answer.value or {}).get("tokens")
    return _verdict(answer, isinstance(tokens, list) and bool(tokens), "it")


async def try_detokenize(subject: Subject) -> Finding:
    """Whether ids can be turned back into text."""
    try:
        async with asyncio.timeout(subject.timeout_s):
            text = await subject.adapter.detokenize(subject.model, subject.ids or (1,))
    except EngineFailed as error:
        return Finding(None, error.record)
    except TimeoutError:
        return _silent(subject)
    return Finding(text is not None, "ids were turned into text" if text is not None else "no such route")


async def try_guided(subject: Subject) -> Finding:
    """Whether an answer can be held to a JSON schema; where chat is not to be had, in a completion."""
    answer = await _post(subject, CHAT, _body(subject, {"messages": _MESSAGES, "response_format": _FORMAT}))
    if isinstance(answer, Answer) and not answer.is_good:
        answer = await _post(subject, COMPLETIONS, _body(subject, {"prompt": "ping", "response_format": _FORMAT}))
    if isinstance(answer, Finding):
        return answer
    return _verdict(answer, answer.is_good, "a call with a JSON schema")


async def try_tools(subject: Subject) -> Finding:
    """Whether it accepts tools with `tool_choice: auto`; that says nothing of kinds that take them without a parser."""
    told = {"messages": _MESSAGES, "tools": [_TOOL], "tool_choice": "auto"}
    answer = await _post(subject, CHAT, _body(subject, told))
    if isinstance(answer, Finding):
        return answer
    if not answer.is_good:
        plain = await _post(subject, CHAT, _body(subject, {"messages": _MESSAGES}))
        is_chat = isinstance(plain, Answer) and plain.is_good
        return Finding(False if is_chat else None, "tools are refused" if is_chat else "no chat")
    if subject.kind in ("vllm", "emulator", "llamacpp"):
        return Finding(True, "a call with tools was accepted")
    return Finding(None, "a call with tools was accepted; whether they are parsed is not told")


async def _stream(subject: Subject, call: EngineCall) -> tuple[list[Delta], Finding | None]:
    """The pieces of an answer, or what stood in the way of it."""
    deltas: list[Delta] = []
    try:
        async with asyncio.timeout(subject.timeout_s), aclosing(subject.adapter.stream(call)) as stream:
            async for delta in stream:
                deltas.append(delta)
                if len(deltas) >= _MAX_DELTAS:
                    break
    except EngineRefused as error:
        return [], Finding(False, f"refused with {error.status}")
    except EngineFailed as error:
        return [], Finding(None, error.record)
    except TimeoutError:
        return [], _silent(subject)
    return deltas, None


async def _post(subject: Subject, path: str, body: Mapping[str, Any]) -> Answer | Finding:
    try:
        async with asyncio.timeout(subject.timeout_s):
            return await post(subject.client, path, body, subject.timeout_s)
    except httpx.HTTPError as error:
        return Finding(None, why(error))
    except TimeoutError:
        return _silent(subject)


def _verdict(answer: Answer, is_good: bool, what: str) -> Finding:
    """A failure of the server's own says nothing of what it can do."""
    return Finding(None if answer.status >= 500 else is_good, f"{what} was answered with {answer.status}")


def _call(subject: Subject, path: str, asked: Mapping[str, Any], **options: Any) -> EngineCall:
    return EngineCall(path=path, body=_body(subject, asked), request_id=_name(), **options)


def _body(subject: Subject, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": subject.model, "max_tokens": 1, "temperature": 0, **asked}


def _name() -> str:
    return f"agentserve-probe-{uuid4().hex}"


def _ids(deltas: Sequence[Delta]) -> tuple[int, ...]:
    """Prompt ids and output ids; none unless both are there."""
    prompt = next((delta.prompt_ids for delta in deltas if delta.prompt_ids), ())
    emitted = tuple(token for delta in deltas for token in delta.token_ids)
    return (*prompt, *emitted) if prompt and emitted else ()


def _blocks(subject: Subject, count: int) -> tuple[int, ...]:
    """Ids that fill some blocks and one more place: a part of a block is neither handed over nor cached."""
    tokens = count * subject.block_tokens + 1
    return (subject.ids * tokens)[:tokens]


def _cached(usage: Mapping[str, Any] | None) -> int | None:
    details = usage.get("prompt_tokens_details") if usage is not None else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if isinstance(cached, int) else None


def _silent(subject: Subject) -> Finding:
    return Finding(None, f"no answer within {subject.timeout_s:g} s")
