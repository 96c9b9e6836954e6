"""The adapter suite on emulated engines; `make engines-test` runs the same cases on real vLLM."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from tests.adapter_suite.cases import CASES, Subject, run_case

ENGINE = EmulatorConfig(gpu="h100", speed=10, scheduling_policy="priority")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_the_emulator(case: Callable[[Subject], Awaitable[Any]]) -> None:
    async with running(ENGINE) as url, running(replace(ENGINE)) as other_url:
        await run_case(case, url, other_url, ENGINE.model)
