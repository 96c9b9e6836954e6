"""The gateway with nothing that watches it: calls are placed, relayed and journalled, and that is all.

    python -m benchmarks.bare_gateway ENGINE_URL,GPU,MODEL …

What `benchmarks/overhead.py` holds the whole gateway against: the same parts without spans, metrics, blame and drift.
Settings are those of `agentserve gateway`, from AGENTSERVE_* variables.
"""

import sys
from collections.abc import Sequence

import uvicorn
import uvloop

from agentserve.gateway.app import create_app
from agentserve.gateway.fleet import Fleet
from agentserve.gateway.serve import SEED
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings, load_settings
from agentserve.tracker.redis import RedisStore
from agentserve.tracker.sink import StoreSink
from agentserve.workers.config import EngineConfig
from scheduler.core import make_scheduler


async def serve(settings: Settings, engines: Sequence[EngineConfig]) -> None:
    """Serve until SIGTERM."""
    store = await RedisStore.connect(settings)
    try:
        async with StoreSink(store) as journal:
            orchestrator = Orchestrator(make_scheduler(settings.policy, seed=SEED), settings, sinks=(journal,))
            fleet = Fleet(settings, orchestrator, engines)
            app = create_app(settings, store=store, orchestrator=orchestrator, background=(fleet.run,))
            await _server(app, settings).serve()
    finally:
        await store.close()


def _server(app: object, settings: Settings) -> uvicorn.Server:
    """As in `agentserve/gateway/serve.py`."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http="httptools",
        lifespan="on",
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def main() -> None:
    """Serve with the engines on the command line."""
    engines = []
    for text in sys.argv[1:]:
        url, gpu, model = text.split(",")
        engines.append(EngineConfig(engine_url=url, gpu=gpu, model=model))
    uvloop.run(serve(load_settings(), engines))


if __name__ == "__main__":
    main()
