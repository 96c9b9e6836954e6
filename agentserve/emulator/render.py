"""How is a reply written down? vLLM's response bodies and stream chunks, with little work per chunk."""

import json
from collections.abc import Mapping, Sequence
from time import time
from typing import Any, Final

import orjson

from agentserve.emulator.api import Call
from agentserve.emulator.tokens import TOOL_CALL, StreamDecoder, decode

DONE: Final = b"data: [DONE]\n\n"


class Writer:
    """Writes one call's answer, from its whole output or piece by piece. `cached_tokens` is set by the server."""

    def __init__(self, call: Call, response_id: str, model: str) -> None:
        self.call = call
        self.cached_tokens = 0
        self._decoder = StreamDecoder()
        self._shown = 0
        self._head: dict[str, Any] = {
            "id": response_id,
            "object": "chat.completion" if call.is_chat else "text_completion",
            "created": int(time()),
            "model": model,
        }
        chunk_head = self._head | ({"object": "chat.completion.chunk"} if call.is_chat else {})
        self._prefix = b"data: " + orjson.dumps(chunk_head)[:-1] + b","
        self._text_end = call.output_ids.index(TOOL_CALL) if self._has_tool_calls else len(call.output_ids)

    @property
    def _has_tool_calls(self) -> bool:
        return self.call.is_chat and TOOL_CALL in self.call.output_ids

    # Streams ----------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """A chat stream's first chunk: the role and, where asked for, the prompt's ids. Nothing for completions."""
        if not self.call.is_chat:
            return b""
        extra = {"prompt_token_ids": self.call.prompt_ids} if self.call.return_token_ids else {}
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self._chunk([choice], 0, extra)

    def chunk(self, start: int, end: int) -> bytes:
        """The chunk of output tokens `start` to `end`."""
        call = self.call
        text = self._feed(call.output_ids[start : min(end, self._text_end)])
        last = end == len(call.output_ids)
        reason = call.finish_reason if last else None
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if call.is_chat:
            choice["delta"] = {"content": text}
            if last and self._has_tool_calls:
                choice["delta"] = {"content": text} if text else {}
                choice["delta"]["tool_calls"] = self._tool_calls(indexed=True)
        else:
            choice["text"] = text
            if start == 0 and call.return_token_ids:
                choice["prompt_token_ids"] = call.prompt_ids
        if call.return_token_ids:
            choice["token_ids"] = call.output_ids[start:end]
        if last:
            choice["stop_reason"] = call.stop_reason
        return self._chunk([choice], end)

    def closing(self) -> bytes:
        """What ends a stream: the usage chunk where asked for, then the end mark."""
        if not self.call.include_usage:
            return DONE
        usage = {"choices": [], "usage": self.usage(len(self.call.output_ids))}
        return self._prefix + orjson.dumps(usage)[1:] + b"\n\n" + DONE

    def _chunk(self, choices: list[dict[str, Any]], emitted: int, extra: Mapping[str, Any] | None = None) -> bytes:
        tail: dict[str, Any] = {"choices": choices, **(extra or {})}
        if self.call.continuous_usage:
            tail["usage"] = self.usage(emitted)
        return self._prefix + orjson.dumps(tail)[1:] + b"\n\n"

    def _feed(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete, up to a stop string."""
        text = self._decoder.feed(ids)
        room = self.call.text_limit - self._shown
        self._shown += len(text)
        return text if room >= len(text) else text[: max(0, room)]

    # Whole answers ----------------------------------------------------------------------------------------------

    def body(self, kv_transfer_params: Mapping[str, Any] | None) -> bytes:
        """The answer to a call that does not stream."""
        call = self.call
        text = self._feed(call.output_ids[: self._text_end])
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": call.finish_reason,
            "stop_reason": call.stop_reason,
        }
        if call.is_chat:
            calls = self._tool_calls(indexed=False) if self._has_tool_calls else []
            choice["message"] = {
                "role": "assistant",
                "content": text if text or not calls else None,
                "tool_calls": calls,
            }
        else:
            choice["text"] = text
        answer = self._head | {"choices": [choice], "usage": self.usage(len(call.output_ids))}
        if call.return_token_ids:
            choice["token_ids"] = call.output_ids
            (answer if call.is_chat else choice)["prompt_token_ids"] = call.prompt_ids
        return orjson.dumps(answer | {"kv_transfer_params": kv_transfer_params})

    def usage(self, emitted: int) -> dict[str, Any]:
        """Token counts after `emitted` output tokens."""
        prompt = len(self.call.prompt_ids)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + emitted,
            "completion_tokens": emitted,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def _tool_calls(self, *, indexed: bool) -> list[dict[str, Any]]:
        """The calls in the output; one that was cut short keeps its raw text as arguments."""
        calls = []
        for index, text in enumerate(_split(self.call.output_ids[self._text_end :])):
            try:
                spoken = json.loads(text)
                function = {"name": spoken["name"], "arguments": json.dumps(spoken["arguments"], ensure_ascii=False)}
            except ValueError:
                function = {"name": "", "arguments": text}
            call = {"id": f"call-{self._head['id']}-{index}", "type": "function", "function": function}
            calls.append({"index": index, **call} if indexed else call)
        return calls


def _split(ids: Sequence[int]) -> list[str]:
    """Text of each tool call; `ids` begin with a tool-call mark."""
    starts = [position for position, token in enumerate(ids) if token == TOOL_CALL]
    return [decode(ids[start + 1 : end]) for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


def error_body(message: str, kind: str, status: int) -> bytes:
    """An error in the shape of OpenAI and vLLM."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})
