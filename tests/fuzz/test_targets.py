"""Bad input ends in a known error: a short, seeded attack on every target, and what once broke it."""

import logging
from collections.abc import Iterator

import pytest

from tests.fuzz.__main__ import SHARES
from tests.fuzz.attack import TARGETS, attack, corpus
from tests.fuzz.target import Target

CASES = 1000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bad_input_ends_in_a_known_error(target: Target) -> None:
    found = attack(target, round(CASES * SHARES.get(target.name, 1.0)), first_seed=0)
    assert [defect.story for defect in found] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_once_broke_a_target_does_so_no_more(target: Target) -> None:
    for given in corpus(target):
        target.survives(given)


def test_a_defect_is_found_made_small_and_told() -> None:
    def take(given: bytes) -> None:
        if b"x" in given:
            raise RuntimeError("a defect")

    (defect,) = attack(Target("own", lambda draw: draw[2:], take), 2000, first_seed=0)
    assert defect.input == b"x"
    assert defect.story.startswith("RuntimeError: a defect")
