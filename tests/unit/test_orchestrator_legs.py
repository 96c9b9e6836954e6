"""The legs of a split attempt, on adapters that do what the test says: who is told what, and who is closed when."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from agentserve.engines.adapter import Delta, EngineCall
from agentserve.errors import EngineFailed
from agentserve.orchestrator import legs
from agentserve.orchestrator.call import Attempt
from agentserve.orchestrator.legs import attempt_deltas, release
from scheduler.events import PrefillFinished

SPLIT = Attempt(number=1, prefill="p", decode="d", priority=0)
CALL = EngineCall(path="/v1/completions", body={}, request_id="r")


@dataclass
class Engine:
    """An adapter. `prefills`/`decodes` are exceptions to raise; `gate` holds a leg until it is set."""

    room: Mapping[str, Any] | None = None
    prefills: Exception | None = None
    decodes: Exception | None = None
    deltas: int = 3
    fails_after: int = 99
    healthy: bool = True
    prefill_gate: asyncio.Event = field(default_factory=asyncio.Event)
    decode_gate: asyncio.Event = field(default_factory=asyncio.Event)
    did: list[tuple[str, Any]] = field(default_factory=list)

    def rendezvous(self) -> Mapping[str, Any] | None:
        return self.room

    async def prefill(self, call: EngineCall) -> Mapping[str, Any]:
        self.did.append(("prefill", call.handoff))
        try:
            await self.prefill_gate.wait()
        except asyncio.CancelledError:
            self.did.append(("prefill closed", None))
            raise
        if self.prefills is not None:
            raise self.prefills
        return {"from": "p"}

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        self.did.append(("decode", call.handoff))
        try:
            await self.decode_gate.wait()
            for number in range(self.deltas):
                if self.decodes is not None and number >= self.fails_after:
                    raise self.decodes
                yield Delta(text=str(number), token_ids=(number,))
        except (asyncio.CancelledError, GeneratorExit):
            self.did.append(("decode closed", None))
            raise

    async def release(self, model: str, handoff: Mapping[str, Any]) -> None:
        self.did.append(("release", handoff))

    async def is_healthy(self) -> bool:
        return self.healthy


class Driver:
    """As much of the orchestrator as legs touch."""

    def __init__(self, **engines: Engine) -> None:
        self.engines = engines
        self.fed: list[Any] = []
        self.released: list[Mapping[str, Any]] = []
        self.settling: list[asyncio.Future[Mapping[str, Any]]] = []
        self.diary = SimpleNamespace(of_call=lambda *_, **__: None)
        self.instances = {
            name: SimpleNamespace(
                adapter=engine,
                is_live=True,
                engine="vllm",
                spec=SimpleNamespace(instance_id=name, kv_group="g", model="m"),
            )
            for name, engine in engines.items()
        }

    def adapter(self, name: str) -> Engine:
        return self.engines[name]

    def next_id(self) -> str:
        return "e"

    def feed(self, event: Any) -> None:
        self.fed.append(event)

    def release_soon(self, attempt: Attempt, handoff: Mapping[str, Any]) -> None:
        self.released.append(handoff)

    def settle_soon(self, attempt: Attempt, prefill: asyncio.Future[Mapping[str, Any]]) -> None:
        self.settling.append(prefill)


def live() -> Any:
    return SimpleNamespace(runs_on=("p",), request_id="r")


def opened(engine: Engine) -> Engine:
    engine.prefill_gate.set()
    engine.decode_gate.set()
    return engine


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def run(driver: Driver, call: Any) -> list[str]:
    return [delta.text async for delta in attempt_deltas(driver, call, SPLIT, CALL)]  # type: ignore[arg-type]  # stands in


async def test_the_decode_leg_waits_for_the_prefill_legs_answer_and_is_sent_it() -> None:
    driver, call = Driver(p=opened(Engine()), d=opened(Engine())), live()
    assert await run(driver, call) == ["0", "1", "2"]
    assert driver.engines["p"].did == [("prefill", None)]
    assert driver.engines["d"].did == [("decode", {"from": "p"})]
    assert driver.fed == [PrefillFinished(event_id="e", request_id="r")]
    assert (call.runs_on, driver.released) == (("d",), [])


async def test_a_prefill_leg_that_fails_is_blamed_and_nothing_is_sent_to_the_decode_side() -> None:
    driver, call = Driver(p=opened(Engine(prefills=EngineFailed("broke"))), d=opened(Engine())), live()
    with pytest.raises(EngineFailed, match="broke"):
        await run(driver, call)
    assert (driver.engines["d"].did, call.runs_on, driver.fed) == ([], ("p",), [])


async def test_kv_is_released_if_the_decode_leg_fails_before_its_first_token() -> None:
    driver, call = Driver(p=opened(Engine()), d=opened(Engine(decodes=EngineFailed("no"), fails_after=0))), live()
    with pytest.raises(EngineFailed, match="no"):
        await run(driver, call)
    assert (driver.released, call.runs_on) == ([{"from": "p"}], ("p", "d"))


async def test_kv_that_was_pulled_is_not_released_again() -> None:
    driver, call = Driver(p=opened(Engine()), d=opened(Engine(decodes=EngineFailed("no"), fails_after=1))), live()
    with pytest.raises(EngineFailed, match="no"):
        await run(driver, call)
    assert (driver.released, call.runs_on) == ([], ("d",))


async def test_legs_that_meet_in_a_room_are_sent_at_once_with_the_same_handoff() -> None:
    driver, call = Driver(p=opened(Engine(room={"room": 7})), d=opened(Engine())), live()
    assert await run(driver, call) == ["0", "1", "2"]
    assert driver.engines["p"].did[0] == ("prefill", {"room": 7})
    assert driver.engines["d"].did[0] == ("decode", {"room": 7})


async def test_the_decode_leg_streams_on_after_its_prefill_leg_has_ended() -> None:
    source, target = Engine(room={"room": 7}), Engine()
    driver, call = Driver(p=source, d=target), live()
    source.prefill_gate.set()
    answer = asyncio.create_task(run(driver, call))
    await settled()
    assert len(driver.fed) == 1
    target.decode_gate.set()
    assert await answer == ["0", "1", "2"]
    assert call.runs_on == ("d",)


async def test_a_prefill_leg_that_fails_in_its_room_closes_the_decode_leg_at_once() -> None:
    source, target = Engine(room={"room": 7}, prefills=EngineFailed("broke")), Engine()
    driver, call = Driver(p=source, d=target), live()
    source.prefill_gate.set()
    with pytest.raises(EngineFailed, match="broke"):
        await run(driver, call)
    assert target.did == [("decode", {"room": 7}), ("decode closed", None)]
    assert call.runs_on[-1] == "p"


async def test_a_decode_leg_that_fails_closes_the_prefill_leg_at_once() -> None:
    source, target = Engine(room={"room": 7}), Engine(decodes=EngineFailed("no"), fails_after=0)
    driver, call = Driver(p=source, d=target), live()
    target.decode_gate.set()
    with pytest.raises(EngineFailed, match="no"):
        await run(driver, call)
    assert source.did == [("prefill", {"room": 7}), ("prefill closed", None)]
    assert call.runs_on[-1] == "d"


async def test_a_client_that_leaves_closes_both_legs_in_a_room_at_once() -> None:
    source, target = Engine(room={"room": 7}), Engine()
    answer = asyncio.create_task(run(Driver(p=source, d=target), live()))
    await settled()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert (source.did[-1], target.did[-1]) == (("prefill closed", None), ("decode closed", None))


@pytest.mark.parametrize("ends", [True, False])
async def test_what_a_prefill_leg_kept_for_a_client_that_left_is_released(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legs, "_GRACE_S", 5.0 if ends else 0.0)
    source, target = Engine(), Engine()
    driver = Driver(p=source, d=target)
    answer = asyncio.create_task(run(driver, live()))
    await settled()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert source.did == [("prefill", None)], "it may end: only its answer tells where its KV is"
    if ends:
        source.prefill_gate.set()
    await legs.settle(driver, SPLIT, driver.settling[0])  # type: ignore[arg-type]  # stands in for the orchestrator
    await settled()
    assert target.did == ([("release", {"from": "p"})] if ends else [])
    assert (source.did[-1] == ("prefill closed", None)) is not ends


@pytest.mark.parametrize(
    ("healthy", "asked"), [({"p", "d", "x"}, "d"), ({"p", "x"}, "x"), ({"p"}, None), (set[str](), None)]
)
async def test_kv_is_released_through_the_decode_side_or_another_of_the_group(
    healthy: set[str], asked: str | None
) -> None:
    driver = Driver(**{name: Engine(healthy=name in healthy) for name in ("p", "d", "x")})
    await release(driver, SPLIT, {"from": "p"})  # type: ignore[arg-type]  # stands in for the orchestrator
    assert [name for name, engine in driver.engines.items() if engine.did] == ([asked] if asked else [])
