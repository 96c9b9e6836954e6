"""How is the page of metrics made without holding up calls? State is read on the loop, text is written in a thread."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure that the gateway keeps anyway; `read` is called at every scrape and gives None for unknown."""

    name: str
    text: str
    read: Callable[[], float | None]
    is_counter: bool = False


class GatewayCollector(Collector):
    """What the gateway's own parts tell, without labels."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = tuple(readings)

    def collect(self) -> Iterator[Metric]:
        """One family per reading."""
        for reading in self._readings:
            family = CounterMetricFamily if reading.is_counter else GaugeMetricFamily
            value = reading.read()
            yield (
                family(reading.name, reading.text, value=value)
                if value is not None
                else family(reading.name, reading.text)
            )


class MetricsPage:
    """The text exposition of a registry. `refresh` are called first, on the loop, for collectors that read live state.

    Who asks while a page is being made gets that one: however many scrape, one page is made at a time.
    """

    def __init__(self, registry: CollectorRegistry, refresh: Sequence[Callable[[], None]] = ()) -> None:
        self._registry = registry
        self._refresh = tuple(refresh)
        self._making: asyncio.Task[bytes] | None = None

    async def render(self) -> bytes:
        """The page, of type CONTENT_TYPE."""
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make(), name="metrics page")
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        for refresh in self._refresh:
            refresh()
        return await asyncio.to_thread(generate_latest, self._registry)


def add_process_metrics(registry: CollectorRegistry) -> None:
    """CPU, memory and open files of this process, under the client's usual names (Linux only)."""
    ProcessCollector(registry=registry)
