"""Prefill on one emulated engine, decode on another, over real HTTP."""

import asyncio
import os
import signal
import sys

import httpx

from tests.integration.emulator_client import chat, client_of, metric, stream, until

PREFILL = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}, "max_tokens": 1}


async def test_kv_is_handed_over_and_freed():
    body = chat("say [[reply tokens=25]] " + "word " * 300, return_token_ids=True)
    async with client_of(gpu="h100") as prefill, client_of(gpu="h200", role="decode") as decode:
        whole = (await decode.post("/v1/chat/completions", json=body | {"cache_salt": "else"})).json()
        first = (await prefill.post("/v1/chat/completions", json=body | PREFILL)).json()
        params = first["kv_transfer_params"]
        assert await metric(prefill, "vllm:kv_cache_usage_perc") > 0
        before = await metric(decode, "emulator:transferred_tokens_total")

        chunks = await stream(decode, "/v1/chat/completions", body | {"kv_transfer_params": params})

        transferred = await metric(decode, "emulator:transferred_tokens_total") - before

        async def is_freed() -> bool:
            return await metric(prefill, "vllm:kv_cache_usage_perc") == 0

        await until(is_freed)
        assert await metric(prefill, "emulator:expired_kv_leases_total") == 0

    ids = [i for chunk in chunks[1:] for i in chunk["choices"][0]["token_ids"]]
    assert ids == whole["choices"][0]["token_ids"]
    assert ids[:1] == first["choices"][0]["token_ids"]
    assert transferred == len(whole["prompt_token_ids"]) - 1


async def test_kv_moves_in_mid_decode_at_a_planned_boundary():
    body = chat("say [[reply tokens=60]]", return_token_ids=True)
    async with client_of() as one, client_of() as two:
        head = (await one.post("/v1/chat/completions", json=body | PREFILL | {"max_tokens": 20})).json()
        ids = head["choices"][0]["token_ids"]
        replay = {
            "prompt": head["prompt_token_ids"] + ids,
            "max_tokens": 100,
            "kv_transfer_params": head["kv_transfer_params"],
            "return_token_ids": True,
        }
        tail = (await two.post("/v1/completions", json=replay)).json()
        whole = (await one.post("/v1/chat/completions", json=body)).json()

    assert ids + tail["choices"][0]["token_ids"] == whole["choices"][0]["token_ids"]


async def test_kv_that_nobody_fetches_is_freed_after_its_lease():
    async with client_of(kv_lease_s=0.2) as prefill, client_of() as decode:
        body = chat("say [[reply tokens=5]]")
        params = (await prefill.post("/v1/chat/completions", json=body | PREFILL)).json()["kv_transfer_params"]

        async def is_freed() -> bool:
            return await metric(prefill, "vllm:kv_cache_usage_perc") == 0

        await until(is_freed)
        late = await decode.post("/v1/chat/completions", json=body | {"kv_transfer_params": params})

    assert late.status_code == 500
    assert "KV transfer" in late.json()["error"]["message"]


async def test_a_dead_prefill_engine_is_an_error_and_the_decode_engine_lives_on():
    body = chat("say [[reply tokens=5]]")
    async with client_of() as decode:
        async with client_of() as prefill:
            params = (await prefill.post("/v1/chat/completions", json=body | PREFILL)).json()["kv_transfer_params"]
        dead = await decode.post("/v1/chat/completions", json=body | {"kv_transfer_params": params})

        assert dead.status_code == 500
        assert (await decode.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_process_answers_soon_and_ends_on_sigterm():
    program = (
        "import asyncio, sys\n"
        "from agentserve.emulator.config import EmulatorConfig\n"
        "from agentserve.emulator.server import serve\n"
        "ready = lambda url: print(url, flush=True)\n"
        "asyncio.run(serve(EmulatorConfig(speed=10), on_ready=ready))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    try:
        async with asyncio.timeout(30):
            url = (await process.stdout.readline()).decode().strip()
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.get("/health")).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
