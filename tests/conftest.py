"""What every test shares: no test reads the caller's AGENTSERVE_* environment; CI draws the same examples each time."""

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTSERVE_")]:
        monkeypatch.delenv(name)
