"""What Prometheus reads of the instances, and how the page is made."""

import asyncio
import threading
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from agentserve.telemetry.cluster_metrics import ClusterCollector
from agentserve.telemetry.metrics_page import GatewayCollector, MetricsPage, Reading


def instance(name: str, state: str = "online", *, drained: bool = False) -> dict[str, Any]:
    return {
        "instance_id": name, "model": "m", "gpu": "h100", "role": "mixed", "state": state, "drained": drained
    }  # fmt: skip


def estimate(name: str, *drifted: str, **figures: float) -> dict[str, Any]:
    plain = {"queued": 0, "running": 0, "kv_usage": 0.0, "predicted_queue_s": 0.0}
    corrections = {"prefill_correction": 1.0, "decode_correction": 1.0}
    return {"instance_id": name, **plain, **corrections, "drifted": list(drifted), **figures}


class Read:
    """A registry over a cluster that the test changes."""

    def __init__(self, *instances: dict[str, Any], **options: Any) -> None:
        self.instances = list(instances)
        self.estimates = [estimate(one["instance_id"]) for one in instances if one["state"] != "lost"]
        self.now_s = 0.0
        self.registry = CollectorRegistry()
        self.collector = ClusterCollector(self.snapshot, clock=lambda: self.now_s, **options)
        self.registry.register(self.collector)
        self.collector.refresh()

    def snapshot(self) -> dict[str, Any]:
        return {"instances": self.instances, "scheduler": {"instances": self.estimates}}

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"agentserve_{name}", labels)

    def of(self, name: str, worker: str) -> float | None:
        return self.value(name, worker=worker, model="m", gpu="h100", role="mixed")

    def up(self) -> dict[str, float]:
        samples = [s for family in self.registry.collect() for s in family.samples]
        return {s.labels["worker"]: s.value for s in samples if s.name == "agentserve_instance_up"}


def test_an_instance_shows_queue_running_calls_and_kv_use() -> None:
    read = Read(instance("a"), instance("b"))
    read.estimates = [estimate("a", queued=3, running=2, kv_usage=0.25, predicted_queue_s=1.5), estimate("b")]
    read.collector.refresh()

    assert read.of("instance_queued_calls", "a") == 3
    assert read.of("instance_running_calls", "a") == 2
    assert read.of("instance_kv_usage_ratio", "a") == 0.25
    assert read.of("instance_predicted_queue_seconds", "a") == 1.5
    assert read.of("instance_queued_calls", "b") == 0


def test_every_instance_has_a_correction_per_phase_and_says_whether_its_profile_fits() -> None:
    read = Read(instance("a"))
    read.estimates = [estimate("a", "decode", prefill_correction=0.9, decode_correction=1.5)]
    read.collector.refresh()

    assert read.value("profile_correction_ratio", worker="a", phase="prefill") == 0.9
    assert read.value("profile_correction_ratio", worker="a", phase="decode") == 1.5
    assert read.value("profile_drifted", worker="a", phase="prefill") == 0
    assert read.value("profile_drifted", worker="a", phase="decode") == 1


def test_a_lost_instance_is_down_and_has_no_figures() -> None:
    read = Read(instance("a"), instance("b", "lost"))
    assert read.up() == {"a": 1, "b": 0}
    assert read.of("instance_queued_calls", "b") is None
    assert read.value("instances", gpu="h100", role="mixed", state="lost") == 1


def test_an_instance_that_left_after_a_drain_is_not_down() -> None:
    assert Read(instance("a"), instance("b", "lost", drained=True)).up() == {"a": 1}


def test_a_draining_instance_is_up() -> None:
    read = Read(instance("a", "draining"))
    assert read.up() == {"a": 1}
    assert read.value("instances", gpu="h100", role="mixed", state="draining") == 1


def test_a_lost_instance_is_forgotten_after_a_while_and_lost_anew_after_a_return() -> None:
    read = Read(instance("a", "lost"), lost_shown_s=60.0)
    read.now_s = 61.0
    read.collector.refresh()
    assert read.up() == {}
    read.instances = [instance("a")]
    read.collector.refresh()
    assert read.up() == {"a": 1}
    read.instances = [instance("a", "lost")]
    read.collector.refresh()
    assert read.up() == {"a": 0}


def test_only_so_many_instances_have_gauges_live_ones_first_and_all_are_counted() -> None:
    read = Read(instance("a", "lost"), *(instance(f"b{i}") for i in range(5)), max_workers=3)
    assert read.up() == {"b0": 1, "b1": 1, "b2": 1}
    assert read.value("instances", gpu="h100", role="mixed", state="online") == 5
    assert read.value("instances", gpu="h100", role="mixed", state="lost") == 1


def test_figures_of_the_gateway_are_read_at_every_scrape_and_unknown_ones_are_left_out() -> None:
    waiting: list[float | None] = [None, 3.0]
    registry = CollectorRegistry()
    registry.register(
        GatewayCollector(
            (
                Reading("waiting", "Text.", lambda: waiting.pop(0)),
                Reading("dropped", "Text.", lambda: 2.0, is_counter=True),
            )
        )
    )
    assert registry.get_sample_value("waiting") is None
    assert registry.get_sample_value("waiting") == 3.0
    waiting.append(None)
    assert registry.get_sample_value("dropped_total") == 2.0


async def test_state_is_read_on_the_loop_and_text_is_written_in_another_thread() -> None:
    threads: dict[str, threading.Thread] = {}
    registry = CollectorRegistry()
    registry.register(GatewayCollector((Reading("x", "Text.", lambda: note("text")),)))

    def note(where: str) -> float:
        threads[where] = threading.current_thread()
        return 1.0

    page = await MetricsPage(registry, refresh=(lambda: (note("state"), None)[1],)).render()

    assert b"x 1.0" in page
    assert threads["state"] is threading.current_thread()
    assert threads["text"] is not threading.current_thread()


async def test_those_who_scrape_at_once_share_one_page() -> None:
    registry = CollectorRegistry()
    made = Counter("made", "Pages.", registry=registry)
    page = MetricsPage(registry, refresh=(made.inc,))

    assert len(set(await asyncio.gather(*(page.render() for _ in range(50))))) == 1
    assert registry.get_sample_value("made_total") == 1
    assert b"made_total 2.0" in await page.render()
