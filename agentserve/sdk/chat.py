"""A LangChain chat model that speaks to the gateway over httpx alone, carries its run, and outlives a restart."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx
import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from agentserve import headers
from agentserve.errors import (
    AgentServeError,
    BadInput,
    Conflict,
    EngineFailed,
    Forbidden,
    LimitReached,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from agentserve.sdk.context import active_run
from agentserve.sdk.credentials import authorization
from agentserve.sdk.messages import chunk_of, message_of, to_openai
from agentserve.sdk.origin import gateway_url
from agentserve.sdk.transport import EVERY, AsyncRunTransport, RunTransport

_ERRORS: Mapping[int, type[AgentServeError]] = {
    401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 413: TooLarge, 429: LimitReached,
    502: EngineFailed,
}  # fmt: skip


class ChatModel(BaseChatModel):
    """A model served by agentserve: `ChatModel(model="llama-3.1-8b")`.

    `gateway`: base URL; by default that of the run around the call, else $AGENTSERVE_GATEWAY or the local one.
    Temperature, stop words and limits are sent only where given. Raises the errors of `agentserve.errors`: BadInput,
    NotFound (unknown model), Unavailable …
    """

    model: str
    gateway: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """The gateway's key; by default $AGENTSERVE_API_KEY."""
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    timeout_s: float = 600.0
    """Longest silence of the gateway within a call."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request: seed, top_p, ignore_eos …"""
    transport: httpx.BaseTransport | None = Field(default=None, exclude=True, repr=False)
    async_transport: httpx.AsyncBaseTransport | None = Field(default=None, exclude=True, repr=False)

    model_config = ConfigDict(arbitrary_types_allowed=True)
    _client: httpx.Client = PrivateAttr()
    _async_client: httpx.AsyncClient = PrivateAttr()

    @field_validator("gateway")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        return None if url is None else gateway_url(url)

    def model_post_init(self, context: Any, /) -> None:
        """Make the clients; they hold no connection between calls, so threads and event loops can share them."""
        super().model_post_init(context)
        timeout = httpx.Timeout(self.timeout_s, connect=5.0)
        transport = RunTransport(EVERY, inner=self.transport)
        self._client = httpx.Client(transport=transport, timeout=timeout)
        async_transport = AsyncRunTransport(EVERY, inner=self.async_transport)
        self._async_client = httpx.AsyncClient(transport=async_transport, timeout=timeout)

    @property
    def _llm_type(self) -> str:
        return "agentserve"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_provider": "agentserve", "ls_model_name": self.model}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call; `tool_choice`: auto, none, required (or any), or a tool's name."""
        bound = {"tools": [convert_to_openai_tool(tool) for tool in tools], **kwargs}
        if tool_choice is not None:
            words = {"any": "required", "auto": "auto", "none": "none", "required": "required"}
            named = {"type": "function", "function": {"name": tool_choice}}
            bound["tool_choice"] = words.get(tool_choice, named)
        return self.bind(**bound)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._reached() as gateway:
            return _result(
                self._client.post(gateway + _PATH, json=self._body(messages, stop, kwargs), headers=self._headers())
            )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._reached() as gateway:
            return _result(
                await self._async_client.post(
                    gateway + _PATH, json=self._body(messages, stop, kwargs), headers=self._headers()
                )
            )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        body = {**self._body(messages, stop, kwargs), **_STREAMED}
        with (
            self._reached() as gateway,
            self._client.stream("POST", gateway + _PATH, json=body, headers=self._headers()) as response,
        ):
            if not response.is_success:
                response.read()
                raise _refused(response)
            metadata = _metadata(response)
            for line in response.iter_lines():
                chunk = _chunk(line, metadata)
                if chunk is not None:
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        body = {**self._body(messages, stop, kwargs), **_STREAMED}
        with self._reached() as gateway:
            async with self._async_client.stream(
                "POST", gateway + _PATH, json=body, headers=self._headers()
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refused(response)
                metadata = _metadata(response)
                async for line in response.aiter_lines():
                    chunk = _chunk(line, metadata)
                    if chunk is not None:
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    def _headers(self) -> dict[str, str]:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return {headers.REQUEST_ID: f"call-{uuid.uuid4().hex}", **authorization(key)}

    @contextmanager
    def _reached(self) -> Iterator[str]:
        """The URL of the gateway; inside, our errors for httpx's and for an answer that is not JSON."""
        run = active_run()
        gateway = self.gateway or (gateway_url() if run is None else run.gateway)
        try:
            yield gateway
        except httpx.TimeoutException as error:
            raise Unavailable(f"the gateway at {gateway} took too long ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"cannot reach the gateway at {gateway} ({type(error).__name__})") from error
        except orjson.JSONDecodeError as error:
            raise EngineFailed("the gateway's answer is not JSON") from error

    def _body(self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
        fields = {
            "model": self.model,
            "messages": to_openai(messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": stop or self.stop,
            **self.extra_body,
            **given,
        }
        return {name: value for name, value in fields.items() if value is not None}


_PATH: Final = "/v1/chat/completions"
_STREAMED: Final = {"stream": True, "stream_options": {"include_usage": True}}


def _result(response: httpx.Response) -> ChatResult:
    if not response.is_success:
        raise _refused(response)
    answer = orjson.loads(response.content)
    metadata = {**_metadata(response), "model_name": answer.get("model")}
    choices = answer.get("choices") or ()
    generations = [
        ChatGeneration(message=message_of(choice, answer.get("usage"), {**metadata, "id": answer.get("id")}))
        for choice in choices
    ]
    if not generations:
        raise EngineFailed("the gateway's answer holds no choices")
    return ChatResult(generations=generations)


def _chunk(line: str, metadata: Mapping[str, Any]) -> ChatGenerationChunk | None:
    """What one line of the event stream adds; raises the error that it may hold."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return None
    chunk = orjson.loads(data)
    if "error" in chunk:
        raise EngineFailed(f"the gateway broke off the stream: {_message(chunk)}")
    message = chunk_of(chunk, metadata)
    return None if message is None else ChatGenerationChunk(message=message)


def _metadata(response: httpx.Response) -> dict[str, Any]:
    """The instance that served the call, and the call's id."""
    sent = response.request.headers
    request_id = response.headers.get(headers.REQUEST_ID) or sent.get(headers.REQUEST_ID)
    return {"instance": response.headers.get(headers.INSTANCE), "request_id": request_id}


def _refused(response: httpx.Response) -> AgentServeError:
    try:
        message = _message(orjson.loads(response.content))
    except orjson.JSONDecodeError:
        message = response.reason_phrase
    status = response.status_code
    kind = _ERRORS.get(status, Unavailable if status >= 500 else BadInput)
    return kind(f"the gateway refused the call ({status}): {message}")


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or "no message")[:500]
