"""By what a kind of engine is known, which version it gives, and what its own description says of its sizes."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from agentserve.workers.facts import Facts, read_facts
from agentserve.workers.kinds import Identity, ModelCard, identify, is_ready
from agentserve.workers.scrape import CacheConfig
from scheduler.events import Role

SGLANG_INFO = {"version": "0.5.23", "internal_states": [{"effective_max_running_requests_per_dp": 48}],
               "max_running_requests": None, "max_total_num_tokens": 90_000, "page_size": 64, "tp_size": 2,
               "pp_size": 1, "kv_cache_dtype": "fp8_e5m2", "disaggregation_mode": "prefill",
               "disaggregation_bootstrap_port": 8998, "disaggregation_transfer_backend": "mooncake",
               "context_length": 32_768}  # fmt: skip
LLAMACPP_PROPS = {"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}, "build_info": "b8681-Debian",
                  "model_path": "m.gguf"}  # fmt: skip


class Server:
    """Answers GETs from a table of paths; `asked` is what was asked for."""

    def __init__(self, pages: Mapping[str, Any]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://e:8000")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        page = self.pages.get(request.url.path)
        if page is None:
            return httpx.Response(404)
        return httpx.Response(200, text=page if isinstance(page, str) else json.dumps(page))


def models(owner: str | None = None, **card: Any) -> dict[str, Any]:
    return {"data": [{"id": "m", "owned_by": owner, **card}]}


async def identity_of(pages: Mapping[str, Any], kind: str = "auto") -> tuple[Identity, list[str]]:
    server = Server(pages)
    async with server.client() as client:
        return await identify(client, kind), server.asked


@pytest.mark.parametrize(
    ("pages", "kind", "version"),
    [
        ({"/v1/models": models("vllm"), "/version": {"version": "0.32.0"}}, "vllm", "0.32.0"),
        ({"/v1/models": models("agentserve-emulator"), "/version": {"version": "e"}}, "emulator", "e"),
        ({"/v1/models": models("sglang"), "/server_info": SGLANG_INFO}, "sglang", "0.5.23"),
        ({"/v1/models": models("sglang"), "/get_server_info": SGLANG_INFO}, "sglang", "0.5.23"),
        ({"/v1/models": models("tensorrt_llm"), "/version": {"version": "1.2.0"}}, "trtllm", "1.2.0"),
        ({"/v1/models": models("llamacpp"), "/props": LLAMACPP_PROPS}, "llamacpp", "b8681-Debian"),
        ({"/v1/models": models("someone"), "/server_info": SGLANG_INFO}, "sglang", "0.5.23"),
        ({"/v1/models": models(), "/props": LLAMACPP_PROPS}, "llamacpp", "b8681-Debian"),
        ({"/v1/models": models(), "/prometheus/metrics": "# HELP x\ntrtllm_request_success_total 1\n"}, "trtllm", None),
        ({"/v1/models": models(), "/metrics": "# HELP x\nvllm:num_requests_running 0\n"}, "vllm", None),
        ({"/v1/models": models(), "/metrics": "# HELP x\nvllm_router_requests 0\n"}, "openai", None),
        ({"/v1/models": models("transformers")}, "openai", None),
    ],
)
async def test_a_kind_is_known_by_its_marks(pages: Mapping[str, Any], kind: str, version: str | None) -> None:
    identity, _ = await identity_of(pages)
    assert (identity.kind, identity.version) == (kind, version)


async def test_tensorrt_llms_metrics_are_not_drained_by_asking_for_its_kind() -> None:
    _, asked = await identity_of({"/v1/models": models("tensorrt_llm")})
    assert "/metrics" not in asked


async def test_a_kind_that_is_given_is_believed() -> None:
    identity, asked = await identity_of({"/v1/models": models("sglang")}, kind="openai")
    assert (identity.kind, identity.how) == ("openai", "given")
    assert "/server_info" not in asked


async def test_models_are_those_without_a_parent() -> None:
    page = models("vllm", root="org/m", max_model_len=4096)
    page["data"].append({"id": "adapter", "owned_by": "vllm", "parent": "m"})
    identity, _ = await identity_of({"/v1/models": page})
    assert identity.models == (ModelCard("m", "org/m", 4096),)


async def test_llamacpps_own_context_counts_and_not_the_one_it_was_trained_with() -> None:
    identity, _ = await identity_of({"/v1/models": models("llamacpp", meta={"n_ctx_train": 131_072}),
                                     "/props": LLAMACPP_PROPS})  # fmt: skip
    assert read_facts(identity, "m", None, "http://e") == Facts(context_tokens=8192, max_num_seqs=4)


@pytest.mark.parametrize("page", ["not json", "[]", {"data": None}, {"data": [3]}])
async def test_whatever_lists_no_models_is_no_openai_server(page: Any) -> None:
    with pytest.raises(httpx.DecodingError, match="/v1/models answered 200 without a list of models"):
        await identity_of({"/v1/models": page})


async def test_an_sglang_prefill_server_tells_where_decode_legs_meet_it() -> None:
    identity = Identity(kind="sglang", how="", version="0.5.23", models=(ModelCard("m"),), told=SGLANG_INFO)
    assert read_facts(identity, "m", None, "http://gpu-3:30000") == Facts(
        context_tokens=32_768,
        max_num_seqs=48,
        kv_capacity_tokens=90_000,
        block_tokens=64,
        cache_dtype="fp8_e5m2",
        parallel={"tp_size": 2, "pp_size": 1},
        transfer_mode="mooncake",
        role=Role.PREFILL,
        kv_address="gpu-3:8998",
    )
    decode = Identity(kind="sglang", how="", version=None, models=(), told={"disaggregation_mode": "decode"})
    assert read_facts(decode, "m", None, "http://[::1]:30000") == Facts(role=Role.DECODE)


def test_vllms_sizes_come_from_its_cache_metric_and_its_model_card() -> None:
    identity = Identity(kind="vllm", how="", version="0.32.0", models=(ModelCard("m", "org/m", 4096),))
    facts = read_facts(identity, "m", CacheConfig(8192, 32, "auto"), "http://e")
    assert facts == Facts(context_tokens=4096, kv_capacity_tokens=8192, block_tokens=32, cache_dtype="auto")


@pytest.mark.parametrize(
    ("kind", "pages", "problem"),
    [
        ("vllm", {"/health": ""}, None),
        ("sglang", {"/ready": "", "/health": ""}, None),
        ("openai", {"/v1/models": models()}, None),
        ("openai", {}, "/v1/models answered 404"),
    ],
)
async def test_an_engine_is_ready_when_its_kind_says_so(
    kind: str, pages: Mapping[str, Any], problem: str | None
) -> None:
    server = Server(pages)
    async with server.client() as client:
        assert await is_ready(client, kind) == problem
    if kind == "sglang":
        assert server.asked == ["/ready"]  # its /health generates a token
