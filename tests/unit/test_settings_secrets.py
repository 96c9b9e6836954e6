"""Settings from a folder of secrets: what the environment lacks is read there."""

from pathlib import Path

import pytest

from agentserve.errors import BadInput
from agentserve.settings import load_settings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTSERVE_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("AGENTSERVE_MQTT_URL", raising=False)
    (tmp_path / "agentserve_mqtt_url").write_text("mqtt://h100-1:from-file@mosquitto:1883\n")
    return tmp_path


def test_a_setting_is_read_from_its_file(secrets: Path) -> None:
    assert load_settings().mqtt_url == "mqtt://h100-1:from-file@mosquitto:1883"


def test_environment_and_flags_win_over_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_MQTT_URL", "mqtt://from-environment")
    assert load_settings().mqtt_url == "mqtt://from-environment"
    assert load_settings(mqtt_url="mqtt://from-flag").mqtt_url == "mqtt://from-flag"


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(BadInput, match=r"AGENTSERVE_SECRETS_DIR='/nowhere/at/all': no such folder"):
        load_settings()
