"""`agentserve profile` against an emulated engine at speed 1: it finds the profile that times the emulator.

Here rather than with the emulator's other tests, since a machine that is busy with something else measures itself.
"""

from pathlib import Path
from typing import Final

import pytest

from agentserve.profile_files import read_profiles
from scheduler.profiles import load_profile
from tests.e2e.live import agentserve
from tests.integration.profile_parts import emulator, ratios

GPU: Final = "h100"
MODEL: Final = "llama-3.1-8b"


@pytest.mark.timeout(240)
async def test_the_emulators_own_profile_is_found_within_five_percent(tmp_path: Path) -> None:
    flags = ("--gpu", GPU, "--budget", "60s", "--max-prompt-tokens", "16384")
    async with emulator(gpu=GPU, model=MODEL) as url:
        ran = await agentserve("profile", url, *flags, cwd=tmp_path, within_s=200)
    assert ran.code == 0, ran.err
    (file,) = (tmp_path / "profiles").glob("*.toml")
    compared = ratios(read_profiles([file])(GPU, MODEL), load_profile(GPU, MODEL))
    print(ran.out, *(f"{what:28} {ratio:.3f}" for what, ratio in compared.items()), sep="\n")
    worst = max(abs(ratio - 1) for ratio in compared.values())
    print(f"the emulator's own profile is found within {worst:.1%} at {len(compared)} points")
    assert {what: ratio for what, ratio in compared.items() if abs(ratio - 1) > 0.05} == {}
    assert "calls that the fit has not seen" in ran.out
