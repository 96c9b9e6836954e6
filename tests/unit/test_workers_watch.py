"""When a look at an engine finds it well, unwell, or another one."""

from collections.abc import Callable
from typing import Any

import httpx

from agentserve.engines.metric_names import VLLM_METRICS
from agentserve.workers.scrape import Change
from agentserve.workers.watch import EngineWatch
from tests.integration.worker_parts import FakeEngine


class Scene:
    """An engine, a clock that the test sets, and a watch."""

    def __init__(self, **options: Any) -> None:
        self.now_s = 100.0
        self.takes_s = 0.0
        self.engine = FakeEngine(port=1)
        self.fails: Callable[[httpx.Request], Exception | None] = lambda request: None
        self.asked: list[str] = []
        self.watch = EngineWatch(
            httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://e"),
            recheck_every_s=5.0,
            wall_clock=lambda: 1e9 + self.now_s,
            steady_clock=lambda: self.now_s,
            **options,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if request.url.path.endswith("/metrics"):
            self.now_s += self.takes_s
        if error := self.fails(request):
            raise error
        status, body = self.engine.answer(request.method, request.url.path, {})
        return httpx.Response(status, content=body)


async def test_a_look_reads_state_and_later_rates() -> None:
    scene = Scene()
    scene.engine.running = 4
    first = await scene.watch.look()
    assert first.reading is not None
    assert (first.healthy, first.reading.running, first.measured_at_s) == (True, 4, 1e9 + 100)
    assert first.change == Change()
    scene.now_s += 0.5
    scene.engine.counters["generation_tokens"] += 200
    assert (await scene.watch.look()).change.decode_tokens_per_s == 400.0


async def test_health_and_identity_are_asked_for_less_often_than_metrics() -> None:
    scene = Scene()
    for _ in range(50):
        await scene.watch.look()
        scene.now_s += 0.2
    asked = {path: scene.asked.count(path) for path in set(scene.asked)}
    assert asked["/metrics"] == 50
    assert 8 <= asked["/health"] <= 10
    assert asked["/v1/models"] == asked["/version"] == 2


async def test_a_refused_connection_is_unhealthy_at_once_and_coming_back_is_another_engine() -> None:
    scene = Scene()
    await scene.watch.look()
    scene.fails = lambda request: httpx.ConnectError("refused")
    down = await scene.watch.look()
    assert (down.healthy, down.problem) == (False, "refused")
    scene.fails = lambda request: None
    back = await scene.watch.look()
    assert (back.healthy, back.is_another, back.change) == (True, True, Change())
    assert not (await scene.watch.look()).is_another


async def test_a_slow_answer_is_forgiven_twice() -> None:
    scene = Scene()
    scene.fails = lambda request: httpx.ReadTimeout("slow")
    looks = [await scene.watch.look() for _ in range(4)]
    assert [look.healthy for look in looks] == [True, True, False, False]
    assert [look.reading for look in looks] == [None] * 4


async def test_a_dead_engine_behind_a_living_front_end_is_unhealthy() -> None:
    scene = Scene()
    await scene.watch.look()
    scene.engine.health = 503
    scene.now_s += 1.0
    look = await scene.watch.look()
    assert (look.healthy, look.problem) == (False, "/health answered 503")
    assert not (await scene.watch.look()).healthy
    scene.engine.health = 200
    assert (await scene.watch.look()).healthy


async def test_an_engine_without_metrics_is_judged_by_its_health() -> None:
    scene = Scene()
    scene.engine.has_metrics = False
    look = await scene.watch.look()
    assert (look.healthy, look.reading) == (True, None)


async def test_counters_that_fell_mean_a_restart() -> None:
    scene = Scene()
    await scene.watch.look()
    scene.now_s += 0.2
    scene.engine.counters["generation_tokens"] = 0
    look = await scene.watch.look()
    assert (look.is_another, look.change) == (True, Change())


async def test_another_model_or_version_is_noticed_at_the_next_recheck() -> None:
    scene = Scene()
    await scene.watch.look()
    scene.engine.version = "0.33.0"
    assert not (await scene.watch.look()).is_another
    scene.now_s += 5.0
    assert (await scene.watch.look()).is_another
    scene.engine.models = ["another"]
    scene.now_s += 5.0
    assert (await scene.watch.look()).is_another


async def test_metrics_that_come_slowly_are_asked_for_less_often_but_health_at_every_look() -> None:
    scene = Scene(read_every_s=0.2)
    scene.takes_s = 0.02
    readings = []
    for _ in range(50):
        readings.append((await scene.watch.look()).reading)
        scene.now_s += 0.2
    assert scene.asked.count("/metrics") == sum(reading is not None for reading in readings) == 10
    assert scene.asked.count("/health") >= 40


async def test_rates_span_the_looks_that_read_nothing() -> None:
    scene = Scene(read_every_s=1.0)
    await scene.watch.look()
    scene.engine.counters["generation_tokens"] += 200
    scene.now_s += 0.5
    between = await scene.watch.look()
    assert (between.healthy, between.reading, between.change) == (True, None, Change())
    scene.now_s += 0.5
    assert (await scene.watch.look()).change.decode_tokens_per_s == 200.0


async def test_an_engine_that_dies_between_two_readings_is_noticed_at_the_next_look() -> None:
    scene = Scene(read_every_s=2.0)
    await scene.watch.look()
    scene.now_s += 0.2
    scene.engine.health = 503
    assert not (await scene.watch.look()).healthy
    scene.engine.health = 200
    scene.now_s += 0.2
    back = await scene.watch.look()
    assert (back.healthy, back.is_another, back.reading is not None) == (True, True, True)


async def test_a_kind_without_metrics_is_not_asked_for_any() -> None:
    scene = Scene(kind="openai", names={})
    assert (await scene.watch.look()).reading is None
    assert "/metrics" not in scene.asked


async def test_tensorrt_llms_draining_page_is_never_read() -> None:
    scene = Scene(kind="trtllm", names=VLLM_METRICS)
    await scene.watch.look()
    assert "/prometheus/metrics" in scene.asked
    assert "/metrics" not in scene.asked
