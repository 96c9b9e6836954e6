"""Keys of KV blocks made from a trace's ranges of block ids."""

import pytest

from agentserve.lab.plans import RunPlan, StepPlan
from agentserve.lab.prefix_keys import answer_keys, coarse, prompt_keys


def step(blocks: tuple[tuple[int, int], ...], block_tokens: float = 64.0, **changes: object) -> StepPlan:
    tokens = int(sum(count for _, count in blocks) * block_tokens)
    given: dict[str, object] = {
        "step_id": "s", "node": "n", "prompt_tokens": tokens, "output_tokens": 1, "blocks": blocks,
        "block_tokens": block_tokens, "block_space": "x",
    }  # fmt: skip
    return StepPlan(**{**given, **changes})  # type: ignore[arg-type]


def keys(one: StepPlan, block_tokens: int = 64) -> tuple[int, ...]:
    plan = RunPlan(run_id="r", workflow="w", arrival_s=0.0, session_id="q", steps=(one,))
    return prompt_keys(plan, one, block_tokens)


def test_a_longer_prompt_begins_with_the_keys_of_the_shorter() -> None:
    short, long = keys(step(((0, 5),))), keys(step(((0, 9), (50, 3))))
    assert len(short) == 5
    assert long[:5] == short
    assert len(set(long)) == 12


def test_a_prompt_that_leaves_the_common_path_shares_no_later_key() -> None:
    left, right = keys(step(((0, 4), (10, 4)))), keys(step(((0, 4), (20, 2), (10, 4))))
    assert left[:4] == right[:4]
    assert not set(left[4:]) & set(right[4:])


def test_prompts_of_other_spaces_share_nothing() -> None:
    assert not set(keys(step(((0, 4),)))) & set(keys(step(((0, 4),), block_space="y")))


@pytest.mark.parametrize("trace_tokens", [16.0, 64.0, 19.2, 100.0, 512.0])
@pytest.mark.parametrize("engine_tokens", [16, 64, 128, 700])
def test_every_block_of_a_prompt_has_a_key_of_its_own(trace_tokens: float, engine_tokens: int) -> None:
    one = step(((0, 7), (100, 1), (40, 9)), trace_tokens)
    found = keys(one, engine_tokens)
    assert len(found) == one.prompt_tokens // engine_tokens
    assert len(set(found)) == len(found)


def test_text_beyond_the_named_blocks_has_no_key() -> None:
    assert len(keys(step(((0, 3),), prompt_tokens=1000))) == 3
    assert keys(step((), prompt_tokens=1000)) == ()


def test_recorded_texts_share_keys_as_far_as_they_are_equal() -> None:
    same = "word " * 200
    left = keys(step((), prompt_text=same + "left " * 60, prompt_tokens=300))
    right = keys(step((), prompt_text=same + "right" * 60, prompt_tokens=300))
    assert left[:3] == right[:3]
    assert left[3] != right[3]


def test_answers_fill_blocks_that_nobody_else_has() -> None:
    prompt = keys(step(((0, 3),)))
    mine, other = answer_keys("r1", len(prompt), 500, 64), answer_keys("r2", len(prompt), 500, 64)
    assert len(mine) == 500 // 64 - 3
    assert not set(mine) & (set(other) | set(prompt))


def test_coarse_keys_name_the_same_prefixes() -> None:
    assert coarse((1, 2, 3, 4, 5, 6, 7, 8, 9), 64, 256) == (4, 8)
    assert coarse((1, 2), 512, 256) == (1, 2)


@pytest.mark.parametrize("trace_tokens", [16.0, 64.0, 19.2, 100.0, 512.0])
@pytest.mark.parametrize("engine_tokens", [16, 64, 128, 700])
def test_equal_prefixes_have_equal_keys_wherever_a_prompt_ends_in_a_range(
    trace_tokens: float, engine_tokens: int
) -> None:
    whole = keys(step(((0, 7), (100, 1), (40, 60)), trace_tokens), engine_tokens)
    assert whole
    for cut in [((0, 3),), ((0, 7),), ((0, 7), (100, 1)), ((0, 7), (100, 1), (40, 1)), ((0, 7), (100, 1), (40, 59))]:
        shorter = keys(step(cut, trace_tokens), engine_tokens)
        assert len(shorter) == int(sum(count for _, count in cut) * trace_tokens) // engine_tokens
        assert shorter == whole[: len(shorter)]


@pytest.mark.parametrize("trace_tokens", [16.0, 64.0, 19.2, 100.0, 512.0])
@pytest.mark.parametrize("engine_tokens", [16, 64, 128, 700])
def test_the_block_in_which_two_prompts_part_is_shared_no_more(trace_tokens: float, engine_tokens: int) -> None:
    left = keys(step(((0, 7), (100, 50)), trace_tokens), engine_tokens)
    right = keys(step(((0, 7), (300, 2), (100, 50)), trace_tokens), engine_tokens)
    common = int(7 * trace_tokens) // engine_tokens
    assert left[:common] == right[:common]
    assert not set(left[common:]) & set(right[common:])


@pytest.mark.parametrize(("trace_tokens", "engine_tokens"), [(64.0, 64), (512.0, 64), (100.0, 64)])
def test_how_a_range_is_cut_changes_no_key(trace_tokens: float, engine_tokens: int) -> None:
    whole = keys(step(((5, 13), (40, 2)), trace_tokens), engine_tokens)
    assert keys(step(((5, 10), (15, 3), (40, 1), (41, 1)), trace_tokens), engine_tokens) == whole
