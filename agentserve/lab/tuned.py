"""Which parameters does the lab give a policy whose scenario says nothing of them? The best that tuning found.

tuned.toml is written by `python -m benchmarks.lab.tune` of the repository, from workloads that no shipped scenario
evaluates on; our own policy is not in it. So that a comparison is one with each published policy at its best,
scenarios start from these, and name only what they want otherwise.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

TUNED_FILE: Final = Path(__file__).with_name("tuned.toml")


def tuned_parameters(policy: str) -> Mapping[str, Any]:
    """The recorded parameters of a policy; none for one that was not tuned."""
    return _tuned().get(policy, {})


@cache
def _tuned() -> Mapping[str, Mapping[str, Any]]:
    return dict(tomllib.loads(TUNED_FILE.read_text("utf-8"))["policies"])
