"""`agentserve profile` against emulated engines: what it measures, writes, leaves alone and asks for."""

import re
from pathlib import Path
from typing import Final

import httpx
import pytest

from agentserve.errors import BadInput, Conflict
from agentserve.profile_files import read_profiles
from agentserve.profiler.client import EngineClient
from agentserve.profiler.profile import Request, profile_engine
from scheduler.profiles import load_profile
from tests.e2e.live import agentserve
from tests.integration.profile_parts import emulator

GPU: Final = "h100"
MODEL: Final = "llama-3.1-8b"


async def test_the_command_writes_a_profile_that_can_be_read_and_its_plot(tmp_path: Path) -> None:
    flags = ("--gpu", GPU, "--budget", "8s", "--max-prompt-tokens", "4096")
    async with emulator(gpu=GPU, model=MODEL) as url:
        ran = await agentserve("profile", url, *flags, cwd=tmp_path)
    assert ran.code == 0, ran.err
    (file,) = (tmp_path / "profiles").glob("*.toml")
    assert file.name == "h100--llama-3.1-8b.toml"
    assert file.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    found = read_profiles([file])(GPU, MODEL)
    assert found.kv_capacity_tokens == load_profile(GPU, MODEL).kv_capacity_tokens // 16 * 16
    assert found.prefill_s(2048) > found.prefill_s(256) > 0
    assert "calls that the fit has not seen" in ran.out


async def test_a_written_profile_times_another_emulator(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'gpu = "toy"\nmodel = "toy-1b"\nprefill_s = [0.002, 1e-5, 0]\ndecode_s = [0.004, 0, 0]\n'
        "kv_bytes_per_token = 1024\nkv_capacity_tokens = 20000\nkv_link_bytes_per_s = 1e9\n"
    )
    async with emulator(gpu="toy", model="toy-1b", profiles=own) as url, EngineClient(url) as client:
        result = await profile_engine(
            client,
            Request(
                gpu="toy", budget_s=6.0, kv_bytes_per_token=1024, kv_capacity_tokens=20_000, max_prompt_tokens=2048
            ),
        )

    assert result.subject.model == "toy-1b"
    assert {point.batch for point in result.points.decode} >= {1, 8}
    assert {check.batch for check in result.checks} == {1, 8}
    assert all(point.cached_tokens % 16 == 0 for point in result.points.prefill)
    assert any(point.cached_tokens for point in result.points.prefill)


async def test_an_engine_that_serves_others_is_left_alone(tmp_path: Path) -> None:
    async with emulator(speed=0.05) as url, httpx.AsyncClient(trust_env=False) as other:
        body = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        async with other.stream("POST", f"{url}/v1/completions", json=body) as response:
            assert response.status_code == 200
            async with EngineClient(url) as client:
                with pytest.raises(Conflict, match=r"serves 1 calls and 0 wait: .* give --force"):
                    await profile_engine(client, Request(gpu=GPU))


async def test_what_no_engine_and_no_profile_tells_must_be_given(tmp_path: Path) -> None:
    async with emulator() as url:
        async with EngineClient(url) as client:
            with pytest.raises(
                BadInput, match="KV size of a token of 'strange' is not known: give --kv-bytes-per-token"
            ):
                await profile_engine(client, Request(gpu=GPU, model="strange"))
        path = tmp_path / "profiles" / "h100--llama-3.1-8b.toml"
        path.parent.mkdir()
        path.write_text("mine")
        ran = await agentserve("profile", url, "--gpu", GPU, cwd=tmp_path)
    assert ran.code == 2
    assert re.search(r"profile file profiles/\S+ exists: give --force", ran.err)
    assert path.read_text() == "mine"
