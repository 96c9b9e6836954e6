"""What `agentserve engine probe` prints."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from agentserve.cli.engine import _as_json, _print, _probe
from agentserve.errors import BadInput
from tests.integration.worker_parts import FakeEngine
from tests.unit.test_workers_probe import found


async def shown(engine: FakeEngine) -> str:
    result = await found(engine)
    out = StringIO()
    _print(result, Console(width=200, file=out))
    return out.getvalue()


async def test_a_table_says_what_was_found_and_how() -> None:
    text = await shown(FakeEngine(has_kv_transfer=True))
    for words in (
        "/v1/models says owned_by vllm",
        "32 000 tokens",
        "nixl pull; vllm 0.32.0",
        "they came with a completion",
        "missing: vllm:num_preemptions_total",
    ):
        assert words in text


async def test_what_will_be_missed_comes_with_the_flags_that_lift_it() -> None:
    text = await shown(FakeEngine(has_priority=False, has_tool_parser=False, reports_cached_tokens=False))
    assert "order is kept by holding calls back at the gateway" in text
    for flags in (
        "priorities: --scheduling-policy priority",
        '"kv_connector":"NixlConnector"',
        "--enable-auto-tool-choice --tool-call-parser NAME",
        "--enable-prompt-tokens-details",
    ):
        assert flags in text


async def test_prompts_and_answers_are_not_shown() -> None:
    text = await shown(FakeEngine())
    assert "token ids out" in text
    assert "ping" not in text


async def test_the_json_object_holds_the_same() -> None:
    told: dict[str, Any] = _as_json(await found(FakeEngine(has_priority=False)))
    assert (told["kind"], told["version"], told["context_tokens"]) == ("vllm", "0.32.0", 4096)
    assert told["capabilities"]["priorities"] == {"found": False, "how": "refused with 400"}
    assert told["remedies"]["priorities"] == "--scheduling-policy priority"
    assert "vllm:num_preemptions_total" in told["missing_metrics"]
    assert any("priorities" in shortfall for shortfall in told["shortfalls"])


@pytest.mark.parametrize(
    ("url", "timeout_s", "named"),
    [("engine:8000", 1.0, "engine URL 'engine:8000'"), ("http://engine:8000", 0.0, "--timeout 0")],
)
async def test_a_bad_argument_is_named(url: str, timeout_s: float, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        await _probe(url, "auto", None, timeout_s)
    assert named in str(caught.value)
