"""Users' profile files: where they are named, how they reach every part, and what is said of bad ones."""

from pathlib import Path

import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.errors import BadInput
from agentserve.local.fleet import read_fleet
from agentserve.profile_files import read_profiles
from agentserve.settings import load_settings
from agentserve.workers.config import EngineConfig
from agentserve.workers.discovery import check_gpu

PROFILE = """
gpu = "rtx-4090"
model = "my-llama"
prefill_s = [0.01, 4e-5, 1e-9]
decode_s = [0.016, 1e-4, 1e-7]
kv_bytes_per_token = 131072
kv_capacity_tokens = 40000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    return path


def test_files_are_named_by_the_variable_or_by_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVE_PROFILES", "a.toml:b/c.toml")
    assert load_settings().profiles == (Path("a.toml"), Path("b/c.toml"))
    assert load_settings(profiles=[Path("d.toml")]).profiles == (Path("d.toml"),)
    monkeypatch.delenv("AGENTSERVE_PROFILES")
    assert load_settings().profiles == ()


def test_a_worker_may_stand_beside_an_own_gpu(file: Path) -> None:
    book = read_profiles([file])
    check_gpu(EngineConfig(engine_url="http://h:1", gpu="RTX-4090", profiles=book))
    with pytest.raises(BadInput, match="unknown gpu 'b200'; known: a100-80g, h100, h200, rtx-4090"):
        check_gpu(EngineConfig(engine_url="http://h:1", gpu="b200", profiles=book))


def test_an_own_gpu_can_be_emulated(file: Path) -> None:
    book = read_profiles([file])
    config = EmulatorConfig(gpu="rtx-4090", model="my-llama", profiles=book, kv_link_bytes_per_s=1e9)
    assert config.profile.decode_base_s == 0.016
    assert config.capacity_tokens == 40_000
    with pytest.raises(BadInput, match="kv_link_bytes_per_s is not in the GPU's profile"):
        EmulatorConfig(gpu="rtx-4090", model="my-llama", profiles=book)


def test_a_fleet_file_names_profiles_beside_itself(file: Path) -> None:
    fleet_file = file.with_name("fleet.toml")
    fleet_file.write_text('model = "my-llama"\nprofiles = ["mine.toml"]\n[[workers]]\ngpu = "rtx-4090"\n')
    assert read_fleet(fleet_file).profiles == (file,)

    fleet_file.write_text('model = "my-llama"\n[[workers]]\ngpu = "rtx-4090"\n')
    assert read_fleet(fleet_file, [file]).profiles == (file,)
    with pytest.raises(BadInput, match=r"fleet\.toml: unknown gpu 'rtx-4090'"):
        read_fleet(fleet_file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu = ", r"mine\.toml: not TOML"),
        (
            PROFILE.replace("4e-5", '"fast"'),
            r"mine\.toml: prefill_s\[1\]: must be a finite number of at least 0, is 'fa",
        ),
        (PROFILE + "colour = 1\n", r"mine\.toml: colour: no such key"),
        ("#" * 300_000, r"mine\.toml: 300,000 bytes, at most 262,144 are read"),
    ],
)
def test_a_bad_file_is_told_with_its_name_the_key_and_why(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(BadInput, match=words):
        read_profiles([file])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"profile file .*none\.toml: cannot be read \(No such file"):
        read_profiles([tmp_path / "none.toml"])
