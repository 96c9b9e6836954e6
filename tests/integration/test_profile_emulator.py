"""`agentserve profile` against an emulated engine at speed 1: it finds the profile that times the emulator."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from agentserve.errors import BadInput, Conflict
from agentserve.local.process import ChildProcess, free_port, http_ready
from agentserve.profile_files import read_profiles
from agentserve.profiler.client import EngineClient
from agentserve.profiler.profile import Request, profile_engine
from scheduler.profiles import GpuProfile, load_profile

GPU, MODEL = "h100", "llama-3.1-8b"
NEW_TOKENS = (1024, 2048, 4096, 8192, 16_000)
CACHED_TOKENS = (0, 4096, 16_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_TOKENS = (128, 1024, 4096)


@asynccontextmanager
async def emulator(**flags: object) -> AsyncIterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    argv = [sys.executable, "-m", "agentserve", "emulator", "--port", str(port), *given]
    async with ChildProcess("emulator", argv, probe=http_ready(f"{url}/health"), ready_timeout_s=60.0):
        yield url


async def agentserve(*argv: str, cwd: Path) -> tuple[int, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentserve", *argv,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=cwd,
    )  # fmt: skip
    out, _ = await child.communicate()
    return child.returncode or 0, out.decode()


def ratios(found: GpuProfile, true: GpuProfile) -> Mapping[str, float]:
    """Found ÷ true times over a grid that no measurement sees point by point."""
    prefill = {
        f"prefill {new} after {cached}": found.prefill_s(new, cached) / true.prefill_s(new, cached)
        for new in NEW_TOKENS
        for cached in CACHED_TOKENS
    }
    decode = {
        f"decode {batch} × {each}": found.decode_step_s(batch, batch * each) / true.decode_step_s(batch, batch * each)
        for batch in BATCHES
        for each in CONTEXT_TOKENS
    }
    return prefill | decode


@pytest.mark.timeout(240)
async def test_the_emulators_own_profile_is_found_within_five_percent(tmp_path: Path) -> None:
    async with emulator(gpu=GPU, model=MODEL) as url:
        code, said = await agentserve(
            "profile", url, "--gpu", GPU, "--budget", "60s", "--max-prompt-tokens", "16384", cwd=tmp_path
        )
    assert code == 0, said
    (file,) = (tmp_path / "profiles").glob("*.toml")

    found = read_profiles([file])(GPU, MODEL)
    compared = ratios(found, load_profile(GPU, MODEL))
    print(said, *(f"{what:28} {ratio:.3f}" for what, ratio in compared.items()), sep="\n")  # noqa: T201  # the figures

    assert file.name == "h100--llama-3.1-8b.toml"
    assert file.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    assert found.kv_capacity_tokens == load_profile(GPU, MODEL).kv_capacity_tokens // 16 * 16
    assert {what: ratio for what, ratio in compared.items() if abs(ratio - 1) > 0.05} == {}
    assert "calls that the fit has not seen" in said


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
        code, said = await agentserve("profile", url, "--gpu", GPU, cwd=tmp_path)
    assert code == 2
    assert re.search(r"profile file profiles/\S+ exists: give --force", said)
    assert path.read_text() == "mine"
