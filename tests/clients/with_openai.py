"""How do the cases use the `openai` package?"""

import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import openai
from openai.resources.chat.completions import AsyncCompletions as ChatCompletions
from openai.resources.completions import AsyncCompletions

from tests.clients.heard import Heard, Refused

KEY = "sk-none"


class OpenAi:
    """The asynchronous client of the `openai` package."""

    name = "openai"

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
        """Chat or completions."""
        heard = Heard()
        async with _client(url, timeout_s, retries) as client:
            is_chat = "messages" in body
            create: Any = client.chat.completions.create if is_chat else client.completions.create
            answer = await create(**arguments(body), extra_headers=headers)
            if not body.get("stream"):
                heard.take(answer.model_dump())
                return heard
            async with answer:
                async for chunk in answer:
                    heard.take(chunk.model_dump())
                    if leave_after is not None and sum(len(c.pieces) for c in heard.choices.values()) >= leave_after:
                        break
        return heard

    async def models(self, url: str) -> list[str]:
        """By the list route, then each by its own."""
        async with _client(url) as client:
            names = [model.id async for model in client.models.list()]
            return [(await client.models.retrieve(name)).id for name in names]

    async def embeddings(self, url: str, model: str) -> None:
        """`client.embeddings.create`"""
        async with _client(url) as client:
            await client.embeddings.create(model=model, input="x")

    async def responses(self, url: str, model: str) -> None:
        """`client.responses.create`"""
        async with _client(url) as client:
            await client.responses.create(model=model, input="x")


def arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as the arguments of `create`: fields that the library does not know go in `extra_body`."""
    made = ChatCompletions.create if "messages" in body else AsyncCompletions.create
    known = set(inspect.signature(made).parameters)
    extra = {name: value for name, value in body.items() if name not in known}
    return {name: value for name, value in body.items() if name in known} | ({"extra_body": extra} if extra else {})


def refused(error: openai.OpenAIError) -> Refused:
    """What the library raised."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    retry_after = None if response is None else response.headers.get("retry-after")
    return Refused(status, type(error).__name__, getattr(error, "code", None), str(error), retry_after)


@asynccontextmanager
async def _client(url: str, timeout_s: float = 30.0, retries: int = 0) -> AsyncIterator[openai.AsyncOpenAI]:
    try:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key=KEY, timeout=timeout_s, max_retries=retries
        ) as client:
            yield client
    except openai.OpenAIError as error:
        raise refused(error) from error
