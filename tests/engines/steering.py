"""How are calls on real engines sent exactly where a test wants them? A scheduler that follows a plan per request.

Everything else is the product: gateway, orchestrator, adapters, tracker. Without a plan a request goes to `e0`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from agentserve.headers import REQUEST_ID
from agentserve.telemetry.messages import Announce
from scheduler import decisions, events
from scheduler.decisions import MoveBy
from tests.engines.servers import BLOCK_TOKENS, KV_BLOCKS, MODEL, EngineServer
from tests.integration.gateway_parts import Gateway, gateway

_REASON: Final = decisions.Explanation(policy="steered", rule="the test's plan")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a request begins and where it goes: `moves` are (after so many tokens, to this engine), in order."""

    prefill: str = "e0"
    decode: str = "e0"
    moves: tuple[tuple[int, str], ...] = ()
    by: MoveBy = MoveBy.REPLAY


@dataclass
class Steered:
    """A scheduler core that does what the plans say, and sends what fails to another engine."""

    plans: dict[str, Plan] = field(default_factory=dict)
    live: list[str] = field(default_factory=list)
    at: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Why moves that were planned did not happen."""
    policy_name = "steered"

    def handle(self, event: events.Event, now_s: float) -> list[decisions.Decision]:
        """Follow the plan of the request at hand."""
        match event:
            case events.InstanceJoined() if event.instance.instance_id not in self.live:
                self.live.append(event.instance.instance_id)
            case events.InstanceLost():
                self.live.remove(event.instance_id)
            case events.RequestArrived():
                plan = self.plans.get(event.request_id, Plan())
                return [self._dispatch(event.event_id, event.request_id, plan.prefill, plan.decode)]
            case events.RequestFailed() if event.retryable:
                self.failed.setdefault(event.request_id, []).append(f"{event.instance_id}: {event.error}")
                other = next(name for name in self.live if name != event.instance_id)
                return [self._dispatch(event.event_id, event.request_id, other, other)]
            case events.RequestFailed():
                refusal = decisions.Refusal.NOT_RETRYABLE
                return [
                    decisions.Reject(
                        cause_id=event.event_id,
                        request_id=event.request_id,
                        refusal=refusal,
                        message=event.error,
                        reason=_REASON,
                    )
                ]
            case events.MigrationRefused():
                self.refused.setdefault(event.request_id, []).append(event.reason)
                self.plans[event.request_id] = Plan()  # it stays where it is
            case events.FirstToken() | events.Progress():
                tokens = event.output_tokens if isinstance(event, events.Progress) else 1
                return self._move(event.event_id, event.request_id, tokens)
        return []

    def snapshot(self) -> dict[str, Any]:
        """The engines in use."""
        return {"instances": self.live}

    def _dispatch(self, cause: str, request_id: str, prefill: str, decode: str) -> decisions.Decision:
        self.at[request_id] = decode
        attempt = self.attempts[request_id] = self.attempts.get(request_id, 0) + 1
        return decisions.Dispatch(
            cause_id=cause,
            request_id=request_id,
            attempt=attempt,
            prefill_instance=prefill,
            decode_instance=decode,
            priority=0,
            reason=_REASON,
        )

    def _move(self, cause: str, request_id: str, tokens: int) -> list[decisions.Decision]:
        plan, done = self.plans.get(request_id, Plan()), self.moved.get(request_id, 0)
        if done >= len(plan.moves) or tokens < plan.moves[done][0] or plan.moves[done][1] not in self.live:
            return []
        self.moved[request_id] = done + 1
        source, target = self.at[request_id], plan.moves[done][1]
        self.at[request_id] = target
        attempt = self.attempts[request_id] = self.attempts[request_id] + 1
        return [
            decisions.Migrate(
                cause_id=cause,
                request_id=request_id,
                attempt=attempt,
                source=source,
                target=target,
                priority=0,
                cause=decisions.MigrationCause.LATE,
                predicted_gain_s=1.0,
                predicted_cost_s=0.1,
                reason=_REASON,
                by=plan.by,
            )
        ]


@asynccontextmanager
async def steered(*servers: EngineServer) -> AsyncIterator[tuple[Gateway, Steered]]:
    """A gateway over real engines `e0`, `e1`, … whose calls go where the plans say."""
    core = Steered()
    async with gateway(scheduler=core, urls=[server.url for server in servers], announce=announced(servers)) as gate:
        yield gate, core


def announced(servers: tuple[EngineServer, ...]) -> Callable[[str, str], Announce]:
    """What a worker would announce of these servers."""
    names = {server.url: server for server in servers}

    def announce(worker_id: str, url: str) -> Announce:
        return Announce(
            worker_id=worker_id,
            boot_id="b",
            engine_url=url,
            engine=names[url].kind,
            model=names[url].model,
            gpu="cpu",
            kv_capacity_tokens=BLOCK_TOKENS * KV_BLOCKS,
            block_tokens=BLOCK_TOKENS,
            max_num_seqs=256,
            max_batched_tokens=2048,
            kv_bytes_per_token=512,
            kv_link_bytes_per_s=1e9,
            kv_group="tiny",
            supports_priority=names[url].kind == "vllm",
            supports_replay=names[url].kind in ("vllm", "llamacpp"),
        )

    return announce


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer as a client holds it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reasons: tuple[str, ...]
    usage: dict[str, Any]
    ids: frozenset[str]
    events: int


async def ask(url: str, body: dict[str, Any], *, request_id: str | None = None, timeout_s: float = 300) -> Answer:
    """Stream one call from a gateway or straight from an engine; a body with `messages` is a chat."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    body = {"model": MODEL, **body, "stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    headers = {} if request_id is None else {REQUEST_ID: request_id}
    text, tokens, reasons, ids, usage, count = "", [], [], set(), {}, 0
    async with (
        httpx.AsyncClient(trust_env=False, timeout=timeout_s) as client,
        client.stream("POST", url + path, json=body, headers=headers) as response,
    ):
        if not response.is_success:
            raise AssertionError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = httpx.Response(200, text=line[6:]).json()
            if "error" in chunk:
                raise AssertionError(chunk["error"])
            count += 1
            ids.add(chunk["id"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text += (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
                tokens += choice.get("token_ids") or ()
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else ()
    return Answer(
        text=text,
        token_ids=tuple(tokens),
        finish_reasons=tuple(reasons),
        usage=usage,
        ids=frozenset(ids),
        events=count,
    )
