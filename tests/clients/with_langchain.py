"""How do the cases use `langchain-openai`? `ChatOpenAI` for chat, `OpenAI` for completions."""

import json
from collections.abc import Mapping
from typing import Any

import openai
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.outputs import Generation
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.clients.heard import Choice, Heard, NotApplicable
from tests.clients.with_openai import KEY, arguments, refused


class LangChain:
    """LangChain's models for OpenAI's routes."""

    name = "langchain-openai"

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
        given = arguments(body)
        if "metadata" in given:  # as an argument it would be LangChain's own
            given["extra_body"] = {**given.get("extra_body", {}), "metadata": given.pop("metadata")}
        prompt, streams = given.pop("messages", None) or given.pop("prompt"), given.pop("stream", False)
        options: dict[str, Any] = {
            "base_url": f"{url}/v1",
            "api_key": KEY,
            "model": given.pop("model"),
            "max_retries": retries,
            "timeout": timeout_s,
            "default_headers": headers,
        }
        try:
            if "messages" in body:
                wants_usage = bool((given.pop("stream_options", None) or {}).get("include_usage"))
                model = ChatOpenAI(**options, stream_usage=wants_usage)
                return await _chat(model, convert_to_messages(prompt), given, streams, leave_after)
            return await _complete(OpenAI(**options), prompt, given, streams)
        except openai.OpenAIError as error:
            raise refused(error) from error

    async def models(self, url: str) -> list[str]:
        """LangChain lists no models."""
        raise NotApplicable("lists no models")

    async def embeddings(self, url: str, model: str) -> None:
        """`OpenAIEmbeddings`"""
        try:
            made = OpenAIEmbeddings(
                base_url=f"{url}/v1", api_key=KEY, model=model, max_retries=0, check_embedding_ctx_length=False
            )
            await made.aembed_query("x")
        except openai.OpenAIError as error:
            raise refused(error) from error

    async def responses(self, url: str, model: str) -> None:
        """`ChatOpenAI(use_responses_api=True)`"""
        try:
            made = ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model=model, max_retries=0, use_responses_api=True)
            await made.ainvoke("x")
        except openai.OpenAIError as error:
            raise refused(error) from error


async def _chat(
    model: ChatOpenAI, messages: list[BaseMessage], given: dict[str, Any], streams: bool, leave_after: int | None
) -> Heard:
    heard = Heard()
    if streams:
        if (given.get("n") or 1) > 1:
            raise NotApplicable("streams one choice only")
        stream = model.astream(messages, **given)
        async for chunk in stream:
            _take(heard, heard.choices.setdefault(0, Choice()), chunk)
            if leave_after is not None and len(heard.first.pieces) >= leave_after:
                await stream.aclose()
                break
        return heard
    result = await model.agenerate([messages], **given)
    for index, generation in enumerate(result.generations[0]):
        _take(heard, heard.choices.setdefault(index, Choice()), generation.message)
    _take_usage(heard, (result.llm_output or {}).get("token_usage"))
    return heard


async def _complete(model: OpenAI, prompt: Any, given: dict[str, Any], streams: bool) -> Heard:
    if not isinstance(prompt, str):
        raise NotApplicable("takes text only")
    heard = Heard()
    if streams:
        async for text in model.astream(prompt, **given):
            if text:
                choice = heard.choices.setdefault(0, Choice())
                choice.text += text
                choice.pieces.append(text)
        return heard
    result = await model.agenerate([prompt], **given)
    for index, generation in enumerate(result.generations[0]):
        heard.choices[index] = _generated(generation)
    _take_usage(heard, (result.llm_output or {}).get("token_usage"))
    return heard


def _generated(generation: Generation) -> Choice:
    info = generation.generation_info or {}
    reasons = [info["finish_reason"]] if info.get("finish_reason") else []
    tokens = (info.get("logprobs") or {}).get("tokens") or []
    return Choice(generation.text, [generation.text], finish_reasons=reasons, logprob_tokens=tokens)


def _take(heard: Heard, choice: Choice, message: AIMessage | AIMessageChunk) -> None:
    if text := message.text:
        choice.text += text
        choice.pieces.append(text)
    told = message.response_metadata
    if reason := told.get("finish_reason"):
        choice.finish_reasons.append(reason)
    choice.logprob_tokens += [one["token"] for one in (told.get("logprobs") or {}).get("content") or ()]
    if told.get("id"):
        heard.ids.add(told["id"])
    if message.id and message.id.startswith("chatcmpl"):
        heard.ids.add(message.id)
    if isinstance(message, AIMessageChunk):
        for part in message.tool_call_chunks:
            call = choice.tool_calls.setdefault(part["index"] or 0, ["", "", ""])
            call[0], call[1] = part["id"] or call[0], call[1] + (part["name"] or "")
            call[2] += part["args"] or ""
        if message.usage_metadata:
            usage = message.usage_metadata
            heard.usages += 1
            heard.usage = usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]
        return
    for position, made in enumerate(message.additional_kwargs.get("tool_calls") or _spoken(message)):
        function = made["function"]
        choice.tool_calls[position] = [made["id"], function["name"], function["arguments"]]


def _spoken(message: AIMessage) -> list[dict[str, Any]]:
    calls = message.tool_calls
    return [{"id": c["id"], "function": {"name": c["name"], "arguments": json.dumps(c["args"])}} for c in calls]


def _take_usage(heard: Heard, usage: Mapping[str, Any] | None) -> None:
    if usage and usage.get("total_tokens"):
        heard.usages += 1
        heard.usage = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
