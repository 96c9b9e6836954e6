"""How is one call timed? Streams of an OpenAI-compatible completions API, stamped as their bytes come in.

Bytes are only stamped while streams run and parsed after their end: parsing 64 streams would slow what it measures.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Any, Final

import httpx
import orjson

from agentserve.engines.http import EngineRefused, EngineUnreachable, error_message
from agentserve.engines.sse import DONE, SseSplitter
from agentserve.engines.transport import EngineTransport
from agentserve.errors import AgentServeError, BadInput, EngineFailed
from agentserve.profiler.text import WORDS

_CONNECT_S: Final = 30.0
"""Servers in Python read their sockets late while they take in a batch of long prompts."""
_KEEPALIVE_S: Final = 3.0
_MAX_LINE_BYTES: Final = 8 * 2**20
_MAX_STREAM_BYTES: Final = 64 * 2**20
_EXACT: Final = {"ignore_eos": True, "return_token_ids": True}
_FALLBACK_IDS: Final = range(300, 20_000)

Prompt = list[int] | str


@dataclass(frozen=True, slots=True)
class Reply:
    """One call, on the client's clock. `times_s` and `tokens` are of each chunk that held tokens."""

    sent_s: float
    times_s: tuple[float, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int | None
    cached_tokens: int | None
    """None: the engine does not tell."""

    @property
    def ttft_s(self) -> float:
        """First token - sent."""
        return self.times_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Last token - sent."""
        return self.times_s[-1] - self.sent_s


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the engine was found to take: prompts as ids drawn from `ids` (else text), and vLLM's extra fields."""

    ids: Sequence[int] = ()
    is_exact: bool = True
    """`ignore_eos`, `min_tokens` and `return_token_ids`: outputs are as long as asked for, and counted in tokens."""


class EngineClient:
    """One engine under measurement; an async context manager. Raises EngineFailed where a call fails."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        seed: int | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"engine URL {url[:80]!r}: must be http://host:port or https://host:port")
        self.model = model or ""
        """Served name; empty: the engine's only one, once `engine_facts` has asked for it."""
        self.url = url.rstrip("/")
        self.dialect = Dialect()
        self.random = Random(seed)  # noqa: S311  # prompts that differ, no secret
        self.sent_tokens = 0
        """Output tokens that this client was given."""
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers | {"accept-encoding": "identity", "content-type": "application/json"},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            transport=EngineTransport(_KEEPALIVE_S),
            trust_env=False,
        )

    async def __aenter__(self) -> "EngineClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET. Raises EngineUnreachable."""
        try:
            response = await self._http.get(path, timeout=10.0)
        except httpx.HTTPError as error:
            raise EngineUnreachable(f"{self.url}{path}: {_why(error)}") from None
        return response.status_code, response.content

    async def learn_dialect(self) -> list[str]:
        """Find out what prompts and fields the engine takes; returns what a user should know of it, in sentences."""
        ids = await self._vocabulary()
        tries = [Dialect(tuple(ids)), Dialect(), Dialect(is_exact=False)]
        for dialect in tries:
            self.dialect = dialect
            try:
                await self.call(self.prompt(24), 2)
            except EngineRefused as error:
                refused = error
                continue
            return [] if dialect is tries[0] else [_limits(dialect)]
        raise refused

    def prompt(self, tokens: int) -> Prompt:
        """A random prompt of that many tokens (about as many, in text) that shares no prefix with any other."""
        if self.dialect.ids:
            return self.random.choices(self.dialect.ids, k=tokens)
        return " ".join(self.random.choices(WORDS, k=tokens))

    def extended(self, prompt: Prompt, tokens: int) -> Prompt:
        """`prompt` and as many random tokens more."""
        more = self.prompt(tokens)
        return [*prompt, *more] if isinstance(prompt, list) and isinstance(more, list) else f"{prompt} {more}"

    async def call(self, prompt: Prompt, output_tokens: int) -> Reply:
        """Stream one completion to its end."""
        return self._parsed(*await self._stamped(self._body(prompt, output_tokens)))

    async def calls(self, prompts: Sequence[Prompt], output_tokens: int) -> list[Reply]:
        """Stream several at once; they are sent in order. The first failure cancels the rest and is raised."""
        bodies = [self._body(prompt, output_tokens) for prompt in prompts]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._stamped(body)) for body in bodies]
        except* AgentServeError as failures:
            raise failures.exceptions[0] from None
        return [self._parsed(*task.result()) for task in tasks]

    def _body(self, prompt: Prompt, output_tokens: int) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.dialect.is_exact:
            body |= _EXACT | {"min_tokens": output_tokens}
        return orjson.dumps(body)

    async def _stamped(self, body: bytes) -> tuple[float, list[tuple[float, bytes]]]:
        """When it was sent, and every piece of the answer with its time."""
        pieces: list[tuple[float, bytes]] = []
        sent_s = perf_counter()
        try:
            async with self._http.stream("POST", "/v1/completions", content=body) as response:
                if response.status_code >= 400:
                    said, code = error_message(await response.aread())
                    text = f"{self.url}: engine answered {response.status_code}"
                    if response.status_code >= 500:
                        raise EngineFailed(text, said=said)
                    raise EngineRefused(text, response.status_code, code, said=said)
                pieces.extend([(perf_counter(), piece) async for piece in response.aiter_raw()])
        except httpx.HTTPError as error:
            raise EngineUnreachable(f"{self.url}: {_why(error)}") from None
        return sent_s, pieces

    def _parsed(self, sent_s: float, pieces: list[tuple[float, bytes]]) -> Reply:
        splitter = SseSplitter(_MAX_LINE_BYTES, _MAX_STREAM_BYTES)
        times: list[float] = []
        counts: list[int] = []
        usage: dict[str, Any] = {}
        for at_s, piece in pieces:
            tokens = 0
            for payload in splitter.feed(piece):
                if payload == DONE:
                    continue
                chunk = orjson.loads(payload)
                tokens += _tokens_in(chunk)
                usage = chunk.get("usage") or usage
            if tokens:
                times.append(at_s)
                counts.append(tokens)
        if not times:
            raise EngineFailed(f"{self.url}: a completion held no token")
        self.sent_tokens += sum(counts)
        details = usage.get("prompt_tokens_details") or {}
        return Reply(sent_s, tuple(times), tuple(counts), usage.get("prompt_tokens"), details.get("cached_tokens"))

    async def _vocabulary(self) -> list[int]:
        """Ids of whole words, as the engine's tokenizer makes them; ids that most vocabularies hold if it has none."""
        body = orjson.dumps({"model": self.model, "prompt": " ".join(WORDS), "add_special_tokens": False})
        try:
            response = await self._http.post("/tokenize", content=body, timeout=10.0)
            ids = orjson.loads(response.content)["tokens"] if response.is_success else None
        except (httpx.HTTPError, orjson.JSONDecodeError, KeyError, TypeError):
            ids = None
        known = sorted({i for i in ids if isinstance(i, int)}) if isinstance(ids, list) else []
        return known if len(known) >= 20 else list(_FALLBACK_IDS)


def _limits(dialect: Dialect) -> str:
    if dialect.is_exact:
        return "the engine refuses token ids as prompts: texts are sent, whose lengths it tells in tokens"
    return (
        "the engine refuses ignore_eos, min_tokens or return_token_ids: outputs may end early, and chunks of a stream "
        "are counted as tokens"
    )


def _tokens_in(chunk: dict[str, Any]) -> int:
    """Tokens of one chunk: its ids where the engine gives them, else one for a chunk with text."""
    tokens = 0
    for choice in chunk.get("choices") or ():
        ids = choice.get("token_ids")
        tokens += len(ids) if ids is not None else bool(choice.get("text"))
    return tokens


def _why(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
