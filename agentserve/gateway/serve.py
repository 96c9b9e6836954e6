"""How does the gateway run as a process? Its parts connected, its port opened, and a stop that lets calls end."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from prometheus_client import disable_created_metrics
from starlette.applications import Starlette

from agentserve.errors import BadInput, Unavailable
from agentserve.gateway.app import create_app
from agentserve.gateway.connections import bounded
from agentserve.gateway.fleet import Fleet
from agentserve.journal import RunEvent
from agentserve.orchestrator import Orchestrator
from agentserve.orchestrator.eventlog import EventLog
from agentserve.profile_files import read_profiles
from agentserve.settings import Settings
from agentserve.telemetry.cluster_metrics import ClusterCollector
from agentserve.telemetry.drift import DriftLog
from agentserve.telemetry.exporter import make_span_processor
from agentserve.telemetry.metrics import MetricSink
from agentserve.telemetry.metrics_page import GatewayCollector, MetricsPage, Reading, add_process_metrics
from agentserve.telemetry.mode_figures import ModeCounts
from agentserve.telemetry.open_runs import OpenRuns
from agentserve.telemetry.tracing import SpanSink
from agentserve.tenants.book import TenantBook
from agentserve.tracker.redis import RedisStore
from agentserve.tracker.sink import StoreSink
from agentserve.workers.config import EngineConfig
from scheduler.config import MigrationConfig, SchedulerConfig
from scheduler.core import Scheduler, make_scheduler
from scheduler.errors import SchedulerError
from scheduler.modes import plain_policy
from scheduler.profiles import ProfileBook
from scheduler.wire import header

logger = logging.getLogger(__name__)

SEED: Final = 0
_LAST_BYTES_S: Final = 3


async def run_gateway(
    settings: Settings,
    *,
    static_engines: Sequence[EngineConfig] = (),
    on_ready: Callable[[str], None] | None = None,
    handle_signals: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT; then take no more calls, let those in flight end, and stop.

    `on_ready` gets the base URL once requests are answered. Raises Unavailable (the port is in use, no Redis) and
    BadInput (unknown policy, bad URL, an event log that exists). Without a broker it warns and serves on.
    """
    tenants = _tenants(settings)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request to an engine
    with contextlib.closing(_listen(settings.host, settings.port)) as listener:
        async with running_app(settings, static_engines, tenants) as app:
            server = _Server(_uvicorn_config(app, settings))
            stopping = asyncio.create_task(_stop_on_signal(server, app.state.orchestrator, settings, handle_signals))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await server.answering.wait()
                if on_ready is not None and server.started:
                    on_ready(
                        f"{'http' if settings.tls_cert_file is None else 'https'}://{settings.host}:{listener.getsockname()[1]}"
                    )
                await asyncio.shield(serving)
                if not server.started:
                    raise Unavailable("the gateway could not start; its log says why")
            finally:
                server.should_exit = True
                stopping.cancel()
                await asyncio.wait({stopping, serving})


@asynccontextmanager
async def running_app(
    settings: Settings, static_engines: Sequence[EngineConfig] = (), tenants: TenantBook | None = None
) -> AsyncIterator[Starlette]:
    """The application with all its parts connected: store, sinks, scheduler, orchestrator, fleet.

    Its own lifespan, which the server runs, starts the orchestrator. `app.state.fleet` is the Fleet.
    """
    profiles = read_profiles(settings.profiles)
    scheduler = _scheduler(settings, profiles)
    _check_observed(settings)
    async with AsyncExitStack() as stack:
        store = await RedisStore.connect(settings)
        stack.push_async_callback(store.close)
        journal = await stack.enter_async_context(StoreSink(store))
        sending = make_span_processor(settings.otlp_endpoint)
        if sending is not None:
            stack.push_async_callback(asyncio.to_thread, sending.shutdown)
        spans, open_runs, metrics = SpanSink(sending, share=settings.trace_share), OpenRuns(), MetricSink()
        mode_counts = ModeCounts()
        orchestrator = Orchestrator(
            scheduler,
            settings,
            sinks=(journal, open_runs, spans, metrics, mode_counts),
            event_log=_event_log(settings, scheduler, profiles),
            traceparent=spans.traceparent,
            on_handled=metrics.handled,
        )
        fleet = Fleet(settings, orchestrator, static_engines)
        app = create_app(
            settings,
            store=store,
            orchestrator=orchestrator,
            render_metrics=_metrics_page(metrics, orchestrator, fleet, journal).render,
            restore=_each(open_runs.restore, spans.restore, metrics.restore),
            blame=open_runs.blame,
            foresee=open_runs.foresee,
            mode_counts=mode_counts,
            on_mode=metrics.in_mode,
            background=(fleet.run, DriftLog(scheduler.snapshot).run),
            tenants=tenants,
            on_refused=metrics.refused,
        )
        app.state.fleet = fleet
        yield app


def _metrics_page(metrics: MetricSink, orchestrator: Orchestrator, fleet: Fleet, journal: StoreSink) -> MetricsPage:
    cluster = ClusterCollector(orchestrator.snapshot)
    metrics.registry.register(cluster)
    metrics.registry.register(
        GatewayCollector(
            (
                Reading(
                    "agentserve_broker_connected",
                    "1: the broker is there; 0: it is not. Nothing without a broker in the settings.",
                    lambda: None if fleet.bus is None else float(fleet.bus.connected),
                ),
                Reading(
                    "agentserve_worker_messages_unsigned",
                    "Messages on workers' topics that their worker had not signed, and that were ignored.",
                    lambda: fleet.registry.unsigned,
                    is_counter=True,
                ),
                Reading("agentserve_journal_waiting_events", "Events not yet in Redis.", lambda: journal.waiting),
                Reading(
                    "agentserve_journal_dropped_events",
                    "Events that Redis never got.",
                    lambda: journal.dropped,
                    is_counter=True,
                ),
            )
        )
    )
    add_process_metrics(metrics.registry)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else each histogram and counter has one more gauge
    return MetricsPage(metrics.registry, refresh=(cluster.refresh,))


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own, so that calls can be let to end first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `run_gateway`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, and say so, also when that failed."""
        try:
            await super().startup(sockets)
        finally:
            self.answering.set()


async def _stop_on_signal(
    server: _Server, orchestrator: Orchestrator, settings: Settings, handle_signals: bool
) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
    for number in signals:
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
        logger.info("stopping: letting %d calls end", len(orchestrator.calls))
        asked.clear()
        drained = asyncio.create_task(orchestrator.drain(settings.drain_timeout_s))
        again = asyncio.create_task(asked.wait())
        await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        again.cancel()
        orchestrator.stop_calls()
        server.should_exit = True
        await asyncio.Event().wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _uvicorn_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(settings.head_timeout_s, settings.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_LAST_BYTES_S,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )


def _tenants(settings: Settings) -> TenantBook | None:
    """Who may call. BadInput where everybody could who reaches an address that is not loopback."""
    if settings.tenants_file is not None:
        return TenantBook(settings.tenants_file)
    if is_loopback(settings.host):
        logger.warning("authentication is off: whoever reaches %s may do everything", settings.host)
    elif settings.allow_anonymous:
        logger.warning(
            "authentication is off on %s (AGENTSERVE_ALLOW_ANONYMOUS): whoever reaches it may do everything",
            settings.host,
        )
    else:
        raise BadInput(
            f"{settings.host} is reached from other machines, and there are no API keys: make one with "
            "`agentserve keys new TENANT` and set AGENTSERVE_TENANTS_FILE, or, if something else guards it, set "
            "AGENTSERVE_ALLOW_ANONYMOUS=1"
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadInput(f"cannot listen on {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        in_use = f"port {port} on {host} is in use"
        raise Unavailable(in_use if error.errno == errno.EADDRINUSE else f"{host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def _each(*told: Callable[[Sequence[RunEvent]], None]) -> Callable[[Sequence[RunEvent]], None]:
    def tell(events: Sequence[RunEvent]) -> None:
        for one in told:
            one(events)

    return tell


def _scheduler(settings: Settings, profiles: ProfileBook) -> Scheduler:
    config = SchedulerConfig(migration=MigrationConfig(kv_moves=settings.kv_moves))
    try:
        return make_scheduler(settings.policy, config, seed=SEED, profiles=profiles)
    except SchedulerError as error:
        raise BadInput(f"AGENTSERVE_POLICY={settings.policy!r}: {error}") from None


def _check_observed(settings: Settings) -> None:
    try:
        plain_policy(settings.observed_policy)
    except SchedulerError as error:
        raise BadInput(f"AGENTSERVE_OBSERVED_POLICY={settings.observed_policy!r}: {error}") from None


def _event_log(settings: Settings, scheduler: Scheduler, profiles: ProfileBook) -> EventLog | None:
    if settings.event_log is None:
        return None
    return EventLog(settings.event_log, header(settings.policy, scheduler.config, SEED, profiles))
