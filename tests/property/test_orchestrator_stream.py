"""Whatever engines do and wherever a stream is cut, the client sees the uninterrupted answer."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentserve.engines.adapter import Delta
from agentserve.orchestrator.request import CHAT, COMPLETIONS, CallRequest, Resume
from agentserve.orchestrator.stream import JoinedStream, Piece

PROMPT = (7, 8, 9)


@dataclass
class FakeModel:
    """Says `tokens` (bytes each) whatever the prompt; ids are positions, so a wrong continuation shows at once."""

    tokens: list[bytes]

    def text(self, ids: Iterable[int], errors: str = "replace") -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors=errors)

    def _ends_on_a_character(self, count: int) -> bool:
        return not self.text(range(count)).endswith("\ufffd")

    def run(self, emitted: int, limit: int | None, chunk: int) -> list[Delta]:
        end = len(self.tokens) if limit is None else min(len(self.tokens), emitted + limit)
        shown, deltas = emitted, []
        for start in range(emitted, end, chunk):
            upto = min(end, start + chunk)
            clean = next((end for end in range(upto, shown, -1) if self._ends_on_a_character(end)), shown)
            text, shown = self.text(range(shown, clean)), clean
            reason = None
            if upto == end:
                reason = "stop" if end == len(self.tokens) else "length"
            prompt = (*PROMPT, *range(emitted)) if start == emitted else None
            deltas.append(
                Delta(
                    text=text,
                    token_ids=tuple(range(start, upto)),
                    prompt_ids=prompt,
                    finish_reason=reason,
                    choice={"index": 0},
                )
            )
        return deltas


@dataclass
class Client:
    """Collects pieces and checks that ids and text always agree."""

    model: FakeModel
    pieces: list[Piece] = field(default_factory=list)

    def take(self, piece: Piece | None, *, exact: bool) -> None:
        if piece is None:
            return
        self.pieces.append(piece)
        if exact and piece.finish_reason is None:
            # Engines may merge tokens of an incomplete character into a piece: a few ids may be ahead of the text.
            assert any(self.model.text(self.ids[:n]) == self.text for n in range(len(self.ids), -1, -1))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.token_ids]


def request(*, path: str = CHAT, resume: Resume | None = None, **body: Any) -> CallRequest:
    return CallRequest(
        request_id="r",
        path=path,
        body={"return_token_ids": True, **body},
        model="m",
        run_id="run",
        step_id="s",
        workflow="w",
        node="n",
        resume=resume,
    )


def play(stream: JoinedStream, model: FakeModel, cuts: list[int], chunk: int, resumed: Client | None = None) -> Client:
    """Run attempts, each cut after the given number of deltas; the last one to its end."""
    client = Client(model)
    for cut in [*cuts, None]:
        last = stream.finish_if_exhausted()
        if last is not None:
            client.take(last, exact=True)
            return client
        while (ids := stream.doubtful_ids) is not None and not stream.judge(model.text(ids)):
            pass
        replay = stream.replay_ids
        emitted = 0 if replay is None else len(replay) - len(PROMPT)
        if replay is not None:
            assert replay == (*PROMPT, *range(emitted))
        for delta in model.run(emitted, stream.max_tokens_left, chunk)[:cut]:
            client.take(stream.feed(delta), exact=resumed is None)
            if stream.finish_reason is not None:
                return client
        stream.cut()
    return client


texts = st.text(alphabet=st.sampled_from("ab \n.é漢🙂"), min_size=1, max_size=40)


@st.composite
def models(draw: st.DrawFn) -> FakeModel:
    data = draw(texts).encode()
    tokens = []
    while data:
        size = draw(st.integers(1, 3))
        tokens.append(data[:size])
        data = data[size:]
    return FakeModel(tokens)


cut_points = st.lists(st.integers(0, 12), max_size=5)


@given(models(), cut_points, st.integers(1, 3), st.one_of(st.none(), st.integers(1, 50)))
def test_a_cut_stream_equals_the_uninterrupted_one(
    model: FakeModel, cuts: list[int], chunk: int, limit: int | None
) -> None:
    body = {} if limit is None else {"max_tokens": limit}
    whole = play(JoinedStream(request(**body), None), model, [], chunk)
    stream = JoinedStream(request(**body), None)
    joined = play(stream, model, cuts, chunk)
    assert joined.text == whole.text
    assert joined.ids == whole.ids
    assert joined.pieces[-1].finish_reason == whole.pieces[-1].finish_reason
    assert [piece.finish_reason for piece in joined.pieces[:-1]] == [None] * (len(joined.pieces) - 1)
    usage = stream.usage()
    assert usage["prompt_tokens"] == len(PROMPT)
    assert usage["completion_tokens"] == len(whole.ids)
    assert usage["total_tokens"] == len(PROMPT) + len(whole.ids)


@given(models(), cut_points, st.lists(st.text(alphabet="ab .é🙂", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_is_found_wherever_the_cut_is(model: FakeModel, cuts: list[int], stops: list[str]) -> None:
    whole = play(JoinedStream(request(stop=stops), None), model, [], 1)
    joined = play(JoinedStream(request(stop=stops), None), model, cuts, 1)
    assert joined.text == whole.text
    assert joined.ids == whole.ids
    full = b"".join(model.tokens).decode()
    ends = [full.find(stop) + len(stop) for stop in stops if stop in full]
    if ends:
        first = min(ends)
        begin = min(full.find(stop) for stop in stops if stop in full and full.find(stop) + len(stop) == first)
        if not any(full.find(stop) < begin for stop in stops if stop in full):
            assert joined.text == full[:begin]
        assert joined.pieces[-1].finish_reason == "stop"
        assert not any(stop in joined.text for stop in stops)
    else:
        assert joined.text == full


@given(models(), st.integers(0, 20), cut_points, st.integers(1, 3))
def test_a_resumed_client_gets_exactly_what_follows(model: FakeModel, seen: int, cuts: list[int], chunk: int) -> None:
    first = Client(model)
    stream = JoinedStream(request(), None)
    for delta in model.run(0, None, chunk)[:seen]:
        first.take(stream.feed(delta), exact=True)
    if stream.finish_reason is not None or not first.pieces:
        return
    resume = Resume(PROMPT, tuple(first.ids))
    resumed = JoinedStream(request(resume=resume), None)
    rest = play(resumed, model, cuts, chunk, resumed=first)
    assert first.text + rest.text == b"".join(model.tokens).decode()
    assert [*first.ids, *rest.ids] == list(range(len(model.tokens)))
    assert resumed.usage()["completion_tokens"] == len(model.tokens)


@given(models(), cut_points, st.integers(1, 12))
def test_completions_without_max_tokens_stop_after_openais_sixteen(
    model: FakeModel, cuts: list[int], chunk: int
) -> None:
    joined = play(JoinedStream(request(path=COMPLETIONS), None), model, cuts, chunk)
    assert len(joined.ids) == min(16, len(model.tokens))
