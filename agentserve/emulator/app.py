"""Which route answers what? The ASGI app of one emulated engine."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from secrets import token_hex
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote

import orjson

from agentserve.emulator.api import Call, check_model, parse_call, prompt_ids_of, render_chat
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.driver import Driver, Ticket
from agentserve.emulator.engine import Engine
from agentserve.emulator.handoff import Peers, handle_from, params_for
from agentserve.emulator.metrics import render
from agentserve.emulator.render import Writer, error_body
from agentserve.emulator.replies import Model, load_script
from agentserve.emulator.sequence import EngineRequest, RemoteKv
from agentserve.emulator.tokens import block_keys, decode, encode, is_token
from agentserve.errors import AgentServeError, BadInput, NotFound, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]
VERSION: Final = "emulator-1"
_JSON: Final = [(b"content-type", b"application/json")]
_STREAM: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_TEXT: Final = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
_ERROR_TYPES: Final = {400: "BadRequestError", 404: "NotFoundError", 413: "BadRequestError"}


class App:
    """One emulated engine behind HTTP. Run `run(address)` beside whatever serves the app."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self._model = Model(load_script(config.script) if config.script else (), config.seed)
        engine = Engine(
            config.profile,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            block_tokens=config.block_tokens,
            kv_capacity_tokens=config.capacity_tokens,
            kv_link_bytes_per_s=config.link_bytes_per_s,
            use_priority=config.scheduling_policy == "priority",
            lease_s=config.kv_lease_s * config.speed,
        )
        self._driver = Driver(engine, config.speed)
        self._peers = Peers()
        self._engine_id = token_hex(8)
        self._address = (config.host, config.port)
        self._calls = 0

    async def run(self, address: tuple[str, int]) -> None:
        """Pace the engine until cancelled; `address` is where other engines reach this one."""
        self._address = address
        try:
            await self._driver.run()
        finally:
            await self._peers.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every error becomes one answer in OpenAI's shape."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except AgentServeError as error:
            kind = _ERROR_TYPES.get(error.status, "InternalServerError")
            status = error.status if error.status in _ERROR_TYPES else 500
            await _answer(send, status, error_body(str(error), kind, status))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path, arrived_s = scope["method"], scope["path"], monotonic()
        if path.startswith("/emulator/kv/"):
            await _answer(send, 200, self._hand_over(method, unquote(path.removeprefix("/emulator/kv/"))))
        elif method == "GET" and path in _GET:
            headers, body = _GET[path](self)
            await _answer(send, 200, body, headers)
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            body = await _read_json(receive, self.config.max_body_bytes)
            call = self._accept(body, is_chat=path == "/v1/chat/completions")
            await self._complete(call, _request_id(body, scope), arrived_s, receive, send)
        elif method == "POST" and path in _POST:
            body = await _read_json(receive, self.config.max_body_bytes)
            await _answer(send, 200, orjson.dumps(_POST[path](self, body)))
        else:
            raise NotFound(f"{method} {path}: no such route")

    # Completions ------------------------------------------------------------------------------------------------

    def _accept(self, body: Any, *, is_chat: bool) -> Call:
        """The call that a body asks for; a refused decode leg frees, as in vLLM, what its prefill leg had kept."""
        try:
            return parse_call(body, self.config, self._model, is_chat=is_chat)
        except AgentServeError:
            params = body.get("kv_transfer_params") if isinstance(body, dict) else None
            if isinstance(params, dict) and (handle := handle_from(params)) is not None:
                self._peers.release_soon(handle)
            raise

    async def _complete(self, call: Call, request_id: str, arrived_s: float, receive: Receive, send: Send) -> None:
        self._calls += 1
        engine_request_id = f"{request_id}-{self._calls}"
        prefix = "chatcmpl" if call.is_chat else "cmpl"
        writer = Writer(call, f"{prefix}-{request_id}", self.config.model_name)
        handle = handle_from(call.kv_transfer_params or {})
        request = self._engine_request(call, engine_request_id, await self._peers.claim(handle) if handle else None)
        ticket = self._driver.submit(
            request,
            arrived_s=monotonic() if handle else arrived_s,
            wake_at=1 if call.stream else request.output_tokens,
            on_transferred=None if handle is None else lambda: self._peers.release_soon(handle),
        )
        watcher = asyncio.create_task(self._abort_on_disconnect(receive, engine_request_id))
        try:
            if call.stream:
                await self._stream(call, writer, ticket, send)
            else:
                await self._whole(call, writer, ticket, engine_request_id, send)
        finally:
            watcher.cancel()
            self._driver.abort(engine_request_id)

    def _engine_request(self, call: Call, request_id: str, remote: RemoteKv | None) -> EngineRequest:
        ids = [*call.prompt_ids, *call.output_ids]
        return EngineRequest(
            request_id=request_id,
            prompt_tokens=len(call.prompt_ids),
            output_tokens=len(call.output_ids),
            block_keys=block_keys(ids, self.config.block_tokens, call.salt),
            priority=call.priority,
            keep_kv=bool((call.kv_transfer_params or {}).get("do_remote_decode")),
            remote_kv=remote,
        )

    async def _stream(self, call: Call, writer: Writer, ticket: Ticket, send: Send) -> None:
        total, interval, sent = len(call.output_ids), self.config.stream_interval, 0
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        while sent < total:
            wanted = min(total, sent + interval) if sent else 1
            available = await ticket.wait_for(wanted)
            if available < wanted:
                return  # aborted: the client is gone
            writer.cached_tokens = ticket.cached_tokens
            data = writer.chunk(sent, available)
            if not sent:
                data = writer.opening() + data
            sent = available
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": writer.closing()})

    async def _whole(self, call: Call, writer: Writer, ticket: Ticket, request_id: str, send: Send) -> None:
        total = len(call.output_ids)
        if await ticket.wait_for(total) < total:
            return  # aborted: the client is gone
        writer.cached_tokens = ticket.cached_tokens
        lease = self._driver.engine.lease(request_id)
        params = None if lease is None else params_for(lease, request_id, self._engine_id, self._address)
        await _answer(send, 200, writer.body(params))

    async def _abort_on_disconnect(self, receive: Receive, request_id: str) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._driver.abort(request_id)

    # The other routes -------------------------------------------------------------------------------------------

    def _hand_over(self, method: str, request_id: str) -> bytes:
        """POST: what KV is pinned under this id. DELETE: it was fetched, free it."""
        lease = self._driver.engine.lease(request_id)
        if lease is None or method not in ("POST", "DELETE"):
            raise NotFound(f"{method}: no KV is held for request {request_id[:100]!r}")
        if method == "DELETE":
            self._driver.release(request_id)
        return orjson.dumps({"tokens": lease.tokens, "link_bytes_per_s": self._driver.engine.link_bytes_per_s})

    def _metrics(self) -> bytes:
        driver = self._driver
        name = self.config.model_name
        return render(driver.engine, driver.histograms, name, driver.lag_s, driver.lost_s).encode()

    def _models(self) -> bytes:
        card = {
            "id": self.config.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "agentserve-emulator",
            "root": self.config.model,
            "max_model_len": self.config.context_limit,
        }
        return orjson.dumps({"object": "list", "data": [card]})

    def _info(self) -> bytes:
        """What a worker announces and vLLM does not tell."""
        config = self.config
        return orjson.dumps(
            {
                "gpu": config.profile.gpu,
                "model": config.profile.model,
                "role": config.role,
                "speed": config.speed,
                "scheduling_policy": config.scheduling_policy,
                "kv_capacity_tokens": config.capacity_tokens,
                "kv_bytes_per_token": config.profile.kv_bytes_per_token,
                "kv_link_bytes_per_s": config.link_bytes_per_s,
                "block_tokens": config.block_tokens,
                "max_num_seqs": config.max_num_seqs,
                "max_batched_tokens": config.max_batched_tokens,
                "slowdown": self._driver.engine.slowdown,
            }
        )

    def _tokenize(self, body: Any) -> dict[str, Any]:
        body = _as_object(body)
        check_model(body, self.config)
        if "messages" in body:
            ids = render_chat(body, add_generation_prompt=body.get("add_generation_prompt", True) is not False)
        elif isinstance(body.get("prompt"), str):
            plain = body.get("add_special_tokens") is False
            ids = encode(body["prompt"]) if plain else prompt_ids_of(body["prompt"])
        else:
            raise BadInput("prompt: a text is required, or messages")
        return {"count": len(ids), "max_model_len": self.config.context_limit, "tokens": ids, "token_strs": None}

    def _detokenize(self, body: Any) -> dict[str, Any]:
        body = _as_object(body)
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(map(is_token, tokens)):
            raise BadInput("tokens: a list of this model's token ids is required")
        return {"prompt": decode(tokens, skip_special=False)}

    def _slow(self, body: Any) -> dict[str, Any]:
        """Chaos: make every iteration `factor` times longer, until told otherwise."""
        if not self.config.chaos:
            raise NotFound("POST /emulator/slow: the emulator was started without --chaos")
        factor = _as_object(body).get("factor")
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor <= 1e6:
            raise BadInput("factor: a number above 0 and at most 1e6 is required")
        self._driver.engine.slowdown = float(factor)
        return {"slowdown": float(factor)}


_GET: Final[dict[str, Callable[[App], tuple[list[tuple[bytes, bytes]], bytes]]]] = {
    "/health": lambda app: (_JSON, b""),
    "/ping": lambda app: (_JSON, b""),
    "/version": lambda app: (_JSON, orjson.dumps({"version": VERSION})),
    "/metrics": lambda app: (_TEXT, app._metrics()),
    "/v1/models": lambda app: (_JSON, app._models()),
    "/emulator/info": lambda app: (_JSON, app._info()),
}
_POST: Final[dict[str, Callable[[App, Any], dict[str, Any]]]] = {
    "/tokenize": App._tokenize,
    "/detokenize": App._detokenize,
    "/emulator/slow": App._slow,
}


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] = _JSON) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _read_json(receive: Receive, limit: int) -> Any:
    """The request's JSON body. Raises TooLarge or BadInput."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadInput("the client left before its body had come")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        parts.append(part)
        more = message.get("more_body", False)
    try:
        return orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error}") from None


def _as_object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadInput("the body must be a JSON object")
    return body


def _request_id(body: Any, scope: Scope) -> str:
    """The client's name for the request, from the body or its header; otherwise a random one."""
    given = body.get("request_id")
    if given is None:
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), None)
    if given is None:
        return token_hex(16)
    if not isinstance(given, str) or not 0 < len(given) <= 256 or not given.isprintable():
        raise BadInput("request_id: a printable text of at most 256 characters is required")
    return given
