"""docs/policies.md: its table knows every policy and parameter, and its example is a policy that works."""

import re
from pathlib import Path
from typing import Any

from scheduler.config import SchedulerConfig
from scheduler.core import Scheduler
from scheduler.decisions import Dispatch
from scheduler.events import InstanceJoined
from scheduler.policies import policy_names, policy_parameters
from tests.unit.scheduler_builders import call, profile, spec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text()


def rows() -> dict[str, list[str]]:
    """Parameters by policy, as the table tells them."""
    table = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", told) for name, told in table}


def test_the_table_has_every_policy_in_order() -> None:
    assert list(rows()) == list(policy_names())


def test_the_table_has_every_parameter_of_the_baselines() -> None:
    told = {name: params for name, params in rows().items() if name != "agentserve"}
    assert told == {name: list(policy_parameters(name)) for name in told}


def test_the_readme_names_every_policy() -> None:
    table = re.findall(r"^\| (`[\w`, ]+`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    assert set(policy_names()) <= set(named)


def test_the_example_is_a_policy() -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    made: dict[str, Any] = {}
    exec(compile(example, "most_free.py", "exec"), made)
    scheduler = Scheduler(SchedulerConfig(), made["POLICY"](), profile)
    for name, tokens in (("a", 1_000), ("b", 2_000)):
        joined = InstanceJoined(event_id=name, instance=spec(name, kv_capacity_tokens=tokens))
        scheduler.handle(joined, 0.0)
    placed = scheduler.handle(call("r"), 1.0)[0]
    assert isinstance(placed, Dispatch)
    assert placed.decode_instance == "b"
    assert [candidate.verdict for candidate in placed.reason.candidates] == ["chosen", "1000 tokens free"]
