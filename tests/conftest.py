"""What every test shares: no test reads the caller's AGENTSERVE_* environment."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTSERVE_")]:
        monkeypatch.delenv(name)
