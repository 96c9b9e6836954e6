"""How does a client reach the emulated engine? An ASGI app that speaks vLLM's API, and the process around it."""

import asyncio
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final

import uvicorn

from agentserve.emulator.app import App
from agentserve.emulator.config import EmulatorConfig
from agentserve.errors import Unavailable

GRACE_S: Final = 2.0
"""How long a stopping server lets open streams end."""


class Server(uvicorn.Server):
    """uvicorn, with signal handlers only where the server owns the process."""

    def __init__(self, config: uvicorn.Config, *, owns_process: bool) -> None:
        super().__init__(config)
        self._owns_process = owns_process
        self.answering = asyncio.Event()
        """Set once requests are answered, or will never be."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to whoever runs the process, unless that is us."""
        if self._owns_process:
            with super().capture_signals():
                yield
        else:
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        try:
            await super().startup(sockets)
        finally:
            self.answering.set()


async def serve(config: EmulatorConfig, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Run an emulated engine until SIGTERM or SIGINT; `on_ready` gets its URL once it answers.

    Raises Unavailable if the port is taken, BadInput for an unreadable script.
    """
    app = App(config)
    listener = open_listener(config)
    server = make_server(app, owns_process=True)
    async with asyncio.TaskGroup() as tasks:
        pacing = tasks.create_task(app.run(address_of(listener)))
        if on_ready is not None:
            tasks.create_task(_announce(server, listener, on_ready))
        try:
            await server.serve(sockets=[listener])
        finally:
            pacing.cancel()


def make_server(app: App, *, owns_process: bool, grace_s: float = GRACE_S) -> Server:
    """A uvicorn server for `app`: fast parts, no access log."""
    settings: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False, "http": "httptools"}
    config = uvicorn.Config(app, timeout_graceful_shutdown=max(1, round(grace_s)), timeout_keep_alive=60, **settings)
    return Server(config, owns_process=owns_process)


def open_listener(config: EmulatorConfig) -> socket.socket:
    """A listening socket. Raises Unavailable naming the address if it is taken or not ours."""
    try:
        listener = socket.create_server((config.host, config.port), backlog=1024)
    except OSError as error:
        raise Unavailable(f"emulator: cannot listen on {config.host}:{config.port}: {error.strerror}") from None
    # asyncio turns Nagle off only where a socket names its protocol, which this one does not: without this a stream's
    # first token waits up to 40 ms for the client to acknowledge the headers. Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Host and port under which others reach a listening socket."""
    host, port = listener.getsockname()[:2]
    return (socket.gethostname() if ip_address(host).is_unspecified else str(host)), int(port)


def url_of(listener: socket.socket) -> str:
    """The URL under which a listening socket is reached."""
    host, port = address_of(listener)
    return f"http://{host}:{port}"


async def _announce(server: Server, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    await server.answering.wait()
    on_ready(url_of(listener))
