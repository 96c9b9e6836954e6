"""How does a test or a benchmark run an emulated engine inside its own event loop?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentserve.emulator.app import App
from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.server import address_of, make_server, open_listener, url_of


@asynccontextmanager
async def running(config: EmulatorConfig) -> AsyncIterator[str]:
    """Serve `config` over real HTTP on this event loop (port 0: a free one); gives the URL.

    Leaving stops it; streams still open then are cut after a second. Raises like `server.serve`.
    """
    app = App(config)
    listener = open_listener(config)
    server = make_server(app, owns_process=False, grace_s=1.0)
    pacing = asyncio.create_task(app.run(address_of(listener)))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.answering.wait()
        yield url_of(listener)
    finally:
        server.should_exit = True
        await asyncio.wait([serving])
        pacing.cancel()
        await asyncio.wait([pacing])
        listener.close()
    if serving.exception() is not None:
        await serving
