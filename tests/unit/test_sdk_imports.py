"""What is loaded when: importing the packages costs nothing of LangGraph, and a transport does not need it either."""

import subprocess
import sys

import pytest

import agentserve
from agentserve import sdk


@pytest.mark.parametrize("module", ["agentserve", "agentserve.sdk", "agentserve.sdk.transport", "workflows.catalog"])
def test_these_modules_do_not_load_langgraph(module: str) -> None:
    code = f"import {module}, sys; print([n for n in sys.modules if n.startswith(('langgraph', 'langchain'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert [getattr(sdk, name).__name__ for name in sdk.__all__] == sdk.__all__
    assert agentserve.serve is sdk.serve
    assert agentserve.ChatModel is sdk.ChatModel
    assert agentserve.current_run is sdk.current_run


@pytest.mark.parametrize("module", [agentserve, sdk])
def test_an_unknown_name_is_an_attribute_error(module: object) -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        module.nothing_like_it  # type: ignore[attr-defined]  # noqa: B018  # reading it is the test
