"""How do the cases use `litellm`? Its `openai/` provider for chat and `text-completion-openai/` for completions."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read at import: it fetches a price list otherwise

import litellm
import openai

from tests.clients.heard import Heard, NotApplicable, Refused
from tests.clients.with_openai import KEY, arguments, refused

litellm.suppress_debug_info = True
litellm.disable_hf_tokenizer_download = True  # it counts tokens of streams without usage, and fetches tokenizers for it


class LiteLlm:
    """litellm's functions, each told where the gateway is."""

    name = "litellm"

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
        is_chat, given = "messages" in body, arguments(body)
        provider = "openai" if is_chat else "text-completion-openai"
        given = _with_extra_body(given, provider)
        given["model"] = f"{provider}/{given['model']}"
        options: dict[str, Any] = {
            "api_base": f"{url}/v1",
            "api_key": KEY,
            "timeout": timeout_s,
            "max_retries": retries,
        }
        make: Any = litellm.acompletion if is_chat else litellm.atext_completion
        heard = Heard()
        try:
            answer = await make(**given, **options, extra_headers=dict(headers or {}))
            if not body.get("stream"):
                heard.take(answer.model_dump())
                return heard
            async for chunk in answer:
                heard.take(chunk.model_dump())
                if leave_after is not None and sum(len(c.pieces) for c in heard.choices.values()) >= leave_after:
                    await answer.aclose()
                    break
        except openai.OpenAIError as error:
            raise _refused(error) from error
        return heard

    async def models(self, url: str) -> list[str]:
        """litellm lists the models of its own price list."""
        raise NotApplicable("lists no models")

    async def embeddings(self, url: str, model: str) -> None:
        """`litellm.aembedding`"""
        try:
            await litellm.aembedding(
                model=f"openai/{model}", input=["x"], api_base=f"{url}/v1", api_key=KEY, max_retries=0
            )
        except openai.OpenAIError as error:
            raise _refused(error) from error

    async def responses(self, url: str, model: str) -> None:
        """`litellm.aresponses`"""
        try:
            await litellm.aresponses(
                model=f"openai/{model}", input="x", api_base=f"{url}/v1", api_key=KEY, max_retries=0
            )
        except openai.OpenAIError as error:
            raise _refused(error) from error


def _with_extra_body(given: Mapping[str, Any], provider: str) -> dict[str, Any]:
    """Arguments in which what litellm refuses or keeps for itself goes by `extra_body`."""
    supported = {"model", "messages", "prompt", "extra_body", "stream"}
    supported.update(litellm.get_supported_openai_params(given["model"], provider) or ())
    extra = {name: value for name, value in given.items() if name not in supported or name == "metadata"}
    kept = {name: value for name, value in given.items() if name not in extra}
    return {**kept, "extra_body": {**given.get("extra_body", {}), **extra}}


async def close() -> None:
    """Close the connections that litellm keeps for the whole process."""
    await litellm.close_litellm_async_clients()


def _refused(error: openai.OpenAIError) -> Refused:
    """litellm's exceptions are subclasses of the `openai` package's; it keeps the answer's headers apart."""
    told = refused(error)
    headers = getattr(error, "litellm_response_headers", None) or {}
    return replace(told, retry_after=told.retry_after or headers.get("retry-after"))
