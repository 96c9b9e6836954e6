"""What a worker finds out about an engine, and what it refuses."""

import json
from typing import Any

import httpx
import pytest

from agentserve.errors import BadInput, Unavailable
from agentserve.telemetry.messages import Announce
from agentserve.workers.asking import MAX_METRICS_BYTES, fetch
from agentserve.workers.config import EngineConfig, WorkerConfig
from agentserve.workers.discovery import check_gpu, client_for, discover
from scheduler.events import Role
from scheduler.profiles import load_profile
from tests.integration.worker_parts import FakeEngine

URL = "http://engine:8000"


def client_of(engine: FakeEngine, paths: list[str] | None = None) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        if paths is not None:
            paths.append(request.url.path)
        status, body = engine.answer(
            request.method, request.url.path, json.loads(request.content) if request.content else {}
        )
        return httpx.Response(status, content=body)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL)


async def facts(fake: FakeEngine, **options: Any) -> Announce:
    config = EngineConfig(**{"engine_url": URL, "gpu": "h100", **options})
    async with client_of(fake) as client:
        return await discover(config, client, "boot")


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(port=8000, **options)


async def test_facts_come_from_the_engine_and_then_from_the_profile() -> None:
    profile = load_profile("h100", "llama-3.1-8b")
    assert await facts(engine()) == Announce(
        worker_id="h100-engine-8000",
        boot_id="boot",
        engine_url=URL,
        engine="vllm",
        engine_version="0.32.0",
        model="llama-3.1-8b",
        gpu="h100",
        kv_capacity_tokens=32_000,
        block_tokens=32,
        max_num_seqs=256,
        max_batched_tokens=8192,
        kv_bytes_per_token=profile.kv_bytes_per_token,
        supports_priority=True,
        supports_replay=True,
    )


async def test_without_metrics_the_profile_tells_the_capacity() -> None:
    announce = await facts(engine(has_metrics=False))
    assert announce.kv_capacity_tokens == load_profile("h100", "llama-3.1-8b").kv_capacity_tokens
    assert announce.block_tokens == 16


async def test_flags_win_over_engine_and_profile() -> None:
    given = {"kv_capacity_tokens": 5000, "block_tokens": 8, "kv_bytes_per_token": 9, "max_num_seqs": 4,
             "max_batched_tokens": 128, "speed": 20.0, "worker_id": "me", "role": Role.DECODE}  # fmt: skip
    announce = await facts(engine(), **given)
    assert announce.model_dump(include=set(given)) == given


async def test_an_alias_of_a_gpu_is_announced_under_its_profiles_name() -> None:
    assert (await facts(engine(), gpu="A100")).gpu == "a100-80g"


async def test_an_engine_without_token_ids_or_priority_says_so() -> None:
    announce = await facts(engine(has_token_ids=False, has_priority=False))
    assert (announce.supports_replay, announce.supports_priority) == (False, False)


async def test_an_engine_that_hands_over_kv_is_of_a_group_unless_another_is_given() -> None:
    told = "nixl pull; vllm 0.32.0; meta-llama/Llama-3.1-8B-Instruct; block 32; cache auto"
    assert (await facts(engine(has_kv_transfer=True))).kv_group == told
    assert (await facts(engine(has_kv_transfer=True), kv_group="mine")).kv_group == "mine"
    assert (await facts(engine(), kv_group="mine")).kv_group is None


async def test_an_engine_without_metrics_hands_over_kv_if_it_is_said_to() -> None:
    assert (await facts(engine(has_metrics=False))).kv_link_bytes_per_s is None
    announced = await facts(engine(has_metrics=False), kv_transfer=True)
    assert announced.kv_link_bytes_per_s is not None
    assert announced.kv_group is not None


async def test_the_kind_is_found_out_unless_it_is_given() -> None:
    assert (await facts(engine(owner="agentserve-emulator"))).engine == "emulator"
    given = await facts(engine(), engine="openai")
    assert (given.engine, given.supports_replay) == ("openai", False)


@pytest.mark.parametrize(("has_kv_transfer", "link"), [(True, 5e10), (False, None)])
async def test_only_an_engine_that_hands_over_kv_has_a_link(has_kv_transfer: bool, link: float | None) -> None:
    assert (await facts(engine(has_kv_transfer=has_kv_transfer))).kv_link_bytes_per_s == link
    assert (await facts(engine(), kv_transfer=False, kv_link_bytes_per_s=1e9)).kv_link_bytes_per_s is None
    assert (await facts(engine(), kv_transfer=True, kv_link_bytes_per_s=1e9)).kv_link_bytes_per_s == 1e9


async def test_capabilities_that_are_given_are_not_asked_for() -> None:
    quiet = engine()
    await facts(quiet, supports_replay=False, supports_priority=False, kv_transfer=False)
    assert quiet.completions == 0


async def test_a_served_name_matches_an_alias_of_the_model() -> None:
    announce = await facts(engine(models=["meta-llama/Llama-3.1-8B-Instruct"]), model="llama-3.1-8b")
    assert announce.model == "meta-llama/Llama-3.1-8B-Instruct"


async def test_another_model_is_refused_and_the_served_ones_are_named() -> None:
    with pytest.raises(BadInput, match=r"does not serve 'qwen3-32b'; it serves llama-3\.1-8b"):
        await facts(engine(), model="qwen3-32b")


@pytest.mark.parametrize("listed", [[], ["llama-3.1-8b"]])
async def test_a_plain_server_need_not_list_the_model_that_it_is_told_to_serve(
    listed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    fake = engine(models=listed, unlisted=("qwen3-32b",), owner="someone", has_metrics=False)
    announce = await facts(fake, model="qwen3-32b")
    assert (announce.engine, announce.model, announce.supports_replay) == ("openai", "qwen3-32b", False)
    assert "does not list qwen3-32b, but serves it" in caplog.text


async def test_a_plain_server_that_refuses_an_unlisted_model_does_not_serve_it() -> None:
    fake = engine(owner="someone", has_metrics=False)
    with pytest.raises(BadInput, match="does not serve 'qwen3-32b'"):
        await facts(fake, model="qwen3-32b")
    assert fake.completions == 2


async def test_an_engine_that_lists_all_its_models_is_not_tried_with_another() -> None:
    fake = engine(unlisted=("qwen3-32b",))
    with pytest.raises(BadInput, match="does not serve 'qwen3-32b'"):
        await facts(fake, model="qwen3-32b")
    assert fake.completions == 0


@pytest.mark.parametrize("models", [[], ["a", "b"]])
async def test_which_model_must_be_said_unless_there_is_one(models: list[str]) -> None:
    with pytest.raises(BadInput, match="say which one with --model"):
        await facts(engine(models=models))


async def test_a_model_without_a_profile_needs_its_kv_size() -> None:
    with pytest.raises(BadInput, match="give --kv-bytes-per-token"):
        await facts(engine(models=["tiny"]))
    assert (await facts(engine(models=["tiny"]), kv_bytes_per_token=64)).kv_capacity_tokens == 32_000


async def test_an_unknown_gpu_is_refused_before_the_engine_is_asked() -> None:
    paths: list[str] = []
    async with client_of(engine(), paths) as client:
        with pytest.raises(BadInput, match="unknown gpu 'abacus'; known: a100-80g, h100, h200"):
            await discover(EngineConfig(engine_url=URL, gpu="abacus"), client, "boot")
    assert paths == []
    with pytest.raises(BadInput):
        check_gpu(EngineConfig(engine_url=URL, gpu="abacus"))


async def test_an_engine_that_breaks_while_it_is_asked_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"not json")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        with pytest.raises(Unavailable, match="/v1/models answered 200 without a list of models"):
            await discover(EngineConfig(engine_url=URL, gpu="h100"), client, "boot")


async def test_an_endless_answer_is_cut_off() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"x" * (MAX_METRICS_BYTES + 1))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=URL) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="over 4194304 bytes"):
            await fetch(client, "/metrics", MAX_METRICS_BYTES)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"engine_url": "engine:8000"}, "engine URL 'engine:8000'"),
        ({"engine_url": "http://me:hunter2@engine"}, "engine URL: must not hold credentials"),
        ({"engine_url": "http://engine:port"}, "engine URL: host or port"),
        ({"engine_url": "http://[::1"}, "engine URL: host or port"),
        ({"worker_id": "a b"}, "worker id 'a b'"),
        ({"cluster": "a/b"}, "cluster 'a/b'"),
        ({"speed": 0.0}, "speed 0.0"),
        ({"speed": float("nan")}, "speed nan"),
        ({"max_num_seqs": -1}, "max-num-seqs -1"),
        ({"kv_group": ""}, "kv-group ''"),
        ({"kv_group": "x" * 257}, "kv-group"),
        ({"report_interval_s": 0.0}, "report-interval"),
        ({"drain_timeout_s": -1.0}, "drain-timeout -1.0"),
    ],
)
def test_a_bad_value_is_named(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as caught:
        WorkerConfig(**{"engine_url": URL, "gpu": "h100", **bad})
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_configuration_never_shows_its_secrets() -> None:
    config = WorkerConfig(engine_url=URL, gpu="h100", mqtt_url="mqtt://me:hunter2@h", api_key="hunter2")
    assert "hunter2" not in repr(config)


async def test_a_key_goes_with_questions_and_trials_alike() -> None:
    real = engine()
    keys = set()

    def answer(request: httpx.Request) -> httpx.Response:
        keys.add(request.headers.get("authorization"))
        body = json.loads(request.content) if request.content else {}
        status, content = real.answer(request.method, request.url.path, body)
        return httpx.Response(status, content=content)

    config = EngineConfig(engine_url=URL, gpu="h100", api_key="secret")
    async with client_for(config) as client:
        client._transport = httpx.MockTransport(answer)
        assert (await discover(config, client, "boot")).supports_replay
    assert keys == {"Bearer secret"}
