"""How does one stream stay seamless while engines change under it? What was emitted, what to replay, what to pass on.

Pure: deltas in, pieces out. Two ways to read a call, fixed when it begins:
- owned: one choice of plain text with token ids. Text is passed on at token boundaries only, so that at any cut the ids
  and the text the client holds agree; stop strings are ours to find; the call can go on elsewhere from its ids.
- passed through: everything else (tools, logprobs, several choices). The engine's choices go to the client unread, and
  nothing can move once a part was sent.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentserve.engines.adapter import Delta
from agentserve.orchestrator.request import CallRequest
from agentserve.orchestrator.stops import StopMatcher

_REPLACEMENT = "\ufffd"
_DOUBTFUL_TOKENS = 8
"""How many tokens before those in doubt are decoded with them, so that a broken beginning is not taken for the end."""
_PLAIN_KEYS = frozenset({"role", "content"})


class Piece(NamedTuple):
    """What may go to the client now. `choice`: the engine's own choice object, to be passed on as it is."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    choice: Mapping[str, Any] | None = None


class JoinedStream:
    """One call's output over all its attempts. `refusal`: why it cannot move, None if it can."""

    def __init__(self, request: CallRequest, refusal: str | None) -> None:
        self.refusal = refusal
        self.finish_reason: str | None = None
        self.has_released = False
        """Whether any output was passed on."""
        self.cached_tokens: int | None = None
        """Prompt tokens that the first attempt found in its engine's prefix cache, as far as known."""
        self.prompt_ids: tuple[int, ...] | None = None
        self._owned = refusal is None
        self._request = request
        self._min_tokens = request.min_tokens
        self._keeps_stop = bool(request.body.get("include_stop_str_in_output"))
        self._resumed = request.resume is not None
        self._begin()

    def _begin(self) -> None:
        self._ids: list[int] = []
        self._uncounted = 0  # text pieces without token ids, each taken for one token
        self._settled = 0
        self._doubt: tuple[int, str | None] | None = None
        self._released = 0
        self._held: deque[tuple[str, int]] = deque()
        self._held_chars = 0
        self._matcher = StopMatcher(self._request.stops if self._owned else ())
        self._usage: Mapping[str, Any] | None = None
        self._cuts = 0
        self._replayed = 0
        self._stopped = False
        if self._request.resume is not None:
            self.prompt_ids = self._request.resume.prompt_ids
            self._ids = list(self._request.resume.token_ids)
            self._settled = self._released = len(self._ids)
            if self._ids:
                self._doubt = (max(0, self._settled - _DOUBTFUL_TOKENS), None)
        self._before = self._settled  # tokens that earlier attempts emitted

    @property
    def owns_stops(self) -> bool:
        """Whether stop strings are found here, so that engines must not be told of them."""
        return self._owned and bool(self._matcher)

    @property
    def owned(self) -> bool:
        """Whether text and token ids are followed here, rather than passed through unread."""
        return self._owned

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: what the engine still makes is not wanted."""
        return self._stopped

    @property
    def replayed_tokens(self) -> int:
        """Tokens that the present attempt had to prefill again, the prompt included; 0 for a first attempt."""
        return self._replayed

    @property
    def output_tokens(self) -> int:
        """Tokens emitted so far, over all attempts."""
        return len(self._ids) + self._uncounted

    @property
    def replay_ids(self) -> tuple[int, ...] | None:
        """Prompt ids + emitted ids for the next attempt; None: it begins with the client's own body."""
        if self.prompt_ids is None or not (self._settled or self._resumed):
            return None
        return (*self.prompt_ids, *self._ids[: self._settled])

    @property
    def can_go_on(self) -> bool:
        """Whether another attempt can continue what was emitted (or nothing was)."""
        if self.output_tokens == 0 and not self.has_released:
            return True
        return self._owned and self.refusal is None and self.prompt_ids is not None and not self._uncounted

    @property
    def max_tokens_left(self) -> int | None:
        """The client's budget less what was emitted; None: no budget."""
        budget = self._request.max_tokens
        return None if budget is None else budget - self._settled

    @property
    def min_tokens_left(self) -> int | None:
        """What is left of min_tokens; None if nothing."""
        return max(0, self._min_tokens - self._settled) or None

    def feed(self, delta: Delta) -> Piece | None:
        """Take one delta of the present attempt; return what it allows to pass on, if anything."""
        if delta.usage is not None:
            self._note_usage(delta.usage)
        if delta.choice is None or self._stopped:
            return None
        if delta.prompt_ids is not None and self.prompt_ids is None:
            self.prompt_ids = delta.prompt_ids
        if not self._owned:
            return self._pass_through(delta)
        if delta.token_ids:
            self._ids.extend(delta.token_ids)
        elif delta.text:
            self._uncounted += 1
        opaque = _opaque(delta.choice)
        if opaque:
            return self._opaque(delta)
        if not delta.text and delta.finish_reason is None:
            return None  # an incomplete character, or the opening of a chat: nothing to show at this boundary
        begin, self._settled = self._settled, len(self._ids)
        self._doubt = (max(0, begin - _DOUBTFUL_TOKENS), delta.text) if len(delta.token_ids) > 1 else None
        if self._matcher:
            return self._matched(delta.text, delta.finish_reason)
        return self._release(delta.text, self._settled, delta.finish_reason)

    def cut(self) -> None:
        """The attempt ended before its finish: forget trailing tokens without text; they will be made again."""
        self._cuts += 1
        self._usage = None
        del self._ids[self._settled :]
        self._before = self._settled
        self._replayed = len(self.replay_ids or ())

    @property
    def doubtful_ids(self) -> tuple[int, ...] | None:
        """The last ids to replay, if they may end inside a character: engines merge tokens into one piece of text.

        Their text, decoded alone, is to be given to `judge` before the replay; None if the cut is known to be clean.
        """
        if self._doubt is None or self.replay_ids is None or self._doubt[0] >= self._settled:
            return None
        return tuple(self._ids[self._doubt[0] : self._settled])

    def judge(self, decoded: str) -> bool:
        """Whether the replay is clean, given the text of `doubtful_ids`; else it now ends one token earlier."""
        shown = None if self._doubt is None else self._doubt[1]
        if not decoded.endswith(_REPLACEMENT) or (shown is not None and shown.endswith(_REPLACEMENT)):
            self._doubt = None
            return True
        self._settled -= 1
        self._before = self._settled
        del self._ids[self._settled :]
        return False

    def restart(self) -> None:
        """Forget everything: the call begins anew elsewhere, and nothing had been shown."""
        self.finish_reason = None
        self.has_released = False
        self.prompt_ids = None
        self._begin()

    def finish_if_exhausted(self) -> Piece | None:
        """After a cut: the last piece if the budget was used up, so that no engine is needed for what is left."""
        left = self.max_tokens_left
        if left is None or left > 0 or not self._settled:
            return None
        return self._release_all("length")

    def usage(self) -> dict[str, Any]:
        """Usage of the whole call: the original prompt, all emitted tokens, what the first attempt found cached."""
        if self._usage is not None and not self._cuts and not self._resumed and not self._stopped:
            return dict(self._usage)
        known = self._usage or {}
        prompt = len(self.prompt_ids) if self.prompt_ids is not None else int(known.get("prompt_tokens") or 0)
        completion = self.output_tokens
        if not self._stopped:  # tokens without ids of their own are counted by the engine alone
            completion = max(completion, self._before + int(known.get("completion_tokens") or 0))
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage

    def _pass_through(self, delta: Delta) -> Piece:
        if delta.token_ids:
            self._ids.extend(delta.token_ids)
        elif delta.text or _opaque(delta.choice):
            self._uncounted += 1
        self._settled = len(self._ids)
        self.has_released = True
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
        return Piece(delta.text, delta.token_ids, delta.finish_reason, delta.choice)

    def _opaque(self, delta: Delta) -> Piece:
        """A parser in the engine made this (reasoning, tool calls): from here on the call stays where it is."""
        self.refusal = "the engine parses its output"
        self._settled = len(self._ids)
        before = "".join(text for text, _ in self._held)
        self._held.clear()
        self._held_chars = 0
        self._released = self._settled
        self.has_released = True
        self.finish_reason = delta.finish_reason
        choice = dict(delta.choice or {})
        if before:
            choice["delta"] = {**choice["delta"], "content": before + delta.text}
        return Piece(before + delta.text, delta.token_ids, delta.finish_reason, choice)

    def _matched(self, text: str, finish_reason: str | None) -> Piece | None:
        found = self._matcher.feed(text, armed=len(self._ids) + self._uncounted > self._min_tokens)
        self._held.append((text, self._settled))
        self._held_chars += len(text)
        if found is not None:
            self._stopped = True
            keep = self._held_chars - len(text) + found[1 if self._keeps_stop else 0]
            return self._release_all("stop", keep)
        if finish_reason is not None:
            return self._release_all(finish_reason)
        safe = self._held_chars - self._matcher.held
        out, upto = [], self._released
        while self._held and len(self._held[0][0]) <= safe:
            piece, upto = self._held.popleft()
            safe -= len(piece)
            self._held_chars -= len(piece)
            out.append(piece)
        return self._release("".join(out), upto, None) if out else None

    def _release_all(self, finish_reason: str, keep_chars: int | None = None) -> Piece:
        text = "".join(piece for piece, _ in self._held)
        self._held.clear()
        self._held_chars = 0
        return self._release(text if keep_chars is None else text[:keep_chars], self._settled, finish_reason)

    def _release(self, text: str, upto: int, finish_reason: str | None) -> Piece:
        ids = tuple(self._ids[self._released : upto]) if self._request.wants_token_ids else ()
        self._released = max(self._released, upto)
        self.has_released = True
        self.finish_reason = finish_reason
        return Piece(text, ids, finish_reason)

    def _note_usage(self, usage: Mapping[str, Any]) -> None:
        self._usage = usage
        details = usage.get("prompt_tokens_details")
        if not self._cuts and not self._resumed and isinstance(details, Mapping):
            cached = details.get("cached_tokens")
            self.cached_tokens = cached if isinstance(cached, int) else None


def _opaque(choice: Mapping[str, Any] | None) -> bool:
    delta = choice.get("delta") if choice is not None else None
    return delta is not None and any(value for key, value in delta.items() if key not in _PLAIN_KEYS)
