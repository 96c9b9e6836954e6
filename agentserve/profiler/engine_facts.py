"""What does the engine tell about itself that a measurement needs? Model, version, sizes, and whether it is in use."""

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentserve.errors import BadInput, Conflict, EngineFailed, Unavailable
from agentserve.profiler.client import EngineClient

_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """As the engine tells; None: it does not."""

    model: str
    version: str | None
    max_model_len: int | None
    kv_capacity_tokens: int | None
    block_tokens: int | None


async def engine_facts(client: EngineClient) -> EngineFacts:
    """Ask the engine, and let the client speak of its model. Raises Unavailable, or BadInput for the wrong model."""
    status, _ = await client.get("/health")
    if status >= 500:
        raise Unavailable(f"engine {client.url} is not ready: /health answered {status}")
    card = await _model_card(client)
    client.model = str(card["id"])
    capacity = block = None
    for labels, _ in await metric_samples(client, "vllm:cache_config_info"):
        known = dict(_LABEL.findall(labels))
        block, blocks = _whole(known.get("block_size")), _whole(known.get("num_gpu_blocks"))
        capacity = block * blocks if block and blocks else None
    length = card.get("max_model_len")
    return EngineFacts(client.model, await _version(client), length, capacity, block)


async def refuse_if_busy(client: EngineClient) -> bool:
    """Raise Conflict while the engine serves others; returns whether it tells at all."""
    running = await metric_total(client, "vllm:num_requests_running")
    waiting = await metric_total(client, "vllm:num_requests_waiting")
    if running or waiting:
        raise Conflict(
            f"engine {client.url} serves {running or 0:.0f} calls and {waiting or 0:.0f} wait: a measurement would "
            "show their load, and slow them. Drain it first, or give --force"
        )
    return running is not None


async def metric_total(client: EngineClient, name: str) -> float | None:
    """A metric of `/metrics`, summed over its labels; None: not there. Names are matched whole."""
    samples = await metric_samples(client, name)
    return sum(value for _, value in samples) if samples else None


async def metric_samples(client: EngineClient, name: str) -> list[tuple[str, float]]:
    """Labels as they stand, and value, of every line of a metric."""
    status, page = await client.get("/metrics")
    if status != 200:
        return []
    lines = re.finditer(rf"^{re.escape(name)}(?:\{{(.*)\}})?[ \t]+(\S+)", page.decode("utf-8", "replace"), re.MULTILINE)
    samples = []
    for line in lines:
        try:
            samples.append((line[1] or "", float(line[2])))
        except ValueError:
            continue
    return samples


async def _model_card(client: EngineClient) -> dict[str, Any]:
    status, body = await client.get("/v1/models")
    try:
        cards = [card for card in orjson.loads(body)["data"] if isinstance(card["id"], str) and not card.get("parent")]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise EngineFailed(f"{client.url}/v1/models answered {status} without a list of models") from None
    served = ", ".join(card["id"] for card in cards) or "nothing"
    chosen = [card for card in cards if not client.model or card["id"] == client.model]
    if len(chosen) != 1:
        raise BadInput(f"engine {client.url} serves {served}: say which one with --served-model")
    return dict(chosen[0])


async def _version(client: EngineClient) -> str | None:
    status, body = await client.get("/version")
    try:
        return str(orjson.loads(body)["version"])[:64] if status == 200 else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
