"""What holds for the emulated tokenizer and for replies, whatever the text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agentserve.emulator.replies import Model
from agentserve.emulator.tokens import ASSISTANT, USER, StreamDecoder, block_keys, decode, encode, is_token

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text("aZ 0.\n\té日🙂/{}", max_size=60)


@given(texts)
def test_text_survives_the_tokenizer(text):
    ids = encode(text)

    assert decode(ids) == text
    assert all(map(is_token, ids))


@given(texts, st.lists(st.integers(0, 40)))
def test_a_stream_of_any_chunks_gives_the_same_text(text, sizes):
    ids, decoder, parts, start = encode(text), StreamDecoder(), [], 0
    for size in [*sizes, len(ids)]:
        parts.append(decoder.feed(ids[start : start + size]))
        start += size

    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_any_ids_decode(ids):
    assert isinstance(decode(ids), str)
    assert isinstance(StreamDecoder().feed(ids), str)


@given(texts, st.lists(st.integers(1, 30), max_size=5), st.integers(0, 80))
@settings(max_examples=80)
def test_a_reply_goes_on_exactly_from_any_cut(text, cuts, minimum):
    prompt = [USER, *encode(text), ASSISTANT]
    whole = list(Model().reply(prompt, minimum).ids)
    held = 0
    for cut in cuts:
        held = min(held + cut, len(whole) - 1)
        reply = Model().reply(prompt + whole[:held], max(0, minimum - held))

        assert reply.given == held
        assert list(reply.ids) == whole


@given(st.integers(1, 500), texts)
def test_a_directive_sets_the_number_of_tokens(count, text):
    prompt = [USER, *encode(f"{text}[[reply tokens={count}]]"), ASSISTANT]

    reply = Model().reply(prompt)

    assert len(reply.ids) == count
    assert "\ufffd" not in decode(reply.ids)


@given(st.lists(st.integers(0, 1000), max_size=100), st.lists(st.integers(0, 1000), max_size=100))
def test_block_keys_are_equal_exactly_for_equal_prefixes(left, right):
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1

    equal = [a == b for a, b in zip(block_keys(left, 4), block_keys(right, 4), strict=False)]

    assert equal == [index < shared // 4 for index in range(len(equal))]
