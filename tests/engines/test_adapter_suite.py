"""The adapter suite on real vLLM, case by case as on the emulator."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.adapter_suite.cases import CASES, Subject, run_case
from tests.engines.conftest import Pair


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_vllm(case: Callable[[Subject], Awaitable[Any]], vllm_pair: Pair) -> None:
    first, second = vllm_pair
    await run_case(case, first.url, second.url, first.model)
