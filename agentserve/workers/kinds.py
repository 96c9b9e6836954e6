"""Which kind of engine answers at a URL, what does it serve, and what does it tell about itself unasked for more?

The owner that it gives its models settles it for engines that sign them; else what answers on routes, or stands in
metrics, that only one kind has. TensorRT-LLM's `/metrics` is drained by reading, so it is not read before that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from agentserve.workers.asking import MAX_METRICS_BYTES, as_object, fetch, fetch_object

AUTO: Final = "auto"
_OWNERS: Final = {
    "vllm": "vllm",
    "agentserve-emulator": "emulator",
    "sglang": "sglang",
    "tensorrt_llm": "trtllm",
    "llamacpp": "llamacpp",
}
_PREFIXES: Final = {b"vllm:": "vllm", b"sglang:": "sglang", b"llamacpp:": "llamacpp"}
_TELLING: Final = {
    "sglang": ("/server_info", "/get_server_info"),
    "trtllm": ("/server_info",),
    "llamacpp": ("/props",),
    "emulator": ("/emulator/info",),
}
"""Where a kind describes itself. vLLM has such a route in development mode only."""
_READY: Final = {"sglang": "/ready"}
"""Where `/health` would not do: SGLang's generates a token and takes a second."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A base model that is served. `root`: where its weights come from."""

    name: str
    root: str | None = None
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An engine as it introduces itself. `how`: by what its kind was told; `told`: its own description, as it is."""

    kind: str
    how: str
    version: str | None
    models: tuple[ModelCard, ...]
    told: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base models."""
        return tuple(card.name for card in self.models)


def metrics_route(kind: str) -> str:
    """Where a kind serves Prometheus text."""
    return "/prometheus/metrics" if kind == "trtllm" else "/metrics"


async def identify(client: httpx.AsyncClient, kind: str = AUTO) -> Identity:
    """Ask an engine who it is; `kind` other than `auto` is believed.

    Raises httpx.HTTPError: DecodingError if it lists no models, and so is no OpenAI-compatible server.
    """
    cards, owners = await _cards(client)
    how = "given"
    if kind == AUTO:
        kind, how = await _kind(client, owners)
    told = await _told(client, kind)
    return Identity(kind=kind, how=how, version=await engine_version(client, kind, told), models=cards, told=told)


async def served_models(client: httpx.AsyncClient) -> tuple[str, ...]:
    """Names of the base models that the engine serves (adapters, which name a parent, are left out)."""
    cards, _ = await _cards(client)
    return tuple(card.name for card in cards)


async def engine_version(
    client: httpx.AsyncClient, kind: str = "vllm", told: Mapping[str, Any] | None = None
) -> str | None:
    """The engine's version where it tells; `told` saves asking again for its description."""
    if kind in ("sglang", "llamacpp"):
        told = await _told(client, kind) if told is None else told
        version = told.get("version" if kind == "sglang" else "build_info")
    else:
        version = (await fetch_object(client, "/version") or {}).get("version")
    return None if version is None else str(version)[:64]


async def is_ready(client: httpx.AsyncClient, kind: str = AUTO, *, timeout_s: float | None = None) -> str | None:
    """None if the engine says that it is well, else what is wrong; a server without a health check must list models."""
    path = _READY.get(kind, "/health")
    status, _ = await fetch(client, path, timeout_s=timeout_s)
    if status in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED):
        path = "/v1/models"
        status, _ = await fetch(client, path, timeout_s=timeout_s)
    return None if status == httpx.codes.OK else f"{path} answered {status}"


async def _cards(client: httpx.AsyncClient) -> tuple[tuple[ModelCard, ...], tuple[str, ...]]:
    status, body = await fetch(client, "/v1/models")
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise httpx.DecodingError(f"/v1/models answered {status}: it asks for another key")
    try:
        entries = [entry for entry in (as_object(body) or {})["data"] if not entry.get("parent")]
        cards = tuple(ModelCard(str(entry["id"])[:256], _text(entry.get("root")), _context(entry)) for entry in entries)
        return cards, tuple(str(entry.get("owned_by")) for entry in entries)
    except (KeyError, TypeError, AttributeError):
        raise httpx.DecodingError(f"/v1/models answered {status} without a list of models") from None


def _context(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    for value in (entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
        if isinstance(value, int) and value > 0:
            return value
    return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


async def _kind(client: httpx.AsyncClient, owners: tuple[str, ...]) -> tuple[str, str]:
    for owner in owners:
        if owner in _OWNERS:
            return _OWNERS[owner], f"/v1/models says owned_by {owner}"
    if "internal_states" in await _told(client, "sglang"):
        return "sglang", "it answers /server_info as SGLang does"
    if "total_slots" in await _told(client, "llamacpp"):
        return "llamacpp", "it answers /props as llama.cpp does"
    status, text = await fetch(client, metrics_route("trtllm"), MAX_METRICS_BYTES)
    if status == httpx.codes.OK and b"\ntrtllm_" in b"\n" + text:
        return "trtllm", "its metrics begin with trtllm_"
    status, text = await fetch(client, metrics_route("vllm"), MAX_METRICS_BYTES)
    for prefix, kind in _PREFIXES.items():
        if status == httpx.codes.OK and b"\n" + prefix in b"\n" + text:
            return kind, f"its metrics begin with {prefix.decode()}"
    return "openai", "it lists models, and shows the marks of no other kind"


async def _told(client: httpx.AsyncClient, kind: str) -> Mapping[str, Any]:
    for path in _TELLING.get(kind, ()):
        if (told := await fetch_object(client, path)) is not None:
            return told
    return {}
