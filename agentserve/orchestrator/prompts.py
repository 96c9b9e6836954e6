"""How long is a prompt, and which prefix does it share? Estimates without a tokenizer; nothing of a prompt is kept."""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

FIRST_CHARS_PER_TOKEN: Final = 4.0
CHUNK_BYTES: Final = 1024
CHUNK_TOKENS: Final = 256
_LEARNING_RATE: Final = 0.1
_MAX_MODELS: Final = 256
_CHARS_PER_TOKEN_RANGE: Final = (0.5, 16.0)


@dataclass(frozen=True, slots=True)
class PromptEstimate:
    """`hashes[i]` names the first `(i + 1) * block_tokens` tokens. `chars` is None for a prompt of ids."""

    tokens: int
    hashes: tuple[int, ...]
    block_tokens: int
    chars: int | None


class PromptSizer:
    """Estimates prompt tokens from characters, and learns their ratio per model from the usage that engines report."""

    def __init__(self) -> None:
        self._chars_per_token: OrderedDict[str, float] = OrderedDict()

    def estimate(self, model: str, body: Mapping[str, Any], ids: tuple[int, ...] | None = None) -> PromptEstimate:
        """Size and prefix hashes of a call's prompt; exact for a prompt of token ids."""
        prompt, salt = body.get("prompt"), body.get("cache_salt")
        seed = model if not salt else f"{model}\0{salt}"  # as on engines: equal prompts of other salts share nothing
        if ids is None and isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
            ids = tuple(prompt)
        if ids is not None:
            return PromptEstimate(len(ids), chained(seed, array("q", ids).tobytes(), CHUNK_TOKENS * 8), 256, None)
        rendered = b"".join(_render(body))
        chars = len(rendered.decode("utf-8", "replace")) if not rendered.isascii() else len(rendered)
        ratio = self._chars_per_token.get(model, FIRST_CHARS_PER_TOKEN)
        return PromptEstimate(
            max(1, round(chars / ratio)),
            chained(seed, rendered, CHUNK_BYTES),
            max(1, round(CHUNK_BYTES / ratio)),
            chars,
        )

    def learn(self, model: str, chars: int | None, prompt_tokens: int) -> None:
        """An engine counted `prompt_tokens` for a prompt of `chars` characters."""
        if not chars or prompt_tokens <= 0:
            return
        low, high = _CHARS_PER_TOKEN_RANGE
        seen = min(high, max(low, chars / prompt_tokens))
        old = self._chars_per_token.get(model)
        self._chars_per_token[model] = seen if old is None else old + _LEARNING_RATE * (seen - old)
        self._chars_per_token.move_to_end(model)
        if len(self._chars_per_token) > _MAX_MODELS:
            self._chars_per_token.popitem(last=False)


def chained(seed: str, content: bytes, chunk_bytes: int) -> tuple[int, ...]:
    """One 64-bit hash per full chunk, each over everything up to its end; the rest after the last chunk has none."""
    state = blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=8)
    view = memoryview(content)
    hashes = []
    for end in range(chunk_bytes, len(content) + 1, chunk_bytes):
        state.update(view[end - chunk_bytes : end])
        hashes.append(int.from_bytes(state.copy().digest(), "little", signed=True))
    return tuple(hashes)


def _render(body: Mapping[str, Any]) -> Iterator[bytes]:
    """The prompt's bytes in the order in which chat templates put them: tools, then messages."""
    for name in ("tools", "functions"):
        if body.get(name):
            yield orjson.dumps(body[name])
    for message in body.get("messages") or ():
        yield f"\n{message.get('role')}\n".encode()
        content = message.get("content")
        yield content.encode("utf-8", "surrogatepass") if isinstance(content, str) else orjson.dumps(content)
        if message.get("tool_calls"):
            yield orjson.dumps(message["tool_calls"])
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        yield prompt.encode("utf-8", "surrogatepass")
    elif prompt is not None:
        yield orjson.dumps(prompt)
