"""What does the process beside an engine do? Announce it, report its state at 5 Hz, drain it, and leave a last will."""

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Literal, TypeVar

import httpx
from pydantic import ValidationError

from agentserve.engines import open_adapter
from agentserve.errors import AgentServeError
from agentserve.telemetry.bus import Bus, LastWill
from agentserve.telemetry.messages import Announce, Channel, Control, Message, Report, Status, topic
from agentserve.telemetry.signing import is_signed, opened, signed
from agentserve.workers.config import WorkerConfig
from agentserve.workers.discovery import check_gpu, client_for, discover
from agentserve.workers.scrape import Reading
from agentserve.workers.watch import EngineWatch, Look

logger = logging.getLogger(__name__)

_GOODBYE_TIMEOUT_S: Final = 1.0
_IDLE_LOOKS: Final = 2
"""Looks in a row at an idle engine that end a drain: a call sent before the news may still be on its way."""
_T = TypeVar("_T")


async def run_worker(config: WorkerConfig) -> None:
    """Speak for an engine until SIGTERM, SIGINT or cancellation; returns when it has drained and said goodbye.

    Waits for the engine, and goes on trying for a broker, for as long as it takes. Raises BadInput for an unknown GPU,
    a model that the engine does not serve or a fact that nobody knows, and Unavailable after `ready_timeout_s`.
    """
    check_gpu(config)
    boot_id = f"{time.time_ns() // 1_000_000:x}-{secrets.token_hex(4)}"
    will_topic = topic(config.cluster, config.instance_id, Channel.STATUS)
    bus = Bus(
        config.mqtt_url,
        ca_file=config.mqtt_ca_file,
        client_id=f"agentserve-{config.instance_id}-{boot_id}",
        will=LastWill(
            will_topic,
            _encode(Status(worker_id=config.instance_id, boot_id=boot_id, state="offline"), will_topic, config.key),
        ),
    )
    stop = StopRequest()
    with stop.on_signals() if config.handle_signals else contextlib.nullcontext():
        async with client_for(config) as client:
            announce = await stop.unless_asked(discover(config, client, boot_id))
            if announce is not None:
                await _serve(Worker(config, client, bus, announce, stop), bus)


async def _serve(worker: "Worker", bus: Bus) -> None:
    async with asyncio.TaskGroup() as tasks:
        connection = tasks.create_task(bus.run())
        try:
            await worker.run()
        finally:  # cancelled, too: a goodbye is better than a will
            worker.say_goodbye()
            await bus.flush(_GOODBYE_TIMEOUT_S)
            connection.cancel()


class StopRequest:
    """Set once by the first signal to stop; the second asks for no more patience."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = False

    def ask(self) -> None:
        """Stop after draining; asked again, stop at once."""
        self.at_once = self.asked.is_set()
        self.asked.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask, as long as this lasts."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.ask)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def unless_asked(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """The result of `work`; None, and `work` is cancelled, if a stop is asked for first."""
        working, asked = asyncio.ensure_future(work), asyncio.ensure_future(self.asked.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, asked):
                task.cancel()
            await asyncio.gather(working, asked, return_exceptions=True)


class Worker:
    """One boot of a worker: what it has announced, and the loop that reports."""

    def __init__(
        self, config: WorkerConfig, client: httpx.AsyncClient, bus: Bus, announce: Announce, stop: StopRequest
    ) -> None:
        """Subscribes; nothing is sent before `run`."""
        self._config, self._client, self._bus, self._stop = config, client, bus, stop
        self._announce = announce
        self._watch = self._new_watch()
        self._seq = 0
        self._told_to_drain = False
        self._state: Literal["online", "draining", "offline"] | None = None
        self._fits = True
        self._well = True
        self._idle_looks = 0
        self._looking: asyncio.Task[Look] | None = None
        self._rediscovering: asyncio.Task[Announce] | None = None
        bus.subscribe(topic(config.cluster, config.instance_id, Channel.CONTROL), self._controlled)

    def _new_watch(self) -> EngineWatch:
        kind = self._announce.engine
        return EngineWatch(
            self._client,
            kind=kind,
            names=open_adapter(kind, self._config.engine_url).capabilities.metrics,
            read_every_s=self._config.report_interval_s,
            recheck_every_s=self._config.recheck_interval_s,
            wall_clock=time.time,
            steady_clock=time.monotonic,
        )

    async def run(self) -> None:
        """Report every `report_interval_s` until asked to stop and drained."""
        self._state_facts()
        give_up_s: float | None = None
        try:
            while True:
                started_s = time.monotonic()
                if self._stop.asked.is_set():
                    give_up_s = give_up_s or started_s + self._config.drain_timeout_s
                    self._state_status()
                    if self._stop.at_once or self._idle_looks >= _IDLE_LOOKS or started_s >= give_up_s:
                        return
                await self._look_and_report()
                await self._pause(started_s + self._config.report_interval_s - time.monotonic())
        finally:
            await self._abandon_tasks()

    def say_goodbye(self) -> None:
        """State that this worker is gone, for good."""
        self._state = "offline"
        self._publish_status()

    async def _look_and_report(self) -> None:
        """One report, with a reading if the engine answers in time, else as a sign of life alone."""
        self._take_rediscovered()
        if self._looking is None:
            self._looking = asyncio.create_task(self._watch.look())
        await asyncio.wait({self._looking}, timeout=self._config.report_interval_s)
        look = Look(measured_at_s=time.time(), healthy=self._well)
        if self._looking.done():
            look, self._looking = self._looking.result(), None
            self._take(look)
        self._report(look)

    def _take(self, look: Look) -> None:
        if look.healthy != self._well:
            logger.log(
                logging.INFO if look.healthy else logging.WARNING,
                "engine %s is %s",
                self._config.engine_url,
                "well again" if look.healthy else f"unhealthy: {look.problem}",
            )
        self._well = look.healthy
        if self._state != "draining":
            self._idle_looks = 0
        elif look.reading is not None or not look.healthy:  # a look without a reading tells nothing of its load
            self._idle_looks = self._idle_looks + 1 if not look.healthy or _is_idle(look.reading) else 0
        if look.is_another and self._rediscovering is None:
            logger.info("engine %s restarted or changed; asking it again", self._config.engine_url)
            self._rediscover()

    def _rediscover(self, after_s: float = 0.0) -> None:
        async def ask_again() -> Announce:
            await asyncio.sleep(after_s)
            return await discover(self._config, self._client, self._announce.boot_id)

        self._rediscovering = asyncio.create_task(ask_again())

    def _take_rediscovered(self) -> None:
        task = self._rediscovering
        if task is None or not task.done():
            return
        self._rediscovering = None
        try:
            announce = task.result()
        except AgentServeError as error:
            if self._fits:
                logger.error("the engine can no longer be used: %s", error)
            self._fits = False
            self._rediscover(self._config.recheck_interval_s)
            return
        self._fits = True
        if announce != self._announce:
            is_other_kind = announce.engine != self._announce.engine
            self._announce = announce
            if is_other_kind:
                self._watch = self._new_watch()
            self._state_facts()

    def _report(self, look: Look) -> None:
        self._seq += 1
        reading, change = look.reading, look.change
        report = Report(
            worker_id=self._config.instance_id,
            boot_id=self._announce.boot_id,
            seq=self._seq,
            measured_at_s=look.measured_at_s,
            healthy=look.healthy and self._rediscovering is None,
            running=reading.running if reading else None,
            waiting=reading.waiting if reading else None,
            kv_usage=reading.kv_usage if reading else None,
            prefix_hit_rate=change.prefix_hit_rate,
            prefill_tokens_per_s=change.prefill_tokens_per_s,
            decode_tokens_per_s=change.decode_tokens_per_s,
            preemptions=change.preemptions,
        )
        where = self._topic(Channel.REPORT)
        self._bus.publish(where, _encode(report, where, self._config.key))

    def _controlled(self, _topic: str, payload: bytes) -> None:
        payload, signature = opened(payload)
        key = self._config.key
        if key is not None and not is_signed(payload, signature, self._topic(Channel.CONTROL), key):
            logger.warning("a control message that the gateway had not signed was ignored")
            return
        try:
            control = Control.model_validate_json(payload)
        except ValidationError:
            logger.warning("an unreadable control message was ignored")
            return
        self._told_to_drain = control.action == "drain"
        self._state_status()

    def _state_facts(self) -> None:
        where = self._topic(Channel.ANNOUNCE)
        self._bus.retain(where, _encode(self._announce, where, self._config.key))
        self._state_status()

    def _state_status(self) -> None:
        """State online or draining, if that is news."""
        state: Literal["online", "draining"] = (
            "draining" if self._told_to_drain or self._stop.asked.is_set() else "online"
        )
        if self._state not in (state, "offline"):
            self._state = state
            logger.info("worker %s is %s", self._config.instance_id, state)
            self._publish_status()

    def _publish_status(self) -> None:
        if self._state is None:
            return
        status = Status(worker_id=self._config.instance_id, boot_id=self._announce.boot_id, state=self._state)
        where = self._topic(Channel.STATUS)
        self._bus.retain(where, _encode(status, where, self._config.key))

    def _topic(self, channel: Channel) -> str:
        return topic(self._config.cluster, self._config.instance_id, channel)

    async def _pause(self, duration_s: float) -> None:
        """Sleep; a request to stop wakes, if it is news."""
        if self._stop.asked.is_set():
            await asyncio.sleep(max(duration_s, 0.0))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(duration_s, 0.0)):
                await self._stop.asked.wait()

    async def _abandon_tasks(self) -> None:
        tasks = [t for t in (self._looking, self._rediscovering) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_idle(reading: Reading | None) -> bool:
    return reading is not None and reading.running == 0 and reading.waiting in (0, None)


def _encode(message: Message, where: str, key: str | None) -> bytes:
    return signed(message.model_dump_json().encode(), where, key)
